"""One version of the learned router: what predicts outcomes, what recognises agents, and the name of the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from router.agents import AgentRecogniser
from router.learned import store
from router.learned.blend import Blend, NeighbourBlend
from router.learned.daao import VariationalOutcomes
from router.learned.linear import LinearOutcomes
from router.learned.outcomes import OutcomeEstimator
from router.learned.recogniser import FamiliarityRecogniser
from router.learned.store import Part, RouterModelInvalid


@runtime_checkable
class Saveable(Protocol):
    """An estimator that can be part of a saved model."""

    def part(self) -> Part:
        """All that it consists of."""
        ...


OUTCOMES, RECOGNISER = "outcomes", "recogniser"
_OUTCOMES: dict[str, Callable[[Part], Any]] = {
    LinearOutcomes.KIND: LinearOutcomes.from_part,
    Blend.KIND: Blend.from_part,
    NeighbourBlend.KIND: NeighbourBlend.from_part,
    VariationalOutcomes.KIND: VariationalOutcomes.from_part,
}
_RECOGNISERS: dict[str, Callable[[Part], Any]] = {FamiliarityRecogniser.KIND: FamiliarityRecogniser.from_part}


@dataclass(frozen=True)
class RouterModel:
    """What was learned, or None for what was not. Immutable; equal content has the same `version`.

    `version` is the first 12 hex digits of the sha256 of the saved document, which holds the sha256 of its arrays.
    """

    version: str
    outcomes: OutcomeEstimator | None = None
    recogniser: AgentRecogniser | None = None

    @classmethod
    def of(cls, outcomes: OutcomeEstimator | None = None, recogniser: AgentRecogniser | None = None) -> RouterModel:
        """Make a version of fitted estimators. Raises TypeError where one of them cannot be saved."""
        return cls(store.version_of(_parts(outcomes, recogniser)), outcomes, recogniser)

    def save(self, folder: Path) -> None:
        """Write the model to `folder`. Raises OSError."""
        store.write(folder, _parts(self.outcomes, self.recogniser))

    @classmethod
    def load(cls, folder: Path) -> RouterModel:
        """Read a model. Raises RouterModelInvalid for whatever is none, was changed, or has another schema."""
        version, parts = store.read(folder)
        if unknown := sorted(set(parts) - {OUTCOMES, RECOGNISER}):
            raise RouterModelInvalid(f"{folder} holds an unknown part '{unknown[0]}'")
        outcomes, recogniser = parts.get(OUTCOMES), parts.get(RECOGNISER)
        return cls(
            version,
            _build(outcomes, _OUTCOMES) if outcomes else None,
            _build(recogniser, _RECOGNISERS) if recogniser else None,
        )


def _parts(outcomes: OutcomeEstimator | None, recogniser: AgentRecogniser | None) -> dict[str, Part]:
    parts = {}
    for name, estimator in ((OUTCOMES, outcomes), (RECOGNISER, recogniser)):
        if estimator is None:
            continue
        if not isinstance(estimator, Saveable):
            raise TypeError(f"{type(estimator).__name__} cannot be saved")
        parts[name] = estimator.part()
    return parts


def _build(part: Part, kinds: dict[str, Callable[[Part], Any]]) -> Any:
    if part.kind not in kinds:
        raise RouterModelInvalid(f"unknown kind of estimator '{part.kind}'; known: {', '.join(kinds)}")
    return kinds[part.kind](part)
