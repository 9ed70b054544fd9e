"""What is done for adapters before it is their turn: nobody waits for it, and a load tells what failed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine, Iterable
from typing import Any

from adapters_registry.model import AdapterVersion
from serving.engine.base import Engine
from serving.errors import ServingError
from serving.residency.slots import Entry

AHEAD = 4
"""so many of those that wait for their turn are brought near meanwhile"""


class Ahead:
    """Errands to one engine, run beside everything else."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._errands: set[asyncio.Task[None]] = set()

    def look(self, queue: Iterable[Entry]) -> None:
        """Bring near those that come after the first of `queue`, which is being loaded."""
        for entry in itertools.islice(queue, 1, 1 + AHEAD):
            if not entry.ahead:
                entry.ahead = True
                self.bring_near(entry.adapter)

    def bring_near(self, adapter: AdapterVersion) -> None:
        """Have `adapter` in host memory."""
        self._send(self._stage(adapter))

    def prepare(self, adapters: Iterable[AdapterVersion]) -> None:
        """Do for new `adapters` what can be done long before anybody asks for them."""
        self._send(self._prepare(list(adapters)))

    def stop(self) -> None:
        """End what is under way."""
        for errand in self._errands:
            errand.cancel()

    def _send(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _stage(self, adapter: AdapterVersion) -> None:
        with contextlib.suppress(ServingError):
            await self._engine.stage(adapter)

    async def _prepare(self, adapters: list[AdapterVersion]) -> None:
        for adapter in adapters:
            with contextlib.suppress(ServingError):
                await self._engine.prepare(adapter)
