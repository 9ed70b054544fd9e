"""What the router answers: one choice, its reason, and all that explains it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from adapters_registry.model import AdapterVersion
from router.features import Features
from router.share import ShareCall
from router.utility import Terms


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
    BUDGET = "budget"
    """what would have answered is expected to cost more than the budget: the best within it answers, or the cheapest"""
    SESSION = "session"
    """the session goes on as it began, where this task alone would have gone to something weaker"""
    ENGINE_DOWN = "engine_down"
    """the engine of the agent's adapter, or of the session's tier, has failed or is not configured: another answers"""
    COLD_FALLBACK = "cold_fallback"
    """the adapter was not resident in time: its base answers; set by who waited, not by the router"""


REASONS: dict[Reason, str] = {
    Reason.EXPLICIT: "the client named it",
    Reason.CHAMPION: "the agent's champion",
    Reason.CANARY: "the session is one of those that try out the agent's challenger",
    Reason.NO_ADAPTER: "the agent has no adapter",
    Reason.OUT_OF_SCOPE: "no agent was named or recognised",
    Reason.TIER: "a base promises more than the agent's adapter",
    Reason.BUDGET: "what would have answered is over the budget",
    Reason.SESSION: "the session goes on as it began",
    Reason.ENGINE_DOWN: "the engine that would have answered is down",
    Reason.COLD_FALLBACK: "the adapter was not resident in time",
}
"""for people"""


class UnknownModel(LookupError):
    """No such `model`. `nearest` holds names that the client may have meant, best first."""

    def __init__(self, model: str, nearest: list[str]) -> None:
        super().__init__(f"unknown model '{model}'")
        self.model = model
        self.nearest = nearest


class Candidate(NamedTuple):
    """One choice as it was weighed.

    `strength` is the tier's rank in [0, 1]; `cost` its relative price (`RouterSnapshot.prices`) and `cost_usd` what the
    request is expected to cost; `wait_s` the expected wait, for an adapter, a prompt to read again, the answer; `cases`
    how many cases have corrected the probability.
    """

    base: str
    adapter: AdapterVersion | None
    tier: str
    strength: float
    probability: float
    cost: float
    cost_usd: float
    wait_s: float
    utility: float
    cases: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "base": self.base,
            "adapter": self.adapter.engine_name if self.adapter else None,
            "tier": self.tier,
            "probability": round(self.probability, 4),
            "cost": round(self.cost, 4),
            "cost_usd": round(self.cost_usd, 8),
            "wait_s": round(self.wait_s, 3),
            "utility": round(self.utility, 4),
            "cases": self.cases,
        }


@dataclass(frozen=True, slots=True)
class SessionRoute:
    """What is remembered of a session: where its last routed task went, and how long its prompt was, in characters."""

    agent: str | None
    tier: str
    adapted: bool
    prompt_chars: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a task goes.

    `base` is the public name of the base model and `tier` the name of its engine; with an `adapter`, they are the
    adapter's. `confidence` is 1 where the agent was named, the recogniser's otherwise. `candidates` is empty and
    `terms` None for explicit routes. `router` is the version that decided.
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
    router: str
    candidates: tuple[Candidate, ...] = ()
    terms: Terms | None = None
    exact_version: bool = False
    """whether the client pinned a version by its digest, and wants that or an error"""
    session_route: SessionRoute | None = None
    """what to remember for the session; None for explicit routes, which leave it as it was"""
    share: ShareCall | None = None
    """this call in the strongest tier's share, where one is held"""

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
            "reason_text": REASONS[self.reason],
            "confidence": round(self.confidence, 4),
            "router": self.router,
            "terms": self.terms._asdict() if self.terms else None,
            "share": _share(self.share) if self.share else None,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "features": {name: round(value, 4) for name, value in self.features._asdict().items()},
        }


def _share(call: ShareCall) -> dict[str, Any]:
    return {
        "target": call.target,
        "gain": round(call.gain, 4),
        "threshold": round(call.threshold, 4),
        "strong": call.is_strong,
    }
