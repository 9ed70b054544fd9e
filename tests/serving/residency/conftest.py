import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters_registry.model import AdapterVersion, State
from serving.engine.base import EngineState, EngineStatus
from serving.errors import AdapterLoadFailed, EngineUnavailable


class SlotEngine:
    """The part of an engine that residency sees, with faults to inject. It checks what residency must never do."""

    name = "base"
    base_name = "tiny"
    upstream_model = "tiny"
    cost_per_mtok = 0.0
    tokens_per_s = None
    max_lora_rank = 16
    max_context = 2048

    def __init__(self, slots: int = 2, load_s: float = 0.01, *, staging: bool = False, loads_at_once: int = 1) -> None:
        self.slots = slots
        self.staging = staging
        self.loads_at_once = loads_at_once
        self.load_s = load_s
        self.loaded: set[str] = set()
        self.loads: Counter[str] = Counter()
        self.loading = 0
        self.most_loading = 0
        self.slow: dict[str, asyncio.Event] = {}
        self.prepared: list[str] = []
        self.staged: list[str] = []
        self.refuse: set[str] = set()
        self.using: Counter[str] = Counter()
        self.broken: list[str] = []
        self._status = EngineStatus(EngineState.READY, 1, 0, "")
        self._callbacks: list[Callable[[EngineStatus], None]] = []

    @property
    def status(self) -> EngineStatus:
        return self._status

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None:
        self._callbacks.append(callback)

    async def prepare(self, adapter: AdapterVersion) -> None:
        self.prepared.append(adapter.engine_name)

    async def stage(self, adapter: AdapterVersion) -> None:
        self.staged.append(adapter.engine_name)
        if not adapter.path.is_dir():
            raise AdapterLoadFailed("cannot be read")

    async def load(self, adapter: AdapterVersion) -> None:
        self._must(self.loading < self.loads_at_once, "more loads at once than it takes")
        generation = self._status.generation
        self.loading += 1
        self.most_loading = max(self.most_loading, self.loading)
        try:
            await asyncio.sleep(self.load_s)
            if adapter.engine_name in self.slow:
                await self.slow[adapter.engine_name].wait()
        finally:
            self.loading -= 1
        if self._status.state is not EngineState.READY or generation != self._status.generation:
            raise EngineUnavailable("the engine died")
        if adapter.engine_name in self.refuse:
            raise AdapterLoadFailed("refused")
        self.loaded.add(adapter.engine_name)
        self.loads[adapter.engine_name] += 1
        self._must(len(self.loaded) <= self.slots, "more adapters than slots")

    async def unload(self, engine_name: str, engine_id: int) -> None:
        self._must(self.using[engine_name] == 0, "evicted while in use")
        await asyncio.sleep(0)
        self.loaded.discard(engine_name)

    def _must(self, holds: bool, what: str) -> None:
        if not holds:
            self.broken.append(what)  # what is raised, residency takes for a failure of the load
            raise AssertionError(what)

    def die(self) -> None:
        self.loaded.clear()
        self.using.clear()
        self._become(EngineState.RESTARTING, self._status.generation)

    def come_back(self) -> None:
        self._become(EngineState.READY, self._status.generation + 1)

    def _become(self, state: EngineState, generation: int) -> None:
        self._status = EngineStatus(state, generation, generation - 1, "")
        for callback in self._callbacks:
            callback(self._status)


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., AdapterVersion]:
    """Adapter number N, with files that can be read."""

    def make(number: int, *, pinned: bool = False) -> AdapterVersion:
        path = tmp_path / str(number)
        path.mkdir(exist_ok=True)
        (path / "adapter_model.safetensors").write_bytes(b"weights")
        version = AdapterVersion(
            name=f"a{number}",
            digest=f"{number:064x}"[::-1],
            agent=f"a{number}",
            base="tiny",
            rank=8,
            path=path,
            size_bytes=7,
            state=State.VALIDATED,
            created_at=datetime.now(UTC),
            source="test",
        )
        return replace(version, pinned=pinned)

    return make
