"""A plan as files that run it, and the recipe of a run that is configured already."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from training.planner.errors import RecipeError
from training.planner.plan import Plan
from training.planner.recipe import AUTO, FAST, PLAIN, UNSLOTH, Recipe
from training.trainer.config import TrainingConfig

SCRIPT = "train.sh"
_TRAINED_WITH = {AUTO, FAST.name, PLAIN.name, UNSLOTH.name}


def write_plan(plan: Plan, base: str, dataset: Path, folder: Path) -> tuple[Path, Path]:
    """Write the trainer's `config.json` and `train.sh` to `folder`, which becomes the job's; both files.

    Raises RecipeError for a recipe that the trainer does not run, TrainingRefused for one that it refuses.
    """
    recipe = plan.recipe
    if recipe.kernels not in _TRAINED_WITH or recipe.optimiser != "adamw":
        raise RecipeError(f"the trainer runs neither kernels {recipe.kernels} nor {recipe.optimiser}; plan others")
    again = recipe.checkpoints(plan.shape.layers)
    config = TrainingConfig.checked(
        {
            "base": base,
            "dataset": dataset.resolve(),
            "output": folder.resolve(),
            "method": recipe.method,
            "backend": "unsloth" if recipe.kernels == UNSLOTH.name else "native",
            "rank": None if recipe.method == "full" else recipe.rank,
            "max_rank": max(64, recipe.rank),
            "dropout": recipe.dropout,
            "epochs": plan.work.epochs,
            "batch_tokens": recipe.tokens * recipe.accumulate,
            "micro_tokens": recipe.tokens,
            "max_length": recipe.length,
            "gradient_checkpointing": again > 0,
        }
    )
    file, script = config.save(), folder / SCRIPT
    script.write_text(_script(plan), encoding="utf-8")
    script.chmod(0o755)
    return file, script


def recipe_of(config: TrainingConfig, *, on_gpu: bool) -> Recipe:
    """What the trainer runs for a resolved `config` before any fallback; on a processor nothing is quantised."""
    usual = Recipe()
    length = config.max_length or usual.length
    micro = config.micro_tokens or length
    batch = max(1, micro // length)
    checkpointing = on_gpu if config.gradient_checkpointing is None else config.gradient_checkpointing
    return Recipe(
        method="lora" if config.method == "qlora" and not on_gpu else config.method,
        rank=config.rank or usual.rank,
        batch=batch,
        length=length,
        accumulate=max(1, math.ceil((config.batch_tokens or micro) / (batch * length))),
        checkpointed_layers=None if checkpointing else 0,
        dropout=config.dropout,
        compute="bf16" if on_gpu else "fp32",
        kernels=UNSLOTH.name if config.backend == "unsloth" else AUTO,
    )


def _script(plan: Plan) -> str:
    # a comment must stay one line, whatever a model is called
    title = " ".join(f"{plan.shape.name} on {plan.card.name}: {plan.verdict}".split())
    return "\n".join(
        (
            "#!/bin/sh",
            f"# {title}",
            "# Run again after an interruption: training goes on from the last checkpoint.",
            "set -eu",
            'folder=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)',
            f'exec "${{PYTHON:-python3}}" -m {shlex.quote("training.trainer")} "$folder"',
            "",
        )
    )
