"""Tasks that run as long as the server does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

AGAIN_AFTER_S = 1.0


def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """Run `work`, which ends only when cancelled. What it does not catch is a defect: logged, and `work` begun again.

    The alternative, a task that is silently gone, would leave every request that needs it waiting for its time-out.
    """

    async def run() -> None:
        while True:
            try:
                await work()
            except Exception:
                log.exception("%s failed and is started again", name)
                await asyncio.sleep(AGAIN_AFTER_S)

    return asyncio.get_running_loop().create_task(run(), name=name)
