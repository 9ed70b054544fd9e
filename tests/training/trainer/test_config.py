from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.agents import load_presets
from training.trainer import TrainingConfig, TrainingRefused, load_config

PLACE = {"base": "b", "dataset": Path("d"), "output": Path("o")}


@pytest.mark.parametrize("method", ["prompt", "prefix", "Prefix-Tuning", "p-tuning"])
def test_methods_that_no_engine_serves_are_refused_with_the_reason(method: str) -> None:
    with pytest.raises(TrainingRefused, match="tuning cannot be served: the engine takes LoRA adapters") as refusal:
        TrainingConfig.checked(PLACE | {"method": method})
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"ranks": 8}, "unknown setting 'ranks'|ranks"),
        ({"rank": 12}, "rank: must be one of 1, 8, 16"),
        ({"rank": 64, "max_rank": 32}, "rank 64 is above the engine's max_lora_rank of 32"),
        ({"method": "full", "continue_from": "a"}, "continue_from names an adapter"),
        ({"backend": "unsloth", "launcher": {"processes": 2}}, "unsloth trains in one process"),
        ({"launcher": {"processes": 3, "machines": 2}}, "processes must be a multiple of machines"),
        ({"launcher": {"processes": 2, "machines": 2}}, "several machines need main_address"),
        ({"keep_checkpoints": 1}, "keep_checkpoints"),
    ],
)
def test_wrong_values_are_refused_in_one_line(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrainingRefused, match=reason) as refusal:
        TrainingConfig.checked(PLACE | values)
    assert "\n" not in str(refusal.value)


def test_a_preset_decides_what_the_job_does_not() -> None:
    for preset in load_presets().values():
        config = TrainingConfig.from_preset(preset.training, **PLACE, dropout=0.0)
        assert config.max_length == preset.training.max_length
        assert config.early_stopping == preset.training.early_stopping
        assert config.dropout == 0.0


def test_a_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = TrainingConfig(**PLACE | {"output": tmp_path / "job", "rank": 8, "report_to": ("wandb",)})
    config.save()
    assert load_config(tmp_path / "job") == config


def test_a_job_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingRefused, match=r"cannot read .*config\.json: No such file"):
        load_config(tmp_path)
