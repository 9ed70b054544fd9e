"""What decisions are made on: the registry, the base tiers, the presets and what sessions did, at one moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from adapters_registry.model import AdapterVersion, RegistrySnapshot
from configs.agents import AgentPreset
from configs.routing import RoutingSettings
from router.decision import SessionRoute
from router.evidence import EVERYONE, NO_EVIDENCE, Evidence
from router.share import NO_CALLS, Share


@dataclass(frozen=True, slots=True)
class BaseTier:
    """One engine and its base model.

    `ready` is False once the engine has failed for good; one that restarts is worth waiting for. `slots` is the number
    of adapters it takes, 0 for none.
    """

    name: str
    base_name: str
    cost_per_mtok: float = 0.0
    ready: bool = True
    slots: int = 1
    tokens_per_s: float | None = None


def ranks(tiers: int) -> tuple[float, ...]:
    """The rank in [0, 1] of each of so many tiers, the weakest first."""
    return tuple(index / max(tiers - 1, 1) for index in range(tiers))


def _never_warm(_: AdapterVersion) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class RouterSnapshot:
    """Immutable but for `sessions` and `shares`, which the caller keeps (and bounds) and the router only reads.

    `tiers` go from the weakest to the strongest. Raises ValueError where there is none. Building one costs a few
    microseconds; it serves all requests until the registry or an engine changes.
    """

    registry: RegistrySnapshot
    tiers: tuple[BaseTier, ...]
    presets: Mapping[str, AgentPreset] = field(default_factory=lambda: MappingProxyType({}))
    sessions: Mapping[tuple[str, str], SessionRoute] = field(default_factory=lambda: MappingProxyType({}))
    is_warm: Callable[[AdapterVersion], bool] = _never_warm
    canary_share: float = 0.0
    """share of an agent's sessions that its canary answers, 0 to 1"""
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    shares: Mapping[tuple[str, str], Share] = field(default_factory=lambda: MappingProxyType({}))
    evidence: Mapping[str, Evidence] = field(default_factory=lambda: MappingProxyType({}))
    """by owner, `EVERYONE` for owners who have none of their own"""
    prices: tuple[float, ...] = field(init=False)
    """Root of each tier's price relative to the dearest: prices span powers of ten, and a step between two cheap tiers
    should count too. Where no tier has a price, its rank stands in for it."""
    strengths: tuple[float, ...] = field(init=False)
    """rank of each tier in [0, 1]"""
    up: tuple[int, ...] = field(init=False)
    """indices of the tiers that are ready, or of all where none is"""
    _by_base: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ValueError("a router needs at least one base tier")
        strengths = ranks(len(self.tiers))
        dearest = max(tier.cost_per_mtok for tier in self.tiers)
        prices = tuple(math.sqrt(tier.cost_per_mtok / dearest) for tier in self.tiers) if dearest > 0 else strengths
        everything = tuple(range(len(self.tiers)))
        object.__setattr__(self, "up", tuple(index for index in everything if self.tiers[index].ready) or everything)
        object.__setattr__(self, "_by_base", {tier.base_name: index for index, tier in enumerate(self.tiers)})
        object.__setattr__(self, "strengths", strengths)
        object.__setattr__(self, "prices", prices)

    def tier_named(self, name: str) -> int | None:
        """Find the index of the tier of that name."""
        return next((index for index, tier in enumerate(self.tiers) if tier.name == name), None)

    def evidence_of(self, owner: str) -> Evidence:
        """What may be known when `owner` asks."""
        return self.evidence.get(owner) or self.evidence.get(EVERYONE) or NO_EVIDENCE

    def share_of(self, key: tuple[str, str]) -> Share:
        """How the share of the strongest tier stands."""
        return self.shares.get(key, NO_CALLS)

    def tier_of_base(self, base: str) -> int | None:
        """Find the index of the tier whose base has this public name."""
        return self._by_base.get(base)
