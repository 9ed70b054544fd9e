"""Ids that sort by time: UUID version 7 (RFC 9562, section 5.7, with the counter of section 6.2, method 1)."""

from __future__ import annotations

import secrets
import threading
import time
import uuid

_COUNTER_BITS = 12
_RANDOM_BITS = 62

_lock = threading.Lock()
_last = 0


def uuid7() -> uuid.UUID:
    """A new id. Ids of one process grow strictly, also within a millisecond."""
    global _last  # noqa: PLW0603 - the counter is what makes ids of one process grow
    with _lock:
        now = time.time_ns() // 1_000_000 << _COUNTER_BITS
        _last = max(now, _last + 1)
        moment = _last
    milliseconds, counter = moment >> _COUNTER_BITS, moment & ((1 << _COUNTER_BITS) - 1)
    value = (milliseconds & ((1 << 48) - 1)) << 80 | 7 << 76 | counter << 64 | 2 << 62
    return uuid.UUID(int=value | secrets.randbits(_RANDOM_BITS))


def new_id() -> str:
    """A new id as text, 36 characters."""
    return str(uuid7())
