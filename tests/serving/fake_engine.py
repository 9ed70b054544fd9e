"""An engine without a model, for injecting faults. The contract tests hold it to what the real one does."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from adapters_registry.model import AdapterVersion
from serving.engine.base import EngineState, EngineStatus
from serving.engine.status import StatusBoard
from serving.errors import AdapterLoadFailed, EngineUnavailable

TOKENS = 16


class FakeEngine:
    """Answers every request with the model's name, word by word, `token_s` seconds apart."""

    def __init__(self, name: str = "base", base_name: str = "tiny", *, slots: int = 4, token_s: float = 0.001) -> None:
        self.name = name
        self.base_name = base_name
        self.upstream_model = base_name
        self.base_aliases: tuple[str, ...] = ()
        self.model_path: Path | None = None
        self.cost_per_mtok = 0.0
        self.tokens_per_s: float | None = None
        self.slots = slots
        self.max_lora_rank = 32
        self.staging = False
        self.loads_at_once = 1
        self.max_context: int | None = 2048
        self.token_s = token_s
        self.load_s = 0.0
        self.refuse: set[str] = set()
        self.loads: Counter[str] = Counter()
        self.adapters: dict[str, int] = {}
        self.running: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self._board = StatusBoard(name)
        self.died = asyncio.Event()

    @property
    def status(self) -> EngineStatus:
        return self._board.status

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None:
        self._board.on_change(callback)

    async def start(self) -> None:
        if self._board.state is not EngineState.READY:
            self.come_back()

    async def stop(self, grace_s: float = 10.0) -> None:
        self._forget()
        self._board.become(EngineState.STOPPED, "stopped")

    async def wait_ready(self, timeout_s: float) -> None:
        await self._board.wait_ready(timeout_s)

    async def prepare(self, adapter: AdapterVersion) -> None:
        pass

    async def stage(self, adapter: AdapterVersion) -> None:
        pass

    async def load(self, adapter: AdapterVersion) -> None:
        self._board.check_ready()
        generation = self.status.generation
        await asyncio.sleep(self.load_s)
        if self.status.generation != generation or self._board.state is not EngineState.READY:
            raise EngineUnavailable("the engine died")
        if adapter.engine_name in self.adapters:
            return
        if adapter.engine_name in self.refuse or not adapter.path.is_dir() or len(self.adapters) >= self.slots:
            raise AdapterLoadFailed(f"adapter {adapter.engine_name} cannot be loaded")
        self.adapters[adapter.engine_name] = adapter.engine_id
        self.loads[adapter.engine_name] += 1

    async def unload(self, engine_name: str, engine_id: int) -> None:
        self._board.check_ready()
        self.adapters.pop(engine_name, None)
        while self.running[engine_name]:  # noqa: ASYNC110 - a fake may poll
            await asyncio.sleep(0.001)

    def open(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> FakeRequest:
        self._board.check_ready()
        content = json.loads(body)
        self.bodies.append(content)
        return FakeRequest(self, content)

    async def scrape_metrics(self) -> bytes:
        return b"# TYPE fake_up gauge\nfake_up 1\n" if self._board.state is EngineState.READY else b""

    def die(self) -> None:
        """Lose everything, as after SIGKILL; stays away until `come_back`."""
        self._forget()
        self._board.become(EngineState.RESTARTING, "killed by signal 9")

    def come_back(self) -> None:
        """Be ready, one generation later."""
        self._board.become(EngineState.READY, "ready", generation=self.status.generation + 1, progress=1.0)

    def _forget(self) -> None:
        self.adapters.clear()
        self.died.set()
        self.died = asyncio.Event()

    async def token(self, died: asyncio.Event) -> None:
        """The time that one token takes. Raises EngineUnavailable if the life that `died` belongs to has ended."""
        try:
            await asyncio.wait_for(died.wait(), self.token_s)
        except TimeoutError:
            return
        raise EngineUnavailable("the engine died while it answered")


class FakeRequest:
    """One request, running as long as its context lasts or until its last token."""

    def __init__(self, engine: FakeEngine, content: dict[str, Any]) -> None:
        self._engine = engine
        self._content = content
        self._model = str(content["model"])
        self._counted = False
        self._died = engine.died
        self.headers: Mapping[str, str] = {"content-type": "application/json"}
        self.status = 200

    async def __aenter__(self) -> FakeRequest:
        if self._model != self._engine.upstream_model and self._model not in self._engine.adapters:
            self.status = 404
            return self
        self._engine.running[self._model] += 1
        self._counted = True
        if self._content.get("stream"):
            self.headers = {"content-type": "text/event-stream; charset=utf-8"}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._counted:
            self._engine.running[self._model] -= 1
            self._counted = False

    async def read(self) -> bytes:
        if self.status == 404:
            return json.dumps({"error": {"message": f"The model `{self._model}` does not exist."}}).encode()
        tokens = int(self._content.get("max_tokens", TOKENS))
        for _ in range(tokens):
            await self._engine.token(self._died)
        self._finish()
        choice = {"index": 0, "message": {"role": "assistant", "content": self._model}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
        return json.dumps({"model": self._model, "choices": [choice], "usage": usage}).encode()

    async def chunks(self) -> AsyncIterator[bytes]:
        if self.status == 404 or not self._content.get("stream"):
            yield await self.read()
            return
        for _ in range(int(self._content.get("max_tokens", TOKENS))):
            await self._engine.token(self._died)
            choice = {"index": 0, "delta": {"content": f"{self._model} "}, "finish_reason": None}
            yield b"data: " + json.dumps({"model": self._model, "choices": [choice]}).encode() + b"\n\n"
        self._finish()
        yield b"data: [DONE]\n\n"
