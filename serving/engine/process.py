"""A vLLM of our own: started, watched and started again, in a process that the gateway survives."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from adapters_registry.model import AdapterVersion
from configs.profiles import EngineProfile
from configs.settings import EngineSettings
from serving.engine.backoff import Backoff
from serving.engine.base import EngineResponse, EngineState, EngineStatus
from serving.engine.child import EngineProcess, bound, make_run_dir, rotate
from serving.engine.command import build_command, loads_at_once, socket_path, stages, user_arguments
from serving.engine.files import read_files
from serving.engine.model import BaseModel
from serving.engine.startup import LogReader, shorten
from serving.engine.status import StatusBoard
from serving.engine.transport import Transport
from serving.engine.worker import protocol
from serving.errors import AdapterLoadFailed, EngineTimeout, EngineUnavailable

PROBE_EVERY_S = 0.2
START_TIMEOUT_S = 3600.0
HEALTH_EVERY_S = 2.0
HEALTH_TIMEOUT_S = 15.0
HEALTH_FAILURES = 3
USAGE_ERROR = 2


class CoreStatus(msgspec.Struct):
    """What the engine's process tells about itself."""

    vllm: str
    max_model_len: int
    slots: int
    adapters: dict[str, int]
    running: dict[str, int]
    running_base: int


@dataclass(frozen=True, slots=True)
class Life:
    """How one life of the process ended. `ready_s` is None if it never was ready; `final` says that another is vain."""

    reason: str
    ready_s: float | None = None
    final: bool = False


