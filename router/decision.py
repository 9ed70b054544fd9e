"""What the router answers: one choice, its reason, and all that explains it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from adapters_registry.model import AdapterVersion
from router.features import Features


class Reason(StrEnum):
    """Why this route; stable codes, told to the client in `x-loradock-reason`."""

    EXPLICIT = "explicit"
    """the client named a base or an adapter"""
    CHAMPION = "champion"
    """the agent's champion answers"""
    CANARY = "canary"
    """the agent's challenger answers: the session is one of the share that tries it out"""
    NO_ADAPTER = "no_adapter"
    """the agent has none: a base answers"""
    OUT_OF_SCOPE = "out_of_scope"
    """no agent was named and none recognised: a base answers"""
    TIER = "tier"
    """a base promised more for its price than the agent's adapter"""
    SESSION = "session"
    """the session goes on as it began, where this task alone would have gone to something weaker"""
    ENGINE_DOWN = "engine_down"
    """the engine of the agent's adapter has failed or is not configured: another base answers"""
    COLD_FALLBACK = "cold_fallback"
    """the adapter was not resident in time: its base answers; set by who waited, not by the router"""


class UnknownModel(LookupError):
    """No such `model`. `nearest` holds names that the client may have meant, best first."""

    def __init__(self, model: str, nearest: list[str]) -> None:
        super().__init__(f"unknown model '{model}'")
        self.model = model
        self.nearest = nearest


class Candidate(NamedTuple):
    """One choice as it was weighed. `cost` is the tier's `RouterSnapshot.prices`, `wait_s` the expected wait."""

    base: str
    adapter: AdapterVersion | None
    tier: str
    probability: float
    cost: float
    wait_s: float
    utility: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "base": self.base,
            "adapter": self.adapter.engine_name if self.adapter else None,
            "tier": self.tier,
            "probability": round(self.probability, 4),
            "cost": round(self.cost, 4),
            "wait_s": round(self.wait_s, 3),
            "utility": round(self.utility, 4),
        }


@dataclass(frozen=True, slots=True)
class SessionRoute:
    """What is remembered of a session: where its last routed task went."""

    agent: str | None
    tier: str
    adapted: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a task goes.

    `base` is the public name of the base model and `tier` the name of its engine; with an `adapter`, they are the
    adapter's. `confidence` is 1 where the agent was named, the recogniser's otherwise. `candidates` is empty for
    explicit routes.
    """

    model: str
    agent: str | None
    adapter: AdapterVersion | None
    base: str
    tier: str
    difficulty: float
    reason: Reason
    confidence: float
    features: Features
    candidates: tuple[Candidate, ...] = ()
    exact_version: bool = False
    """whether the client pinned a version by its digest, and wants that or an error"""

    @property
    def session_route(self) -> SessionRoute | None:
        """What to remember for the session; None for explicit routes, which leave a session as it was."""
        if self.reason is Reason.EXPLICIT:
            return None
        return SessionRoute(self.agent, self.tier, self.adapter is not None)

    def to_dict(self) -> dict[str, Any]:
        """Explain the decision as JSON, as `/v1/route` and `loradock route` show it."""
        return {
            "model": self.model,
            "agent": self.agent,
            "adapter": self.adapter.engine_name if self.adapter else None,
            "base": self.base,
            "tier": self.tier,
            "difficulty": round(self.difficulty, 4),
            "reason": self.reason.value,
            "confidence": round(self.confidence, 4),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "features": {name: round(value, 4) for name, value in self.features._asdict().items()},
        }
