from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from training.planner import (
    Card,
    CardError,
    DoesNotFit,
    Recipe,
    RecipeError,
    Work,
    card_names,
    check,
    find_card,
    load_shape,
    plan,
)
from training.planner.claims import nine_billion
from training.planner.memory import GIB
from training.planner.speed import speed_of
from training.planner.written import recipe_of, write_plan
from training.trainer import TrainingConfig, load_config

SEVEN = load_shape("7b")


def test_what_fits_stays_as_asked() -> None:
    made = plan(SEVEN, Recipe(), find_card("H200"))
    assert made.fits
    assert made.fallbacks == ()
    assert made.recipe == made.asked
    assert made.verdict.startswith("fits: the peak is ")


def test_the_first_fallback_that_fits_is_taken_and_the_step_stays_as_large() -> None:
    made = plan(SEVEN, Recipe(batch=8), Card.of_memory(10))
    assert made.fits
    assert made.recipe.checkpointed_layers is None
    assert made.recipe.method == "qlora"
    assert made.recipe.batch * made.recipe.accumulate == 8
    assert made.fallbacks == (f"batch {made.recipe.batch} accumulated {made.recipe.accumulate} times",)
    larger = plan(SEVEN, Recipe(batch=made.recipe.batch * 2), Card.of_memory(10))
    assert larger.fallbacks != ()


def test_fallbacks_come_in_the_trainers_order() -> None:
    asked = Recipe(method="lora", batch=2, length=4096, checkpointed_layers=0)
    seen = [plan(SEVEN, asked, Card.of_memory(gib)).fallbacks for gib in (80, 24, 11, 7.5, 6.7)]
    assert [steps[-1] if steps else None for steps in seen] == [
        None,
        "checkpointing",
        "4-bit weights",
        "embedding in host memory",
        "checkpoints in host memory",
    ]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(seen[1:]))


def test_what_cannot_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(DoesNotFit, match=r"Qwen2.5-7B-Instruct does not fit: .* most of it weights; .*3 GiB") as caught:
        check(SEVEN, Recipe(), Card.of_memory(3))
    assert not caught.value.plan.fits
    assert caught.value.plan.recipe.batch == 1


def test_full_training_is_never_turned_into_an_adapters() -> None:
    made = plan(SEVEN, Recipe(method="full"), find_card("RTX4090"))
    assert not made.fits
    assert made.recipe.method == "full"


def test_a_card_is_found_however_it_is_spelled() -> None:
    assert find_card("rtx 3060") == find_card("3060") == find_card("RTX3060")
    assert find_card("a100-80").memory > find_card("A100 40").memory
    assert find_card("cpu").memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert {"H200", "B200", "T4", "cpu"} <= set(card_names())
    with pytest.raises(CardError, match=r"unknown card 'C64' .*H100"):
        find_card("C64")
    with pytest.raises(CardError, match="positive"):
        Card.of_memory(0)


@pytest.mark.parametrize(
    ("kernels", "batch", "measured"),
    [("trl", 2, 7141), ("trl", 8, 9041), ("liger", 2, 7910), ("unsloth", 2, 4937), ("unsloth", 8, 5722)],
)
def test_measured_speeds_on_an_h200_are_predicted(kernels: str, batch: int, measured: int) -> None:
    speed = speed_of(SEVEN, Recipe(kernels=kernels, batch=batch), find_card("H200"))
    assert speed is not None
    assert speed.tokens_per_s == pytest.approx(measured, rel=0.05)
    assert speed.limit == pytest.approx(17_000, rel=0.02)


def test_cost_is_time_at_the_price() -> None:
    made = plan(SEVEN, Recipe(), find_card("H200"), Work(cases=2000, case_tokens=500, epochs=2, usd_per_hour=3.0))
    assert made.speed is not None
    assert made.seconds == pytest.approx(2_000_000 / made.speed.tokens_per_s)
    assert made.usd == pytest.approx(made.seconds / 1200)
    assert made.steps == 489  # of 4,096 tokens


