"""The engine as the rest of serving sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from adapters_registry.model import AdapterVersion


class EngineState(StrEnum):
    """`failed` is final: too many deaths in a row, or a start that cannot succeed."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A reading of an engine.

    `generation` counts starts; `detail` is one line for a person (phase, or last error); `progress` is the share of a
    start that is done, 0 to 1.
    """

    state: EngineState
    generation: int
    restarts: int
    detail: str
    pid: int | None = None
    seconds_in_state: float = 0.0
    progress: float = 0.0


class EngineResponse(Protocol):
    """An engine's answer whose body has not been read yet."""

    status: int
    headers: Mapping[str, str]

    async def read(self) -> bytes:
        """The whole body. Raises EngineUnavailable if the engine dies meanwhile."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, in arbitrary pieces. Raises EngineUnavailable if the engine dies meanwhile."""
        ...


class Engine(Protocol):
    """One base model. All methods belong to one event loop. Errors are those of `serving.errors`."""

    name: str
    """name of the tier"""
    base_name: str
    """public name of the base model, as clients write it"""
    upstream_model: str
    """name of the base model that the engine wants in a body's `model`"""
    base_aliases: tuple[str, ...]
    """further names under which adapters may record this base"""
    cost_per_mtok: float
    """USD per million tokens"""
    slots: int
    """adapters resident at once; 0 where the engine takes none"""
    max_lora_rank: int
    max_context: int | None
    """longest prompt plus completion in tokens, once known"""

    @property
    def model_path(self) -> Path | None:
        """Folder of the base model's files, where it is on this machine."""
        ...

    async def start(self) -> None:
        """Begin starting and return; progress shows in `status`. Idempotent."""
        ...

    async def stop(self, grace_s: float = 10.0) -> None:
        """End the engine's process, if it is ours, and all its children."""
        ...

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once ready. Raises EngineUnavailable after `timeout_s` seconds, at once if the engine has failed."""
        ...

    @property
    def status(self) -> EngineStatus:
        """The present state; costs nothing."""
        ...

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None:
        """Call `callback` in the event loop at every change of state or generation."""
        ...

    async def load(self, adapter: AdapterVersion) -> None:
        """Make `adapter` resident. Raises AdapterLoadFailed (the engine lives on) or EngineUnavailable."""
        ...

    async def unload(self, engine_name: str, engine_id: int) -> None:
        """Free the adapter's slot; waits for engine-side requests that still use it. Absent adapters are no error."""
        ...

    def open(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[EngineResponse]:
        """POST `body` to `path` (as `/v1/chat/completions`). Leaving the context early aborts the engine's work.

        Entering raises EngineUnavailable if no answer begins.
        """
        ...

    async def scrape_metrics(self) -> bytes:
        """The engine's own Prometheus text, empty when it is not up."""
        ...