class VllmEngine:
    """An engine in a process of its own; see `serving.engine.base.Engine`.

    The process listens on a unix socket in a private folder. It dies with the gateway, however that ends.
    """

    def __init__(
        self,
        settings: EngineSettings,
        profile: EngineProfile,
        model: BaseModel,
        *,
        home: Path,
        request_timeout_s: float = 600.0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`environ` is the environment that the process inherits; default: ours. Raises SettingsError."""
        user_arguments(settings)
        self.name = settings.name
        self.base_name = settings.base_name
        self.upstream_model = settings.base_name
        self.base_aliases = model.aliases
        self.cost_per_mtok = settings.cost_per_mtok
        self.tokens_per_s = settings.tokens_per_s
        self.slots = settings.slots or profile.slots
        self.max_lora_rank = settings.max_lora_rank or profile.max_lora_rank
        self.max_context: int | None = None
        self.log_path = home / "logs" / f"engine-{settings.name}.log"
        self.staging = stages(settings, profile)
        self.loads_at_once = loads_at_once() if self.staging else 1
        self._prepared = home / "prepared"
        self._settings = settings
        self._profile = profile
        self._model = model
        self._environ = os.environ if environ is None else environ
        self._board = StatusBoard(settings.name)
        self.transport = Transport(settings.name, "http://engine", request_timeout_s=request_timeout_s)
        self._task: asyncio.Task[None] | None = None
        self._child: EngineProcess | None = None
        self._grace_s = 0.0

    @property
    def model_path(self) -> Path | None:
        """Folder of the base's files; a hub model's once it has been fetched."""
        return self._model.folder

    @property
    def status(self) -> EngineStatus:
        """The present state."""
        return self._board.status

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None:
        """Call `callback` at every change of state or generation."""
        self._board.on_change(callback)

    async def start(self) -> None:
        """Begin starting and return. Idempotent; starts anew after `stop` or a failure."""
        if self._task is None or self._task.done():
            self._board.become(EngineState.STARTING, "starting")
            self._task = asyncio.create_task(self._supervise(), name=f"engine {self.name}")

    async def stop(self, grace_s: float = 10.0) -> None:
        """End the process and all its children, by force after `grace_s` seconds."""
        self._grace_s = grace_s
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._board.become(EngineState.STOPPED, "stopped")
        await self.transport.close()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once ready; see `Engine.wait_ready`."""
        await self._board.wait_ready(timeout_s)

    def open(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[EngineResponse]:
        """POST `body` to `path`; see `Engine.open`."""
        self._board.check_ready()
        return self.transport.open(path, body, headers)

    async def load(self, adapter: AdapterVersion) -> None:
        """Load `adapter` into a slot. Raises AdapterLoadFailed or EngineUnavailable."""
        request = {
            "name": adapter.engine_name,
            "id": adapter.engine_id,
            "path": str(adapter.path),
            "digest": adapter.digest,
        }
        status, answer = await self._post(protocol.LOAD_PATH, request)
        if status != 200:
            raise AdapterLoadFailed(f"adapter {adapter.engine_name} cannot be loaded: {refusal(answer)}")

    async def prepare(self, adapter: AdapterVersion) -> None:
        """Have `adapter` written to disk in the engine's own layout, by and by; without staging, nothing.

        It also comes into host memory if that has room.

        Raises EngineUnavailable.
        """
        if self.staging:
            await self._prefetch(adapter, keep=False)

    async def stage(self, adapter: AdapterVersion) -> None:
        """Have `adapter` brought into host memory, by and by; without staging, into the page cache.

        Raises AdapterLoadFailed or EngineUnavailable.
        """
        if self.staging:
            await self._prefetch(adapter, keep=True)
        else:
            await read_files(adapter)

    async def unload(self, engine_name: str, engine_id: int) -> None:
        """Free the adapter's slot once no request uses it. Raises EngineUnavailable."""
        status, answer = await self._post(protocol.UNLOAD_PATH, {"name": engine_name, "id": engine_id})
        if status != 200:
            raise EngineUnavailable(f"engine {self.name} cannot unload {engine_name}: {refusal(answer)}")

    async def core_status(self) -> CoreStatus:
        """Adapters and running requests as the engine counts them. Raises EngineUnavailable."""
        self._board.check_ready()
        return await self._ask_status(HEALTH_TIMEOUT_S)

    async def scrape_metrics(self) -> bytes:
        """The metrics of vLLM itself; empty when it is not up."""
        if self._board.state is not EngineState.READY:
            return b""
        return await self.transport.fetch_metrics()

    async def _prefetch(self, adapter: AdapterVersion, *, keep: bool) -> None:
        request = {"name": adapter.engine_name, "path": str(adapter.path), "digest": adapter.digest, "keep": keep}
        await self._post(protocol.PREFETCH_PATH, request)

    async def _post(self, path: str, content: Mapping[str, object]) -> tuple[int, bytes]:
        self._board.check_ready()
        return await self.transport.fetch("POST", path, body=msgspec.json.encode(content))

    async def _supervise(self) -> None:
        backoff = Backoff()
        was_ready = False
        while True:
            life = await self._live()
            was_ready = was_ready or life.ready_s is not None
            delay = backoff.after(life.ready_s)
            if (life.final and not was_ready) or backoff.exhausted:
                starts = f"{backoff.fruitless} starts failed: " if backoff.exhausted else ""
                self._board.become(EngineState.FAILED, shorten(f"{starts}{life.reason} (log: {self.log_path})"))
                return
            self._board.become(EngineState.RESTARTING, shorten(f"{life.reason}; starting again in {delay:g} s"))
            await asyncio.sleep(delay)

    async def _live(self) -> Life:
        """One life: start the process, watch it until it ends or must be ended."""
        if problem := self._obstacle():
            return Life(problem, final=True)
        run_dir = make_run_dir()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        rotate(self.log_path)
        command = build_command(
            self._settings,
            self._profile,
            self._model.argument,
            run_dir,
            self._environ,
            prepared=self._prepared.absolute(),
        )
        await self.transport.move(str(socket_path(run_dir)))
        child = await EngineProcess.spawn(command, run_dir, self.log_path)
        try:
            return await self._watch(child)
        finally:
            await child.end(self._grace_s)

    def _obstacle(self) -> str | None:
        """Why a start cannot succeed, as far as can be seen from here."""
        if importlib.util.find_spec("vllm") is None:
            return "vLLM is not installed: pip install 'loradock[cpu]' or 'loradock[gpu]'"
        return self._model.obstacle()

    async def _watch(self, child: EngineProcess) -> Life:
        began = time.monotonic()
        log = LogReader(self.log_path)
        self._report(child, log, generation=self._board.status.generation + 1)
        exited = asyncio.create_task(child.wait())
        try:
            if not await self._become_ready(child, log, exited):
                return self._ended(child, log, exited)
            ready_at = time.monotonic()
            self._board.become(EngineState.READY, f"ready after {ready_at - began:.0f} s", pid=child.pid, progress=1.0)
            reason = await self._stay_ready(exited)
            return Life(reason or f"the engine died ({how_ended(exited)})", time.monotonic() - ready_at)
        finally:
            exited.cancel()

    def _ended(self, child: EngineProcess, log: LogReader, exited: asyncio.Task[int]) -> Life:
        """A life that never was ready."""
        if not child.exited:
            return Life(f"not ready after {START_TIMEOUT_S:g} s, while {log.phase.detail}")
        final = exited.result() in {protocol.EXIT_CONFIG, USAGE_ERROR}
        return Life(f"the start failed while {log.phase.detail} ({how_ended(exited)}): {log.explain()}", final=final)

    async def _become_ready(self, child: EngineProcess, log: LogReader, exited: asyncio.Task[int]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            done, _ = await asyncio.wait([exited], timeout=PROBE_EVERY_S)
            if done:
                return False
            self._report(child, log)
            with contextlib.suppress(EngineUnavailable, EngineTimeout):
                self.max_context = (await self._ask_status(HEALTH_TIMEOUT_S)).max_model_len
                return True
        return False

    def _report(self, child: EngineProcess, log: LogReader, generation: int | None = None) -> None:
        phase = log.advance()
        state = self._board.state
        self._board.become(state, phase.detail, progress=phase.progress, pid=child.pid, generation=generation)

    async def _stay_ready(self, exited: asyncio.Task[int]) -> str | None:
        """Return once the process has ended (None), or why it must be."""
        failures = 0
        while True:
            done, _ = await asyncio.wait([exited], timeout=HEALTH_EVERY_S)
            if done:
                return None
            bound(self.log_path)
            try:
                await self._ask_status(HEALTH_TIMEOUT_S)
                failures = 0
            except (EngineUnavailable, EngineTimeout):
                failures += 1
            if failures >= HEALTH_FAILURES:
                return f"the engine did not answer {failures} health checks in a row"

    async def _ask_status(self, timeout_s: float) -> CoreStatus:
        status, answer = await self.transport.fetch("GET", protocol.STATUS_PATH, timeout_s=timeout_s)
        if status != 200:
            raise EngineUnavailable(f"engine {self.name} answers its status with {status}")
        return msgspec.json.decode(answer, type=CoreStatus)


def how_ended(exited: asyncio.Task[int]) -> str:
    """An exit status in words."""
    code = exited.result()
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def refusal(answer: bytes) -> str:
    """The reason in an answer of the engine's process."""
    try:
        return str(msgspec.json.decode(answer, type=dict[str, object])["error"])
    except (msgspec.DecodeError, KeyError):
        return shorten(answer.decode("utf-8", "replace")) or "no reason given"
