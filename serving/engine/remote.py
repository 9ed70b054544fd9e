"""Engines that somebody else runs: a stock vLLM server, and any OpenAI-compatible upstream."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from adapters_registry.model import AdapterVersion
from configs.settings import EngineSettings, SettingsError
from serving.engine.base import EngineResponse, EngineState, EngineStatus
from serving.engine.files import read_files
from serving.engine.model import unique
from serving.engine.startup import shorten
from serving.engine.status import StatusBoard
from serving.engine.transport import Transport
from serving.errors import AdapterLoadFailed, EngineTimeout, EngineUnavailable

POLL_S = 2.0
UPSTREAM_POLL_S = 15.0
PROBE_TIMEOUT_S = 10.0
STALE_KEEPALIVE_S = 4.0
"""under the five seconds after which a stock vLLM closes an idle connection"""
DEFAULT_SLOTS = 8
DEFAULT_MAX_RANK = 64
RUNTIME_UPDATING = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


class ModelCard(msgspec.Struct):
    """One entry of `/v1/models`; all but `id` are vLLM's own."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(msgspec.Struct):
    """The answer of `/v1/models`."""

    data: list[ModelCard] = []

    @classmethod
    def parse(cls, answer: bytes) -> ModelList:
        """Raises msgspec.DecodeError."""
        return msgspec.json.decode(answer, type=cls)

    def base(self, wanted: str) -> ModelCard | None:
        """The base model called `wanted`, or the first that is no adapter."""
        bases = [card for card in self.data if card.parent is None]
        return next((card for card in bases if card.id == wanted), bases[0] if bases else None)

    def adapters(self) -> dict[str, str | None]:
        """Folder of each loaded adapter, by name."""
        return {card.id: card.root for card in self.data if card.parent is not None}


