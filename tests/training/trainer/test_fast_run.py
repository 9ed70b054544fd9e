"""A whole run on the fast path ends where a plain one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from safetensors.torch import load_file

torch = pytest.importorskip("torch")

from tests.training.trainer.conftest import Train, losses  # noqa: E402
from training.trainer import TrainingConfig  # noqa: E402
from training.trainer import model as models  # noqa: E402
from training.trainer.fast import accelerate_model, is_accelerated  # noqa: E402
from training.trainer.memory import Thrift  # noqa: E402
from training.trainer.run import _Bench  # noqa: E402

Configure = Callable[..., TrainingConfig]


def load_fast(config: TrainingConfig, thrift: Thrift, device: Any) -> Any:
    model = models.load_model(config, thrift, device)
    assert accelerate_model(model, kept_layers=1, devices=("cpu",)).active
    return model


def adapter(config: TrainingConfig) -> dict[str, Any]:
    return load_file(config.output / "adapter" / "adapter_model.safetensors")


def test_losses_and_adapter_are_those_of_a_plain_run(configure: Configure, run: Train, tmp_path: Any) -> None:
    plain = configure(output=tmp_path / "plain", dropout=0.0)
    fast = configure(output=tmp_path / "fast", dropout=0.0)
    slow_result, fast_result = run(plain), run(fast, load_model=load_fast)
    assert slow_result is not None and fast_result is not None
    assert (slow_result["fast"], fast_result["fast"]) == (False, True)
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-3)
    assert fast_result["validation_loss"] == pytest.approx(slow_result["validation_loss"], rel=1e-3)
    assert adapter(fast).keys() == adapter(plain).keys()


def test_out_of_memory_lets_kept_layers_go(configure: Configure, run: Train, log: StringIO) -> None:
    made = []

    def load(config: TrainingConfig, thrift: Thrift, device: Any) -> Any:
        model = load_fast(config, thrift, device)
        made.append(model)
        forward, calls = model.forward, iter(range(100))

        def failing(*arguments: Any, **options: Any) -> Any:
            if next(calls) == 1:
                raise torch.OutOfMemoryError("injected")
            return forward(*arguments, **options)

        model.forward = failing
        return model

    config = configure(gradient_checkpointing=True)
    assert run(config, load_model=load) is not None
    assert "out of memory" in log.getvalue()
    assert not any(layer.fused.kept for layer in made[0].get_base_model().model.layers)


def test_a_processor_takes_the_plain_path(configure: Configure) -> None:
    config = configure(alpha=16)
    model = models.load_model(config, Thrift(128), torch.device("cpu"))
    assert not models.speed_up(model, config, Thrift(128), free=2**40)
    assert not is_accelerated(model)


@pytest.fixture
def other_device() -> Iterator[None]:
    """Accelerate keeps the device of a process's first run: forget that, before and after."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.gpu
@pytest.mark.usefixtures("other_device")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_on_a_gpu_the_fast_path_learns_as_the_plain_one(
    configure: Configure, run: Train, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    changes = {"device": "cuda", "method": "qlora", "dropout": dropout, "max_steps": 40}
    fast, plain = (configure(output=tmp_path / name, **changes) for name in ("fast", "plain"))
    fast_result = run(fast)
    monkeypatch.setattr(_Bench, "_may_be_fast", lambda _: False)
    plain_result = run(plain)
    assert fast_result is not None and plain_result is not None
    assert (fast_result["fast"], plain_result["fast"]) == (True, False)
    assert losses(fast)[0] == pytest.approx(losses(plain)[0], rel=2e-2)
    assert losses(fast)[-1] == pytest.approx(losses(plain)[-1], rel=0.15)
    assert losses(fast)[-1] < 0.95 * losses(fast)[0]
