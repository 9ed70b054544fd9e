"""The state of an engine: who changes it, who is told, who waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from serving.engine.base import EngineState, EngineStatus
from serving.errors import EngineUnavailable


class StatusBoard:
    """The present status of one engine. Belongs to one event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._status = EngineStatus(EngineState.STOPPED, 0, 0, "not started")
        self._since = time.monotonic()
        self._callbacks: list[Callable[[EngineStatus], None]] = []
        self._changed: asyncio.Event | None = None

    @property
    def state(self) -> EngineState:
        """The present state alone; cheaper than `status`."""
        return self._status.state

    @property
    def status(self) -> EngineStatus:
        """The present status."""
        return replace(self._status, seconds_in_state=time.monotonic() - self._since)

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None:
        """Call `callback` at every change of state or generation."""
        self._callbacks.append(callback)

    def become(
        self,
        state: EngineState,
        detail: str,
        *,
        progress: float = 0.0,
        pid: int | None = None,
        generation: int | None = None,
    ) -> None:
        """Enter `state`, or stay in it with a new detail. A second generation and any further one is a restart."""
        old = self._status
        generation = old.generation if generation is None else generation
        new = EngineStatus(state, generation, max(0, generation - 1), detail, pid, 0.0, progress)
        self._status = new
        if new.state is old.state and new.generation == old.generation:
            return
        self._since = time.monotonic()
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        status = self.status
        for callback in self._callbacks:
            callback(status)

    def check_ready(self) -> None:
        """Raise EngineUnavailable unless the engine is ready."""
        if self._status.state is not EngineState.READY:
            raise self.unavailable()

    def unavailable(self) -> EngineUnavailable:
        """The present state as an error."""
        return EngineUnavailable(f"engine {self._name} is {self._status.state}: {self._status.detail}")

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once ready. Raises EngineUnavailable after `timeout_s` seconds, or at once if it failed or stopped."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.state is not EngineState.READY:
                    if self.state in {EngineState.FAILED, EngineState.STOPPED}:
                        raise self.unavailable()
                    if self._changed is None:
                        self._changed = asyncio.Event()
                    await self._changed.wait()
        except TimeoutError:
            raise self.unavailable() from None
