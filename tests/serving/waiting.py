"""Waiting for what has no event to wait for: other processes, counters, sockets."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], limit_s: float = 10.0) -> None:
    """Return once `condition()`, which may be a coroutine, gives something true."""
    async with asyncio.timeout(limit_s):
        while True:
            met = condition()
            if await met if inspect.isawaitable(met) else met:
                return
            await asyncio.sleep(0.005)
