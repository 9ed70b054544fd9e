"""Settings of the router: what its choices weigh, the share of the strongest tier, and how it learns.

`RoutingSettings` is one section of the settings. The same wishes can be had for an agent (`routing` of its preset),
for an API key (in the file of keys) and, as far as clients may say, for a request (`metadata.quality`, `.max_cost`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Quality = Literal["economy", "balanced", "best"]
Learning = Literal["tenant", "shared", "off"]

_QUALITY = "economy weighs price four times, best not at all"
_MAX_COST = "USD that a request may be expected to cost; the cheapest tier answers where none is within it"
_COST_WEIGHT = "lambda: success probability that is worth the whole price of the dearest tier"
_WAIT_WEIGHT = "mu: success probability that is worth a second of waiting"


class RoutingWishes(BaseModel):
    """What an agent's preset or an API key may say about its tasks' routes; what is None is left to the next level."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quality: Quality | None = Field(None, description=_QUALITY)
    max_cost: float | None = Field(None, gt=0, description=_MAX_COST)
    cost_weight: float | None = Field(None, ge=0, le=10, description=_COST_WEIGHT)
    wait_weight: float | None = Field(None, ge=0, le=10, description=_WAIT_WEIGHT)


class RoutingSettings(BaseModel):
    """How routes are chosen and what is learned from cases. Times end in their unit, shares are 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quality: Quality = Field("balanced", description=_QUALITY)
    max_cost: float | None = Field(None, gt=0, description=_MAX_COST)
    cost_weight: float = Field(0.2, ge=0, le=10, description=_COST_WEIGHT)
    wait_weight: float = Field(0.02, ge=0, le=10, description=_WAIT_WEIGHT)
    strong_share: float | None = Field(
        None, ge=0, le=1, description="share of an API key's calls that the strongest tier answers; default: by utility"
    )

    learning: Learning = Field(
        "tenant",
        description="whose cases change whose routes: tenant: an API key's its own; shared: everybody's everybody's; "
        "off: nobody's",
    )
    evidence_weight: float = Field(
        20.0, gt=0, description="cases of a candidate that weigh as much as what was believed before"
    )
    refit_s: float = Field(3600.0, ge=0, description="how often a new router version is fitted from cases; 0: never")
    refit_min_cases: int = Field(
        400, ge=20, description="least number of rewarded cases, and of new ones, that makes a new router version"
    )
