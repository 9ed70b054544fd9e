"""The slots of one engine and the choice of whom to evict."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from cachetools import Cache

from adapters_registry.model import AdapterVersion


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
    """when the present load was asked for"""
    ahead: bool = False
    """it was brought near while others were loaded"""
    wanted: bool = False
    """a load was asked for on its own account: prefetch, pin, or `load`"""
    leaving: bool = False
    """asked to go while it was on its way in: it drains as soon as nobody uses it"""
    ready: asyncio.Future[None] | None = None
    """resolved when the present load ends; None when none is asked for"""
    priority: float = 0.0
    load_s: float = 0.0
    """duration of the last load"""
    last_used: float = 0.0
    loads: int = 0
    failed_until: float = 0.0
    failure: Exception | None = field(default=None, repr=False)

    @property
    def evictable(self) -> bool:
        """No request uses it or is about to, and nobody pinned it."""
        return self.in_flight == 0 and self.waiters == 0 and not self.pinned

    @property
    def busy(self) -> bool:
        """Requests use it; one that has just been loaded is not busy before those that waited for it have taken it."""
        return self.in_flight > 0 and self.state is AdapterState.READY


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

    def lowest(self, *, evictable: bool) -> Entry | None:
        """The entry to go first, among the evictable ones or among all that are busy and not pinned."""
        fits = (entry for entry in self.values() if (entry.evictable if evictable else entry.busy and not entry.pinned))
        return min(fits, key=lambda entry: entry.priority, default=None)

    def drain_one(self) -> None:
        """Let the least valuable busy entry leave when its requests have ended, unless one does so already."""
        if any(entry.state is AdapterState.DRAINING for entry in self.values()):
            return
        busy = self.lowest(evictable=False)
        if busy is not None:
            busy.state = AdapterState.DRAINING

    def drained(self) -> list[Entry]:
        """Entries whose last request has ended since they were told to leave."""
        return [entry for entry in self.values() if entry.state is AdapterState.DRAINING and entry.in_flight == 0]

    def popitem(self) -> tuple[str, Entry]:
        """Remove and return the entry to evict. Raises KeyError if all are in use or pinned."""
        victim = self.lowest(evictable=True)
        if victim is None:
            raise KeyError("no adapter can be evicted")
        # Uses since then count from here, so that an expensive but forgotten adapter leaves in the end.
        self._clock = max(self._clock, victim.priority)
        return victim.adapter.engine_name, self.pop(victim.adapter.engine_name)