def test_a_card_without_a_known_rate_has_no_time() -> None:
    made = plan(SEVEN, Recipe(), Card.of_memory(24))
    assert (made.speed, made.seconds, made.usd) == (None, None, None)


def test_storage_of_an_adapter_and_of_the_whole_model() -> None:
    adapter, full = (plan(SEVEN, Recipe(method=method), find_card("H200")).storage for method in ("qlora", "full"))
    assert adapter.adapter == 4 * SEVEN.lora_parameters(16)
    assert adapter.checkpoints == 2 * 3 * adapter.adapter
    assert full.adapter == 0
    assert full.merged == adapter.merged == 2 * SEVEN.parameters.total
    assert 0.53 < adapter.gguf_q8 / adapter.gguf_f16 < 0.54


@pytest.mark.parametrize(
    "broken", [{"rank": 0}, {"labelled": 0.0}, {"dropout": 1.0}, {"kernels": "magic"}, {"checkpointed_layers": -1}]
)
def test_a_recipe_that_makes_no_sense_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(broken))):
        Recipe(**broken)  # type: ignore[arg-type]


def test_claims_are_answered_from_the_config() -> None:
    rows = {claim.what: claim for claim in nine_billion(load_shape("9b"), Recipe())}
    assert rows["parameters"].true == "9,241,705,984"
    assert [claim.claimed for claim in rows.values()][1:3] == ["16.76 GB", "4.19 GB (saves 75 %)"]
    nine, gib = 9e9, float(GIB)
    assert round(nine * 2 / gib, 2) == 16.76
    assert round(nine / 2 / gib, 2) == 4.19
    assert round(16 * (4096 + 4096) * 32 / 1e6, 1) == 4.2
    assert round(4.2e6 / nine * 100, 3) == 0.047
    assert all(claim.why for claim in rows.values())


def test_a_written_plan_is_the_trainers_own_config_and_runs(tmp_path: Path) -> None:
    folder = tmp_path / "a job; with 'quotes'"
    made = plan(SEVEN, Recipe(batch=4, accumulate=2, length=1024), find_card("H200"), Work(cases=10, epochs=2.5))
    file, script = write_plan(made, "base-id", tmp_path / "data", folder)
    config = load_config(folder)
    assert file == folder.resolve() / "config.json"
    assert (config.base, config.dataset, config.method) == ("base-id", tmp_path / "data", "qlora")
    assert (config.rank, config.dropout, config.epochs) == (16, 0.0, 2.5)
    assert recipe_of(config, on_gpu=True) == made.recipe
    probe = tmp_path / "python"
    probe.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    probe.chmod(0o755)
    done = subprocess.run((script,), env={"PYTHON": str(probe)}, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "training.trainer", str(folder)]


def test_a_recipe_of_another_trainer_is_not_written(tmp_path: Path) -> None:
    for recipe in (Recipe(kernels="liger"), Recipe(optimiser="paged_adamw_8bit")):
        with pytest.raises(RecipeError, match="the trainer runs neither"):
            write_plan(plan(SEVEN, recipe, find_card("H200")), "base", tmp_path, tmp_path / "job")


def test_on_a_processor_a_config_means_fp32_without_checkpoints(tmp_path: Path) -> None:
    config = TrainingConfig(base="b", dataset=tmp_path, output=tmp_path, rank=8, max_length=512, micro_tokens=1024)
    recipe = recipe_of(config, on_gpu=False)
    assert (recipe.method, recipe.compute, recipe.checkpointed_layers) == ("lora", "fp32", 0)
    assert (recipe.batch, recipe.length, recipe.rank) == (2, 512, 8)


def test_what_a_config_leaves_open_is_the_usual_recipe(tmp_path: Path) -> None:
    config = TrainingConfig(base="b", dataset=tmp_path, output=tmp_path, dropout=0.0)
    assert recipe_of(config, on_gpu=True) == Recipe(batch=1)


def test_planning_loads_no_torch() -> None:
    code = "import sys, training.planner, training.planner.written; print('torch' in sys.modules)"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
