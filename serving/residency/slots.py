"""The slots of one engine and the choice of whom to evict."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from cachetools import Cache

from adapters_registry.model import AdapterVersion

TURN_S = 0.5
"""A busy adapter has so long in its slot before it drains for others."""
PATIENCE_S = 2.0
"""If one takes longer to drain, another drains as well."""


class AdapterState(StrEnum):
    """State of one adapter on one engine."""

    ABSENT = "absent"
    STAGING = "staging"
    STAGED = "staged"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True, eq=False)
class Entry:
    """What residency knows of one adapter. Times are seconds of the residency's clock."""

    adapter: AdapterVersion
    state: AdapterState = AdapterState.ABSENT
    in_flight: int = 0
    waiters: int = 0
    pinned: bool = False
    asked_at: float = 0.0
    """when its present load was asked for or, while it drains, that it go on"""
    ahead: bool = False
    """it was brought near while others were loaded"""
    wanted: bool = False
    """a load was asked for on its own account: by prefetch, by a pin, or by a request that went to the base instead"""
    leaving: bool = False
    """asked to go: it does as soon as nobody uses it, those included who wait for it while it is on its way in"""
    ready: asyncio.Future[None] | None = None
    """resolved when the present load ends or it goes on; None when neither is asked for"""
    priority: float = 0.0
    load_s: float = 0.0
    """duration of the last load"""
    turn_at: float = 0.0
    """when its present turn in a slot began"""
    drains_at: float = 0.0
    """when it was last told to drain"""
    last_used: float = 0.0
    loads: int = 0
    failed_until: float = 0.0
    failure: Exception | None = field(default=None, repr=False)

    @property
    def evictable(self) -> bool:
        """No request uses it or is about to, and nobody pinned it."""
        return self.in_flight == 0 and self.waiters == 0 and not self.pinned

    @property
    def asked_for(self) -> bool:
        """Somebody waits for it, or its load was asked for on its own account."""
        return self.waiters > 0 or self.wanted

    @property
    def busy(self) -> bool:
        """Requests use it and it does not drain.

        One that has just been loaded is not busy before those that waited for it have taken it.
        """
        return self.in_flight > 0 and self.state is AdapterState.READY

    @property
    def yielding(self) -> bool:
        """It drains for others' sake and is asked to go for no other reason: it may go on where it is."""
        return self.state is AdapterState.DRAINING and not self.leaving

    def drain(self, now: float) -> None:
        """Take no new requests; what is ready leaves when its last one has ended."""
        self.state, self.drains_at = AdapterState.DRAINING, now


class SlotCache(Cache[str, Entry]):
    """Adapters in the slots of one engine, by engine name; at most `maxsize`.

    Eviction is least-recently-used weighed with the cost of loading again (GreedyDual, Young 1994): a use sets an
    entry's priority to the clock plus its cost; the lowest priority leaves and sets the clock. With equal costs this
    is LRU. An entry that is in use or pinned never leaves by itself.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(maxsize=slots)
        self._clock = 0.0
        self._uses = 0

    def touch(self, entry: Entry) -> None:
        """Note a use of `entry`."""
        self._uses += 1
        # The use counter breaks ties in favour of the later use, far below any difference in cost.
        entry.priority = self._clock + entry.load_s + self._uses * 1e-9

    def lowest(self) -> Entry | None:
        """The entry to evict first."""
        return min((e for e in self.values() if e.evictable), key=lambda entry: entry.priority, default=None)

    def drain(self, wanted: int, now: float) -> None:
        """Have the busy entry with the longest turn drain, if more slots are `wanted` than entries drain.

        One at a time, unless it takes longer than PATIENCE_S; each has TURN_S first. Pinned ones do not drain.
        """
        draining = [entry for entry in self.values() if entry.state is AdapterState.DRAINING]
        if wanted <= len(draining) or any(now - entry.drains_at < PATIENCE_S for entry in draining):
            return
        tired = (e for e in self.values() if e.busy and not e.pinned and now - e.turn_at >= TURN_S)
        longest = min(tired, key=_turn, default=None)
        if longest is not None:
            longest.drain(now)

    def needless(self, wanted: int) -> list[Entry]:
        """Entries that drain and may go on: pinned ones, and those with the shortest turns beyond `wanted`."""
        yielding = sorted((entry for entry in self.values() if entry.yielding), key=_turn)
        leaving = sum(entry.state is AdapterState.DRAINING and entry.leaving for entry in self.values())
        kept = [entry for entry in yielding if not entry.pinned][: max(0, wanted - leaving)]
        return [entry for entry in yielding if entry not in kept]

    def drained(self) -> list[Entry]:
        """Entries whose last request has ended since they were told to leave; not those that were pinned since."""
        return [
            entry
            for entry in self.values()
            if entry.state is AdapterState.DRAINING and entry.in_flight == 0 and not (entry.pinned and entry.yielding)
        ]

    def popitem(self) -> tuple[str, Entry]:
        """Remove and return the entry to evict. Raises KeyError if all are in use or pinned."""
        victim = self.lowest()
        if victim is None:
            raise KeyError("no adapter can be evicted")
        # Uses since then count from here, so that an expensive but forgotten adapter leaves in the end.
        self._clock = max(self._clock, victim.priority)
        return victim.adapter.engine_name, self.pop(victim.adapter.engine_name)


def _turn(entry: Entry) -> float:
    return entry.turn_at
