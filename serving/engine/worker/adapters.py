"""Loading and unloading adapters in a running engine, one slot each, never more than there are slots."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

RETRY_S = 0.1
QUIET_S = 0.01
QUIET_READINGS = 3
"""A withdrawn adapter counts as unused after so many readings so far apart without a request: one that was resolved
just before may still be on its way from the tokenizer to the engine."""


class Slots(Protocol):
    """What is needed of the engine; see `serving.engine.worker.bridge.Bridge`."""

    @property
    def slots(self) -> int: ...  # noqa: D102 - told at Bridge
    @property
    def spare(self) -> int: ...  # noqa: D102
    @property
    def dead(self) -> bool: ...  # noqa: D102
    def adapters(self) -> dict[str, int]: ...  # noqa: D102
    def running(self) -> Counter[str | None]: ...  # noqa: D102
    async def add(self, name: str, engine_id: int, path: str, digest: str) -> None: ...  # noqa: D102
    async def remove(self, engine_id: int) -> None: ...  # noqa: D102
    def publish(self, name: str, engine_id: int, path: str) -> None: ...  # noqa: D102
    def withdraw(self, name: str) -> None: ...  # noqa: D102


class LoadRefused(Exception):
    """The adapter cannot be loaded, the engine lives; the message is one line."""


class Adapters:
    """The adapters of one engine.

    An adapter that was unloaded keeps its slot for the moment in which a request may still be on its way to it. It does
    not count against `slots` then: the engine has spare slots, so that the next adapter need not wait for it.
    """

    def __init__(self, engine: Slots) -> None:
        self._engine = engine
        self._occupied: dict[int, str] = {}
        self._vacating: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(engine.slots + engine.spare)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def load(self, name: str, engine_id: int, path: str, digest: str) -> None:
        """Make the adapter resident and let requests name it. Loading a resident one again does nothing.

        `digest` is of what is in the folder `path`. Raises LoadRefused; what a failed load left is removed.
        """
        async with self._locks[name]:
            if self._engine.adapters().get(name) == engine_id:
                return
            if name in self._vacating:
                await asyncio.shield(self._vacating[name])
            self._check(name, engine_id, path)
            self._occupied[engine_id] = name
            try:
                await self._room.acquire()
            except asyncio.CancelledError:
                del self._occupied[engine_id]
                raise
            try:
                await self._engine.add(name, engine_id, path, digest)
            except BaseException as error:
                self._vacating[name] = asyncio.create_task(self._vacate(name, engine_id))
                if isinstance(error, Exception):
                    raise LoadRefused(reason(error)) from error
                raise
            self._engine.publish(name, engine_id, path)

    async def unload(self, name: str, engine_id: int) -> None:
        """Refuse new requests for the adapter and wait for those that use it. Its slot is free soon after."""
        async with self._locks[name]:
            self._engine.withdraw(name)
            if engine_id in self._occupied and name not in self._vacating:
                while self._engine.running()[name]:  # noqa: ASYNC110 - the engine tells only when asked
                    await asyncio.sleep(QUIET_S)
                self._vacating[name] = asyncio.create_task(self._vacate(name, engine_id))
        if not self._locks[name].locked():
            del self._locks[name]

    def _check(self, name: str, engine_id: int, path: str) -> None:
        if engine_id in self._occupied:
            raise LoadRefused(f"id {engine_id} of {name} is taken by {self._occupied[engine_id]}")
        if len(self._occupied) - len(self._vacating) >= self._engine.slots:
            raise LoadRefused(f"all {self._engine.slots} slots are occupied")
        if not Path(path).is_dir():
            raise LoadRefused(f"the folder of {name} is gone")

    async def _vacate(self, name: str, engine_id: int) -> None:
        """Free the slot of a withdrawn adapter once no request can be on its way to it."""
        await self._until_unused(name)
        while not self._engine.dead:
            try:
                await self._engine.remove(engine_id)
                break
            except Exception as error:  # whatever vLLM raises: the slot is not free before it has
                log.warning("removing %s is tried again: %s", name, reason(error))
                await asyncio.sleep(RETRY_S)
        del self._occupied[engine_id]
        del self._vacating[name]
        self._room.release()

    async def _until_unused(self, name: str) -> None:
        quiet = 0
        while quiet < QUIET_READINGS:
            quiet = 0 if self._engine.running()[name] else quiet + 1
            await asyncio.sleep(QUIET_S)


def reason(error: Exception) -> str:
    """The words of vLLM on one line, without the name of the call that failed."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix("Call to add_lora method failed: ")
