from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from adapters_registry import BaseModelSpec
from adapters_registry.peft_config import read_config
from adapters_registry.validation import check_adapter, choose_base
from adapters_registry.weights import read_header
from tests.training.trainer.conftest import Train, lines, losses, write_dataset
from training.trainer import (
    DiskFull,
    OutOfMemory,
    TrainingConfig,
    TrainingDiverged,
    TrainingRefused,
    read_status,
)
from training.trainer.batches import Batch
from training.trainer.checkpoints import Checkpoints
from training.trainer.memory import Thrift
from training.trainer.model import load_model
from training.trainer.passes import Passes, Rebuild
from training.trainer.step import Score, summed_loss

Configure = Callable[..., TrainingConfig]


class Killed(BaseException):
    """Ends a run between two steps of code, as a kill would."""


class Fault:
    """The loss, except that `fault` comes first; it is told how many passes there were before, and the batch."""

    def __init__(self, fault: Callable[[int, Batch], float | None]) -> None:
        self._fault = fault
        self.passes = 0

    def __call__(self, model: Any, batch: Batch) -> Any:
        self.passes += 1
        factor = self._fault(self.passes - 1, batch)
        loss = summed_loss(model, batch)
        return loss if factor is None else loss * factor


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_an_adapter_comes_out_that_the_registry_accepts(configure: Configure, run: Train, base: Path) -> None:
    config = configure(base_name="acme/tiny", report_to=("tensorboard",), max_steps=40)
    result = run(config)
    assert result is not None
    folder = Path(result["adapter"])
    spec = BaseModelSpec.from_folder(base, "tiny", ["acme/tiny"], max_lora_rank=16)
    recorded = read_config((folder / "adapter_config.json").read_bytes())
    with (folder / "adapter_model.safetensors").open("rb") as file:
        header = read_header(file)
    assert choose_base({"tiny": spec}, None, recorded, header) is spec
    assert check_adapter(recorded, header, spec).rank == 8
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {info.dtype for info in header.tensors} == {"F32"}

    curve = losses(config)
    assert len(curve) == result["steps"] == 40
    assert curve[-1] < curve[0] - 0.5
    assert json.loads((config.output / "result.json").read_text()) == result
    assert result["method"] == "lora"
    assert result["tokens_per_second"] > 0
    assert result["peak_memory_bytes"] > 1 << 20
    assert (config.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((config.output / "tensorboard").rglob("events.out.*"))


def test_the_status_and_the_metrics_tell_how_far_it_is(configure: Configure, run: Train, log: StringIO) -> None:
    config = configure()
    seen = []

    def look(_passes: int, _batch: Batch) -> None:
        seen.append(read_status(config.output))

    run(config, loss=Fault(look))
    first, last = seen[0], read_status(config.output)
    assert first is not None
    assert (first.state, first.running, first.total_steps) == ("running", True, 12)
    assert last is not None
    assert (last.state, last.running, last.step, last.error) == ("done", False, 12, None)
    assert last.loss is not None
    assert last.started_at is not None
    assert last.checkpoint_at is not None
    row = json.loads((config.output / "metrics.jsonl").read_text().splitlines()[-1])
    wanted = {"epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "samples_per_second"}
    assert {*wanted, "step", "gpu_memory_bytes", "validation_loss", "validation_exact"} == row.keys()
    assert "4-bit weights need a GPU: training LoRA on float32 weights instead" in log.getvalue()


def test_a_run_ended_at_any_step_goes_on_as_if_nothing_had_happened(
    configure: Configure, run: Train, tmp_path: Path
) -> None:
    undisturbed = configure(output=tmp_path / "undisturbed", dropout=0.1)
    run(undisturbed)
    disturbed = configure(output=tmp_path / "disturbed", dropout=0.1)
    for dies_after in (2, 4, 5):

        def die(passes: int, _batch: Batch, dies_after: int = dies_after) -> None:
            if passes == dies_after:
                raise Killed

        with pytest.raises(Killed):
            run(disturbed, loss=Fault(die))
    run(disturbed)
    assert losses(disturbed) == pytest.approx(losses(undisturbed), abs=1e-6)
    assert same(weights(disturbed.output), weights(undisturbed.output))


def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on_later(configure: Configure, run: Train) -> None:
    config = configure(checkpoint_steps=1000)
    fault = Fault(lambda _passes, _batch: None)
    assert run(config, loss=fault, stopping=lambda: fault.passes >= 5) is None
    assert not (config.output / "result.json").exists()
    status = read_status(config.output)
    assert status is not None
    assert (status.state, status.running, status.step) == ("stopped", False, 5)
    rest = Fault(lambda _passes, _batch: None)
    assert run(config, loss=rest) is not None
    assert rest.passes == 7


def test_a_torn_checkpoint_costs_only_the_steps_since_the_one_before(configure: Configure, run: Train) -> None:
    config = configure(checkpoint_steps=2)
    fault = Fault(lambda _passes, _batch: None)
    run(config, loss=fault, stopping=lambda: fault.passes >= 4)
    newest = config.output / "checkpoints" / "step-00000004"
    (newest / "model.safetensors").write_bytes(b"torn")
    rest = Fault(lambda _passes, _batch: None)
    assert run(config, loss=rest) is not None
    assert rest.passes == 10


# memory


def out_of_memory(sign: str) -> BaseException:
    import torch

    errors: dict[str, BaseException] = {
        "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
        "host": MemoryError(),
    }
    return errors[sign]


@pytest.mark.parametrize("sign", ["gpu", "cpu", "host"])
def test_out_of_memory_halves_the_batch_and_changes_nothing_else(
    configure: Configure, run: Train, tmp_path: Path, log: StringIO, sign: str
) -> None:
    calm = configure(output=tmp_path / "calm", dropout=0.0, max_steps=6)
    run(calm)
    short = configure(output=tmp_path / "short", dropout=0.0, max_steps=6)

    def refuse(_passes: int, batch: Batch) -> None:
        if len(batch.lengths) > 2:
            raise out_of_memory(sign)

    result = run(short, loss=Fault(refuse))
    assert result is not None
    assert losses(short) == pytest.approx(losses(calm), abs=1e-4)
    assert ": going on with" in log.getvalue()


def test_a_row_that_is_too_much_alone_turns_recomputation_on(configure: Configure, run: Train, log: StringIO) -> None:
    failures = []

    def refuse(_passes: int, batch: Batch) -> None:
        if len(batch.lengths) > 1 or not failures:
            failures.append(len(batch.lengths))
            raise out_of_memory("gpu")
        if failures[-1] > 1:
            failures.append(1)
            raise out_of_memory("gpu")

    result = run(configure(max_steps=3), loss=Fault(refuse))
    assert result is not None
    assert "checkpointing" in result["memory"]


def test_when_nothing_is_left_to_save_it_ends_in_one_error(configure: Configure, run: Train) -> None:
    config = configure()

    def refuse(_passes: int, _batch: Batch) -> None:
        raise out_of_memory("gpu")

    with pytest.raises(OutOfMemory, match=r"out of memory with one row of \d+ tokens and .*checkpointing") as failure:
        run(config, loss=Fault(refuse))
    assert "\n" not in str(failure.value)
    status = read_status(config.output)
    assert status is not None
    assert (status.state, status.error) == ("failed", str(failure.value))


def test_4_bit_weights_are_loaded_under_the_same_adapter(configure: Configure, run: Train) -> None:
    """As on a GPU, where the model must be made anew: the run goes on from its checkpoint with another base."""
    loaded: list[Thrift] = []

    def load(config: TrainingConfig, thrift: Thrift, device: Any) -> Any:
        loaded.append(thrift)
        return load_model(config, thrift, device)

    def wish(passes: int, _batch: Batch) -> None:
        if passes == 4:
            raise Rebuild(Thrift(64, checkpointing=True, four_bit=True))

    config = configure()
    assert run(config, load_model=load, loss=Fault(wish)) is not None
    assert [thrift.four_bit for thrift in loaded] == [False, True]
    assert len(losses(config)) == 12


def test_a_model_that_does_not_fit_is_tried_with_less_and_then_given_up(configure: Configure, run: Train) -> None:
    def load(_config: TrainingConfig, _thrift: Thrift, _device: Any) -> Any:
        raise out_of_memory("gpu")

    with pytest.raises(OutOfMemory, match=r"does not fit into memory with .*checkpointing"):
        run(configure(), load_model=load)


# trouble with the loss


def test_a_loss_that_is_no_number_goes_back_to_the_last_checkpoint(
    configure: Configure, run: Train, log: StringIO
) -> None:
    config = configure(max_steps=20)
    result = run(config, loss=Fault(lambda passes, _batch: math.nan if passes == 7 else None))
    assert result is not None
    assert result["rollbacks"] == 1
    assert "step 7: the loss is nan, the gradient's norm nan: back to step 6 with a tenth of the rate" in log.getvalue()
    rates = [json.loads(row)["learning_rate"] for row in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert max(rates[-12:]) < max(rates) / 5
    assert all(map(math.isfinite, losses(config)))


def test_a_loss_that_stays_no_number_ends_in_one_error_with_the_last_good_state(
    configure: Configure, run: Train
) -> None:
    config = configure()
    with pytest.raises(TrainingDiverged, match=r"the loss is nan.* also after 3 rollbacks"):
        run(config, loss=Fault(lambda passes, _batch: math.nan if passes >= 7 else None))
    newest = Checkpoints(config.output / "checkpoints", 2).newest()
    assert newest is not None
    assert newest.step == 6
    assert run(config) is not None


def test_a_loss_that_runs_away_goes_back(configure: Configure, run: Train, log: StringIO) -> None:
    config = configure(max_steps=40, checkpoint_steps=5)
    result = run(config, loss=Fault(lambda passes, _batch: 40.0 if 10 <= passes < 24 else None))
    assert result is not None
    assert result["rollbacks"] >= 1
    assert "the loss has been above" in log.getvalue()
    assert losses(config)[-1] < 10


# disks


class SmallDisk(Checkpoints):
    """A disk that is full while more than `room` checkpoints lie on it."""

    room = 1

    def write(self, step: int, fill: Callable[[Path], None], barrier: Callable[[], None] = lambda: None) -> Any:
        def filled(folder: Path) -> None:
            fill(folder)
            if len(list(folder.parent.glob("step-*[0-9]"))) > self.room:
                raise OSError(errno.ENOSPC, "No space left on device")

        return super().write(step, filled, barrier)


class NoDisk(SmallDisk):
    room = 0


def test_a_full_disk_costs_older_checkpoints_and_not_the_run(configure: Configure, run: Train) -> None:
    config = configure()
    assert run(config, checkpoints=SmallDisk) is not None
    assert (config.output / "checkpoints" / "step-00000012").is_dir()


def test_a_disk_without_room_ends_in_one_error_with_the_last_good_state(configure: Configure, run: Train) -> None:
    config = configure()
    with pytest.raises(DiskFull, match="the last good checkpoint is kept"):
        run(config, checkpoints=NoDisk)
    assert (config.output / "checkpoints" / "step-00000000" / "checkpoint.json").exists()
    assert run(config) is not None


# kinds of training


def test_it_goes_on_from_an_adapter(configure: Configure, run: Train, tmp_path: Path) -> None:
    first = configure(output=tmp_path / "first", max_steps=40)
    run(first)
    second = configure(output=tmp_path / "second", rank=16, continue_from=first.output / "adapter", max_steps=4)
    result = run(second)
    assert result is not None
    assert result["rank"] == 8
    assert losses(second)[0] < losses(first)[0] - 0.5


def test_an_adapter_of_another_base_is_not_continued(configure: Configure, run: Train, base: Path) -> None:
    from configs import embedded

    with pytest.raises(TrainingRefused, match=r"cannot continue from .*legal-agent"):
        run(configure(continue_from=embedded.ADAPTERS / "legal-agent"))


def test_full_training_writes_a_model(configure: Configure, run: Train) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = configure(method="full", rank=None, learning_rate=2e-3, max_steps=30)
    result = run(config)
    assert result is not None
    assert losses(config)[-1] < losses(config)[0] - 2
    trained = AutoModelForCausalLM.from_pretrained(result["model"])
    assert trained.config.hidden_size == 64
    assert trained.dtype == AutoModelForCausalLM.from_pretrained(config.base).dtype
    assert AutoTokenizer.from_pretrained(result["model"]).chat_template


def test_it_ends_early_without_gain_and_keeps_the_best(configure: Configure, run: Train, log: StringIO) -> None:
    config = configure(max_steps=200, evaluations=50, early_stopping=2, learning_rate=0.03)
    result = run(config)
    assert result is not None
    assert result["steps"] < 200
    assert result["best_step"] < result["steps"]
    assert "no gain in 2 looks" in log.getvalue()


def test_it_ends_when_two_looks_on_end_find_all_right(
    configure: Configure, run: Train, log: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Passes, "score", lambda _: Score(loss=0.1, exact=1.0))
    result = run(configure(max_steps=20, evaluations=5, early_stopping=4))
    assert result is not None
    assert (result["steps"], result["best_step"]) == (8, 4)
    assert "all cases right twice" in log.getvalue()


def test_the_loss_of_the_saved_adapter_is_that_of_the_best_look(
    configure: Configure, run: Train, base: Path, dataset: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training.trainer.batches import loss_weight, padded
    from training.trainer.rows import ChatFormat, read_lines

    result = run(configure())
    assert result is not None
    rows = ChatFormat(AutoTokenizer.from_pretrained(base)).encode(read_lines(dataset / "validation.jsonl"), 256).rows
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result["adapter"]).eval()
    loss = float(summed_loss(model, padded(rows, pad=0)).detach()) / sum(map(loss_weight, rows))
    assert loss == pytest.approx(result["validation_loss"], rel=1e-4)


# refusals


def test_a_dataset_without_a_row_that_fits_is_refused(configure: Configure, run: Train, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "long", lines(3))
    with pytest.raises(TrainingRefused, match="nothing to train on; 3 rows are longer than 16 tokens"):
        run(configure(dataset=data, max_length=16))


def test_a_base_that_is_none_is_refused(configure: Configure, run: Train, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = configure(base=str(tmp_path / "empty"))
    with pytest.raises(TrainingRefused, match="base"):
        run(config)
    status = read_status(config.output)
    assert status is not None
    assert status.state == "failed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": "unsloth"}, "backend unsloth is not installed"),
        ({"report_to": ("wandb",)}, "report_to names wandb, which is not installed"),
        ({"device": "cuda"}, "torch finds no GPU"),
    ],
)
def test_what_is_not_there_is_refused(configure: Configure, run: Train, changes: dict[str, Any], reason: str) -> None:
    import torch

    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TrainingRefused, match=reason):
        run(configure(**changes))
