"""The engine as the rest of serving sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from adapters_registry.model import AdapterVersion
from serving.engine.transport import Transport


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
        """The whole body. Raises EngineUnavailable if the engine dies meanwhile, EngineTimeout if it falls silent."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, in arbitrary pieces, to one reader. Raises as `read` does."""
        ...


class Answering(Protocol):
    """What a request needs of an engine. All methods belong to one event loop; errors are those of `serving.errors`."""

    @property
    def name(self) -> str:
        """Name of the tier."""
        ...

    @property
    def base_name(self) -> str:
        """Public name of the base model, as clients write it."""
        ...

    @property
    def upstream_model(self) -> str:
        """Name of the base model that the engine wants in a body's `model`."""
        ...

    @property
    def cost_per_mtok(self) -> float:
        """USD per million tokens."""
        ...

    @property
    def tokens_per_s(self) -> float | None:
        """Output tokens of one answer in a second, where the settings tell."""
        ...

    @property
    def slots(self) -> int:
        """Adapters resident at once; 0 where the engine takes none."""
        ...

    @property
    def max_context(self) -> int | None:
        """Longest prompt plus completion in tokens, once known."""
        ...

    @property
    def status(self) -> EngineStatus:
        """The present state; costs nothing."""
        ...

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once ready. Raises EngineUnavailable after `timeout_s` seconds, at once if the engine has failed."""
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


class Engine(Answering, Protocol):
    """One base model, started and filled by this process."""

    base_aliases: tuple[str, ...]
    """further names under which adapters may record this base"""
    max_lora_rank: int

    @property
    def staging(self) -> bool:
        """Whether it brings adapters near and into slots beside its own work, so that doing so early is worth while."""
        ...

    @property
    def loads_at_once(self) -> int:
        """How many adapters it fills slots with at a time."""
        ...

    @property
    def transport(self) -> Transport:
        """How it is reached, for other processes to reach it too."""
        ...

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

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None:
        """Call `callback` in the event loop at every change of state or generation."""
        ...

    async def prepare(self, adapter: AdapterVersion) -> None:
        """Do what can be done long before a load, where the engine can; returns at once. Raises EngineUnavailable."""
        ...

    async def stage(self, adapter: AdapterVersion) -> None:
        """Bring `adapter` near: into the engine's host memory where it stages (at once), else into the page cache.

        Raises AdapterLoadFailed or EngineUnavailable.
        """
        ...

    async def load(self, adapter: AdapterVersion) -> None:
        """Make `adapter` resident. Raises AdapterLoadFailed (the engine lives on) or EngineUnavailable."""
        ...

    async def unload(self, engine_name: str, engine_id: int) -> None:
        """Free the adapter's slot; waits for engine-side requests that still use it. Absent adapters are no error."""
        ...
