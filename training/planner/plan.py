"""Whether a run fits a card, what it takes, and the first fallback that makes it fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from training.planner.cards import CONTEXT, SLACK, Card
from training.planner.errors import DoesNotFit
from training.planner.memory import GIB, PARTS, Memory, memory_of, trained
from training.planner.recipe import Recipe
from training.planner.shape import ModelShape
from training.planner.speed import Speed, speed_of
from training.planner.storage import Storage, storage_of


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be learned from, and what an hour of the card costs. Rows are packed to the recipe's length."""

    cases: int
    case_tokens: int = 400
    epochs: float = 3.0
    usd_per_hour: float = 0.5

    @property
    def tokens(self) -> int:
        """Tokens that go through the model in the whole run."""
        return math.ceil(self.cases * self.case_tokens * self.epochs)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run on a card. `recipe` is what fits (or the smallest that was tried), `asked` what was asked for.

    `fallbacks` are the steps from `asked` to `recipe`, in order; empty where it fits as asked.
    """

    shape: ModelShape
    asked: Recipe
    recipe: Recipe
    card: Card
    work: Work
    memory: Memory
    asked_memory: Memory
    fits: bool
    fallbacks: tuple[str, ...]
    speed: Speed | None
    storage: Storage

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return max(1, math.ceil(self.work.tokens / (self.recipe.tokens * self.recipe.accumulate)))

    @property
    def seconds(self) -> float | None:
        """Time of the run's steps, without start-up and evaluation; None where the card's rate is not known."""
        return self.work.tokens / self.speed.tokens_per_s if self.speed else None

    @property
    def usd(self) -> float | None:
        """Cost of those seconds."""
        return None if self.seconds is None else self.seconds / 3600 * self.work.usd_per_hour

    @property
    def verdict(self) -> str:
        """One line for a person."""
        has = f"{self.card.usable() / GIB:.2f} GiB of {self.card.name} are usable"
        asked = f"{self.asked_memory.peak.total / GIB:.2f} GiB"
        if self.fits and not self.fallbacks:
            return f"fits: the peak is {asked}, {has}"
        least = f"{self.memory.peak.total / GIB:.2f} GiB"
        if self.fits:
            return f"fits with {', '.join(self.fallbacks)}: {least} instead of {asked}, {has}"
        tried = f" with {', '.join(self.fallbacks)}" if self.fallbacks else ""
        part = max(PARTS, key=lambda name: self.memory.peak.parts[name])
        return f"does not fit: {least} at the peak{tried}, most of it {part}; {has}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON."""
        learned, _ = trained(self.shape, self.recipe)
        counts = self.shape.parameters
        return {
            "fits": self.fits,
            "verdict": self.verdict,
            "fallbacks": list(self.fallbacks),
            "model": {
                "name": self.shape.name,
                "parameters": {"total": counts.total, **asdict(counts)},
                "trained": learned,
                "trained_share": learned / counts.total,
            },
            "card": {"name": self.card.name, "memory_bytes": self.card.memory, "usable_bytes": self.card.usable()},
            "recipe": asdict(self.recipe),
            "asked": asdict(self.asked),
            "memory": _memory_dict(self.memory, self.card) | {"asked_peak_bytes": self.asked_memory.peak.total},
            "time": {
                "tokens": self.work.tokens,
                "steps": self.steps,
                "tokens_per_second": self.speed and self.speed.tokens_per_s,
                "matrix_limit_tokens_per_second": self.speed and self.speed.limit,
                "seconds": self.seconds,
                "cost_usd": self.usd,
                **asdict(self.work),
            },
            "storage": asdict(self.storage),
        }


def plan(shape: ModelShape, recipe: Recipe, card: Card, work: Work | None = None) -> Plan:
    """The plan for `recipe`, or for the first fallback that fits the card."""
    asked = memory_of(shape, recipe)
    fits = _fits(asked, card)
    chosen, memory = recipe, asked
    steps: tuple[str, ...] = ()
    if not fits:
        for chosen, steps in _fallbacks(shape, recipe):  # noqa: B007  # the last ones are used
            memory = memory_of(shape, chosen)
            if fits := _fits(memory, card):
                break
    return Plan(
        shape=shape,
        asked=recipe,
        recipe=chosen,
        card=card,
        work=work or Work(cases=1000),
        memory=memory,
        asked_memory=asked,
        fits=fits,
        fallbacks=steps,
        speed=speed_of(shape, chosen, card),
        storage=storage_of(shape, chosen),
    )


def check(shape: ModelShape, recipe: Recipe, card: Card) -> Plan:
    """As `plan`, but raises DoesNotFit where nothing helps."""
    found = plan(shape, recipe, card)
    if not found.fits:
        raise DoesNotFit(f"{shape.name} {found.verdict}", found)
    return found


def _fits(memory: Memory, card: Card) -> bool:
    # a CPU has one memory: what is offloaded stays in it
    return memory.peak.total + (memory.host if card.cpu else 0) <= card.usable()


def _fallbacks(shape: ModelShape, recipe: Recipe) -> Iterator[tuple[Recipe, tuple[str, ...]]]:
    """Ever smaller recipes with the steps that led there: batch, checkpointing, 4-bit, offload."""
    steps: tuple[str, ...] = ()
    rows = recipe.batch * recipe.accumulate
    while recipe.batch > 1:
        batch = recipe.batch // 2
        recipe = replace(recipe, batch=batch, accumulate=math.ceil(rows / batch))
        yield recipe, (f"batch {batch} accumulated {recipe.accumulate} times",)
        steps = (f"batch {batch} accumulated {recipe.accumulate} times",)
    if recipe.checkpoints(shape.layers) < shape.layers:
        recipe, steps = replace(recipe, checkpointed_layers=None), (*steps, "checkpointing")
        yield recipe, steps
    if recipe.method == "lora":
        recipe, steps = replace(recipe, method="qlora"), (*steps, "4-bit weights")
        yield recipe, steps
    if recipe.how(shape).buffers and not (shape.tied or recipe.host_embedding):
        recipe, steps = replace(recipe, host_embedding=True), (*steps, "embedding in host memory")
        yield recipe, steps
    if not recipe.offload:
        recipe, steps = replace(recipe, offload=True), (*steps, "checkpoints in host memory")
        yield recipe, steps


def _memory_dict(memory: Memory, card: Card) -> dict[str, Any]:
    peak = memory.peak
    return {
        "peak_bytes": peak.total,
        "peak_gib": peak.total / GIB,
        "peak_at": peak.name,
        "parts": {part: {"at_peak": peak.parts[part], "largest": memory.largest(part)} for part in PARTS},
        "moments": {moment.name: moment.total for moment in memory.moments},
        "host_bytes": memory.host,
        "context_bytes": 0 if card.cpu else CONTEXT,
        "slack_bytes": 0 if card.cpu else round(SLACK * peak.total),
    }
