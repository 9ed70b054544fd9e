"""What is done for adapters before it is their turn: nobody waits for it, and a load tells what failed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from adapters_registry.model import AdapterVersion
from serving.engine.base import Engine
from serving.errors import ServingError
from serving.residency.slots import Entry

AHEAD = 4
"""so many of those that wait for a slot are brought near meanwhile"""
NEAR = 32
"""so many at most are brought near at a time because they are likely to be asked for"""

Errand = Callable[[list[AdapterVersion]], Coroutine[Any, Any, None]]


class Ahead:
    """Errands to one engine, run beside everything else; none where the engine does not stage."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._errands: set[asyncio.Task[None]] = set()
        self._near: set[str] = set()
        self._prepared: set[str] = set()

    def look(self, queue: Iterable[Entry]) -> None:
        """Bring near the first of `queue`, which wait for slots."""
        coming = [entry for entry in itertools.islice(queue, AHEAD) if not entry.ahead]
        for entry in coming:
            entry.ahead = True
        self._send(self._stage, [entry.adapter for entry in coming])

    def bring_near(self, adapters: Iterable[AdapterVersion]) -> None:
        """Have the first of `adapters` in host memory, each once in the engine's life: the rest is use, not a guess."""
        new = (adapter for adapter in adapters if adapter.engine_name not in self._near)
        chosen = list(itertools.islice(new, NEAR))
        self._near.update(adapter.engine_name for adapter in chosen)
        self._send(self._stage, chosen)

    def prepare(self, adapters: Iterable[AdapterVersion]) -> None:
        """Do for those of `adapters` that are new what can be done long before anybody asks for them."""
        new = [adapter for adapter in adapters if adapter.engine_name not in self._prepared]
        self._prepared.update(adapter.engine_name for adapter in new)
        self._send(self._prepare, new)

    def forget(self) -> None:
        """The engine died, with what it had in host memory."""
        self._near.clear()
        self._prepared.clear()

    def stop(self) -> None:
        """End what is under way."""
        for errand in self._errands:
            errand.cancel()

    def _send(self, errand: Errand, adapters: list[AdapterVersion]) -> None:
        if not adapters or not self._engine.staging:
            return
        task = asyncio.get_running_loop().create_task(errand(adapters))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _stage(self, adapters: list[AdapterVersion]) -> None:
        for adapter in adapters:
            with contextlib.suppress(ServingError):
                await self._engine.stage(adapter)

    async def _prepare(self, adapters: list[AdapterVersion]) -> None:
        for adapter in adapters:
            try:
                await self._engine.prepare(adapter)
            except ServingError:
                self._prepared.discard(adapter.engine_name)
