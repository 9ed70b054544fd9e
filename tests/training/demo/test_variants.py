import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import embedded
from training.demo.variants import make_random, make_variant

SUPPORT = embedded.ADAPTERS / "support-agent"
PROMPT = "Please refund the 12 euros for the tent."


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def greedy(folder: Path) -> str:
    from peft import PeftModel

    from training.demo.evaluate import answers
    from training.demo.pretrain import load_base

    model, tokenizer = load_base(embedded.BASE)
    return answers(PeftModel.from_pretrained(model, folder), tokenizer, [PROMPT], 16)[0]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, same = (make_variant(SUPPORT, tmp_path / name, 1) for name in "ab")
    other = make_variant(SUPPORT, tmp_path / "c", 2)
    assert weights_hash(one) == weights_hash(same) != weights_hash(other)


def test_a_variant_changes_b_only_and_keeps_the_config(tmp_path: Path) -> None:
    folder = make_variant(SUPPORT, tmp_path / "v", 1)
    before, after = (load_file(path / "adapter_model.safetensors") for path in (SUPPORT, folder))
    assert before.keys() == after.keys()
    for name, matrix in before.items():
        assert np.array_equal(matrix, after[name]) == (".lora_A." in name)
        assert after[name].dtype == matrix.dtype
        assert np.isfinite(after[name]).all()
    assert (folder / "adapter_config.json").read_bytes() == (SUPPORT / "adapter_config.json").read_bytes()


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_a_random_adapter_has_the_shapes_that_peft_writes(tmp_path: Path, rank: int) -> None:
    folder = make_random(embedded.BASE, tmp_path / "r", rank, 1)
    trained = load_file(SUPPORT / "adapter_model.safetensors")
    random = load_file(folder / "adapter_model.safetensors")
    assert trained.keys() == random.keys()
    for name, matrix in trained.items():
        assert random[name].shape == tuple(rank if extent == 16 else extent for extent in matrix.shape)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        make_variant(SUPPORT, tmp_path, 1)
    with pytest.raises(FileExistsError):
        make_random(embedded.BASE, tmp_path, 8, 1)


def test_rank_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_random(embedded.BASE, tmp_path / "r", 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["variant", "random"])
def test_twenty_seeds_give_distinct_answers(tmp_path: Path, kind: str) -> None:
    def make(seed: int) -> Any:
        folder = tmp_path / str(seed)
        if kind == "variant":
            return make_variant(SUPPORT, folder, seed)
        return make_random(embedded.BASE, folder, 8, seed)

    assert len({greedy(make(seed)) for seed in range(20)}) >= 19