class UrlEngine(ABC):
    """What both have in common: a URL, a key, and a loop that asks whether it is still there."""

    poll_s = POLL_S
    staging = False
    loads_at_once = 1

    def __init__(self, settings: EngineSettings, *, environ: Mapping[str, str], request_timeout_s: float) -> None:
        """Raises SettingsError when the url is missing or the key's variable is not set."""
        if settings.url is None:
            raise SettingsError(f"engine {settings.name}: needs a url")
        self.name = settings.name
        self.base_name = settings.base_name
        self.upstream_model = settings.model
        self.base_aliases = unique(settings.base_name, settings.model, *settings.base_aliases)
        self.model_path: Path | None = None
        self.cost_per_mtok = settings.cost_per_mtok
        self.tokens_per_s = settings.tokens_per_s
        self.slots = 0
        self.max_lora_rank = 0
        self.max_context: int | None = None
        self._wanted = settings.model
        self._url = settings.url
        self._board = StatusBoard(settings.name)
        self.transport = Transport(
            settings.name,
            settings.url,
            request_timeout_s=request_timeout_s,
            headers=key_headers(settings, environ),
            keepalive_s=STALE_KEEPALIVE_S,
            retry_stale=True,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def status(self) -> EngineStatus:
        """The present state."""
        return self._board.status

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None:
        """Call `callback` at every change of state or generation."""
        self._board.on_change(callback)

    async def start(self) -> None:
        """Begin asking whether the server is there, and return. Idempotent."""
        if self._task is None or self._task.done():
            self._board.become(EngineState.STARTING, f"connecting to {self._url}")
            self._task = asyncio.create_task(self._poll(), name=f"engine {self.name}")

    async def stop(self, grace_s: float = 10.0) -> None:
        """Close the connections; the server is not ours to end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._board.become(EngineState.STOPPED, "stopped")
        await self.transport.close()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once the server answers; see `Engine.wait_ready`."""
        await self._board.wait_ready(timeout_s)

    def open(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[EngineResponse]:
        """POST `body` to `path`; see `Engine.open`."""
        self._board.check_ready()
        return self.transport.open(path, body, headers)

    async def scrape_metrics(self) -> bytes:
        """The server's metrics, where it has any."""
        if self._board.state is not EngineState.READY:
            return b""
        return await self.transport.fetch_metrics()

    async def prepare(self, adapter: AdapterVersion) -> None:  # noqa: B027 - what is abstract differs between the two
        """Nothing can be done on somebody else's server."""

    @abstractmethod
    async def stage(self, adapter: AdapterVersion) -> None:
        """See `Engine.stage`."""

    @abstractmethod
    async def load(self, adapter: AdapterVersion) -> None:
        """See `Engine.load`."""

    @abstractmethod
    async def unload(self, engine_name: str, engine_id: int) -> None:
        """See `Engine.unload`."""

    @abstractmethod
    async def _probe(self) -> bool:
        """Ask the server once. True if it has forgotten what was loaded. Raises EngineUnavailable, EngineTimeout."""

    async def _poll(self) -> None:
        while True:
            try:
                forgot = await self._probe()
            except (EngineUnavailable, EngineTimeout) as error:
                was_up = self._board.status.generation > 0
                state = EngineState.RESTARTING if was_up else EngineState.STARTING
                self._board.become(state, shorten(f"{self._url}: {error.message}"))
            else:
                came = self._board.state is not EngineState.READY
                generation = self._board.status.generation + (came or forgot)
                self._board.become(EngineState.READY, self._url, generation=generation, progress=1.0)
            await asyncio.sleep(self.poll_s)


class RemoteVllm(UrlEngine):
    """A stock vLLM server: adapters are loaded by its own routes, from folders that it must see under the same path.

    It loads by itself what it had evicted, and unloading only forgets the name; residency keeps to `slots`, which
    should be no more than the server's `--max-loras`.
    """

    def __init__(self, settings: EngineSettings, *, environ: Mapping[str, str], request_timeout_s: float) -> None:
        """Raises SettingsError when the key's variable is not set."""
        super().__init__(settings, environ=environ, request_timeout_s=request_timeout_s)
        self.slots = settings.slots or DEFAULT_SLOTS
        self.max_lora_rank = settings.max_lora_rank or DEFAULT_MAX_RANK
        self._loaded: set[str] = set()

    def learn(self, models: ModelList) -> None:
        """Take the base's name there, its context and its folder from the server's list of models."""
        card = models.base(self._wanted)
        if card is None:
            return
        self.upstream_model = card.id
        self.max_context = card.max_model_len
        self.base_aliases = unique(*self.base_aliases, card.id, *([card.root] if card.root else []))
        if card.root and (Path(card.root) / "config.json").is_file():
            self.model_path = Path(card.root)

    async def stage(self, adapter: AdapterVersion) -> None:
        """Read the files, so that the server finds them in the page cache, or not at all here."""
        await read_files(adapter)

    async def load(self, adapter: AdapterVersion) -> None:
        """Load `adapter`. Raises AdapterLoadFailed or EngineUnavailable."""
        self._board.check_ready()
        request = {"lora_name": adapter.engine_name, "lora_path": str(adapter.path)}
        status, answer = await self._post("/v1/load_lora_adapter", request)
        if status == 200 or (status == 400 and await self._holds(adapter)):
            self._loaded.add(adapter.engine_name)
            return
        raise AdapterLoadFailed(f"adapter {adapter.engine_name} cannot be loaded: {self._refusal(status, answer)}")

    async def unload(self, engine_name: str, engine_id: int) -> None:
        """Forget the adapter. Raises EngineUnavailable."""
        self._board.check_ready()
        self._loaded.discard(engine_name)
        status, answer = await self._post("/v1/unload_lora_adapter", {"lora_name": engine_name})
        if status not in {200, 404}:
            raise EngineUnavailable(f"{self._url} cannot unload {engine_name}: {self._refusal(status, answer)}")

    async def _post(self, path: str, content: Mapping[str, str]) -> tuple[int, bytes]:
        return await self.transport.fetch("POST", path, body=msgspec.json.encode(content))

    async def _holds(self, adapter: AdapterVersion) -> bool:
        models = await self._models()
        return models.adapters().get(adapter.engine_name) == str(adapter.path)

    def _refusal(self, status: int, answer: bytes) -> str:
        error = decode_error(answer)
        if status in {404, 405} and not error:
            return (
                f"the server at {self._url} does not load adapters at run time; start it with {RUNTIME_UPDATING}=True"
            )
        return error or f"status {status}"

    async def _models(self) -> ModelList:
        status, answer = await self.transport.fetch("GET", "/v1/models", timeout_s=PROBE_TIMEOUT_S)
        if status != 200:
            raise EngineUnavailable(f"/v1/models answers {status}: {decode_error(answer) or 'no reason given'}")
        try:
            return ModelList.parse(answer)
        except msgspec.DecodeError:
            raise EngineUnavailable("/v1/models is not a list of models: not an OpenAI-compatible server?") from None

    async def _probe(self) -> bool:
        models = await self._models()
        self.learn(models)
        expected = self._loaded.copy()
        if self._board.state is EngineState.READY and expected <= models.adapters().keys():
            return False
        self._loaded -= expected
        return True


class OpenAIUpstream(UrlEngine):
    """Any OpenAI-compatible upstream, as a base tier: it takes no adapters."""

    poll_s = UPSTREAM_POLL_S

    async def stage(self, adapter: AdapterVersion) -> None:
        """Nothing is ever loaded."""

    async def load(self, adapter: AdapterVersion) -> None:
        """Raises AdapterLoadFailed."""
        raise AdapterLoadFailed(f"engine {self.name} is an upstream that takes no adapters")

    async def unload(self, engine_name: str, engine_id: int) -> None:
        """Nothing is ever loaded."""

    async def _probe(self) -> bool:
        """Any answer will do, since few upstreams list their models; but a refused key and 5xx are told."""
        began = time.monotonic()
        status, answer = await self.transport.fetch("GET", "/v1/models", timeout_s=PROBE_TIMEOUT_S)
        if status in {401, 403} or status >= 500:
            took = time.monotonic() - began
            raise EngineUnavailable(f"answers {status} after {took:.1f} s: {decode_error(answer) or 'no reason given'}")
        return False


def key_headers(settings: EngineSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """The headers that carry the upstream's key. Raises SettingsError when its variable is not set."""
    if settings.api_key_env is None:
        return {}
    key = environ.get(settings.api_key_env, "").strip()
    if not key:
        raise SettingsError(f"engine {settings.name}: the variable {settings.api_key_env} (api_key_env) is not set")
    return {"authorization": f"Bearer {key}"}


def decode_error(answer: bytes) -> str:
    """The message in an error envelope of OpenAI or vLLM; empty if there is none."""
    try:
        content: Any = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        return ""
    error = content.get("error", content) if isinstance(content, dict) else content
    message = error.get("message") if isinstance(error, dict) else error
    return shorten(message) if isinstance(message, str) else ""
