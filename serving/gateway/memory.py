"""What one gateway process remembers between requests for the router: sessions, and shares of the strongest tier.

Both are bounded, and of this process alone: with several gateway processes each holds the share of the calls that it
decides, so all of them together hold it too, while a session is remembered where its requests arrive.
"""

from __future__ import annotations

from cachetools import LRUCache, TTLCache

from router import NO_CALLS, Decision, SessionRoute, Share, Task

SESSION_TTL_S = 3600.0
MAX_SESSIONS = 100_000
MAX_SHARES = 10_000


class RoutingMemory:
    """Read by the router through its snapshot, written after each decision."""

    def __init__(self) -> None:
        self.sessions: TTLCache[tuple[str, str], SessionRoute] = TTLCache(MAX_SESSIONS, SESSION_TTL_S)
        self.shares: LRUCache[tuple[str, str], Share] = LRUCache(MAX_SHARES)

    def note(self, task: Task, decision: Decision) -> None:
        """Remember what was decided."""
        if decision.session_route is not None:
            self.sessions[task.session_key] = decision.session_route
        if (call := decision.share) is not None:
            self.shares[call.key] = self.shares.get(call.key, NO_CALLS).after(call)
