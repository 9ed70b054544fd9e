"""The one module that knows vLLM's insides, and what differs between its versions (0.26 to 0.32).

Names are looked up where each version keeps them; a version that keeps them elsewhere is refused at start by name, not
by a traceback in the middle of a request.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import multiprocessing
import os
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
from fastapi import FastAPI

from serving.engine.worker.notices import Notices
from serving.engine.worker.protocol import FAILED, PENDING, StagingPlan

LOCATIONS: Mapping[str, tuple[str, ...]] = {
    "make_arg_parser": ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"),
    "validate_parsed_serve_args": ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"),
    "build_app": ("vllm.entrypoints.launchers.app", "vllm.entrypoints.openai.api_server"),
    "init_app_state": ("vllm.entrypoints.launchers.api_server.app_state", "vllm.entrypoints.openai.api_server"),
    "setup_server": ("vllm.entrypoints.launchers.launcher", "vllm.entrypoints.openai.api_server"),
    "serve_http": ("vllm.entrypoints.launchers.launcher", "vllm.entrypoints.launcher"),
    "cli_env_setup": ("vllm.entrypoints.serve.utils.api_utils",),
    "FlexibleArgumentParser": ("vllm.utils.argparse_utils",),
    "AsyncEngineArgs": ("vllm.engine.arg_utils",),
    "AsyncLLM": ("vllm.v1.engine.async_llm",),
    "LoRARequest": ("vllm.lora.request",),
    "UsageContext": ("vllm.usage.usage_lib",),
}
"""where each name lives, newest version first"""

MAX_WHITE_SPACE = 2
"""characters in a row between two tokens of a tool call's arguments"""
POLL_S = 0.1
"""how long word from the workers is waited for before they are asked: one that failed sends none"""
START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


class UnknownVllm(RuntimeError):
    """This vLLM does not have what we build on; the message names it."""


def find(name: str) -> Any:
    """What vLLM calls `name`. Raises UnknownVllm."""
    for module in LOCATIONS[name]:
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise UnknownVllm(
        f"vLLM {version()} has no {name} in {' or '.join(LOCATIONS[name])}: this version is not supported"
    )


def version() -> str:
    """The version of vLLM."""
    return str(importlib.import_module("vllm.version").__version__)


def import_all() -> None:
    """Import everything at once, so that a missing piece shows before a model is loaded. Raises UnknownVllm."""
    for name in LOCATIONS:
        find(name)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command-line arguments of vLLM. Exits with status 2 and a usage line for a wrong one."""
    find("cli_env_setup")()
    parser = find("make_arg_parser")(find("FlexibleArgumentParser")())
    args: argparse.Namespace = parser.parse_args(arguments)
    return args


def configure(args: argparse.Namespace) -> Any:
    """The engine's configuration. Raises what vLLM raises for a model or an argument that it cannot serve."""
    find("validate_parsed_serve_args")(args)
    engine_args = find("AsyncEngineArgs").from_cli_args(args)
    return engine_args.create_engine_config(usage_context=find("UsageContext").OPENAI_API_SERVER)


def bound_white_space(config: Any) -> None:
    """Apply `disable_any_whitespace` to tool calls too, whose grammar vLLM builds without looking at it.

    Without a bound, a small model may emit white space between two tokens of its arguments for ever.
    """
    if not config.structured_outputs_config.disable_any_whitespace:
        return
    schema_format = getattr(importlib.import_module("xgrammar.structural_tag"), "JSONSchemaFormat", None)
    field = getattr(schema_format, "model_fields", {}).get("max_whitespace_cnt")
    if schema_format is not None and field is not None:
        field.default = MAX_WHITE_SPACE
        schema_format.model_rebuild(force=True)


@asynccontextmanager
async def start_engine(args: argparse.Namespace, config: Any, *, fork_server: bool) -> AsyncIterator[Bridge]:
    """Start the engine core in its process and shut it down at the end.

    With `fork_server` that process is forked from the one that has imported vLLM already.
    """
    if fork_server:
        _use_fork_server()
    client = find("AsyncLLM").from_vllm_config(
        vllm_config=config,
        usage_context=find("UsageContext").OPENAI_API_SERVER,
        enable_log_requests=args.enable_log_requests,
        disable_log_stats=args.disable_log_stats,
    )
    try:
        await client.reset_mm_cache()
        bridge = Bridge(client)
        try:
            yield bridge
        finally:
            bridge.close()
    finally:
        client.shutdown()


def _use_fork_server() -> None:
    """Make vLLM start its engine core from the fork server where the platform (CPU) insists on `spawn`.

    vLLM's variable for the method takes `fork` and `spawn` only. A version that asks elsewhere spawns, slower.
    """
    processes = importlib.import_module("vllm.v1.engine.utils")
    if os.environ.get(START_METHOD) == "spawn" and hasattr(processes, "get_mp_context"):
        vars(processes)["get_mp_context"] = partial(multiprocessing.get_context, "forkserver")


class StagingFailed(Exception):
    """An adapter cannot be brought into a slot; the message is one line."""


def _reason(error: Exception) -> str:
    """What vLLM says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class Bridge:
    """A running engine: its app, and its adapters. `tiers` are the workers' last tidings of theirs."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._notices: Notices | None = None
        self._sent: set[asyncio.Task[Any]] = set()
        self._stock_load = asyncio.Lock()
        self.spare = 0
        self.tiers: list[dict[str, dict[str, float]]] = []
        self._processor = client.output_processor
        self._models: Any = None
        if not isinstance(self._processor.request_states, dict):
            raise UnknownVllm(f"vLLM {version()} keeps its running requests in an unknown form")

    async def build_app(self, args: argparse.Namespace) -> FastAPI:
        """The OpenAI app of vLLM, its state filled."""
        tasks = await self._client.get_supported_tasks()
        app: FastAPI = find("build_app")(args, tasks, self._client.model_config)
        await find("init_app_state")(self._client, app.state, args, tasks)
        self._models = app.state.openai_serving_models
        if not isinstance(self._models.lora_requests, dict):
            raise UnknownVllm(f"vLLM {version()} keeps its adapters in an unknown form")
        return app

    @property
    def dead(self) -> bool:
        """Whether the engine core is gone; costs next to nothing."""
        return bool(self._client.errored)

    @property
    def stages(self) -> bool:
        """Whether adapters are staged beside the engine."""
        return self._notices is not None

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return int(self._client.model_config.max_model_len)

    @property
    def slots(self) -> int:
        """Adapters resident at once, the spare ones not counted; 0 without LoRA."""
        lora = self._client.vllm_config.lora_config
        return int(lora.max_loras) - self.spare if lora is not None else 0

    async def open_staging(self, plan: StagingPlan) -> str:
        """Begin to stage adapters beside the engine. Returns why that cannot be, or nothing."""
        self.spare = plan.spare
        try:
            answers = await self._call("open", msgspec.json.encode(plan).decode())
            problem: str = next(filter(None, answers), "")
            self._notices = None if problem else Notices(plan.notices, len(answers))
        except Exception as error:  # vLLM has no narrower one for a worker without the method
            problem = _reason(error)
        if problem:  # on one worker: the others must not keep what they took
            try:
                await self._call("close")
            except Exception as error:  # as above, and alike where no worker has either method
                if (failed := _reason(error)) != problem:
                    problem += f"; what it took could not be given back: {failed}"
        return problem

    def adapters(self) -> dict[str, int]:
        """Integer id of each adapter that requests may name."""
        return {name: request.lora_int_id for name, request in self._models.lora_requests.items()}

    def running(self) -> Counter[str | None]:
        """Requests that run or wait, by adapter name (None: the base)."""
        return Counter(state.lora_name for state in self._processor.request_states.values())

    async def add(self, name: str, engine_id: int, path: str, digest: str) -> None:
        """Bring the adapter into a slot; requests cannot name it before `publish`.

        Raises StagingFailed, or what vLLM raises.
        """
        if self._notices is None:
            async with self._stock_load:  # between two loads the streams get their steps
                await self._client.add_lora(find("LoRARequest")(lora_name=name, lora_int_id=engine_id, lora_path=path))
            return
        ticket = self._notices.expect()
        try:
            refusals = await self._call("begin", ticket, engine_id, name, path, digest)
            failures = [*filter(None, refusals), *await self._until_staged(self._notices, ticket, engine_id)]
        finally:
            self._notices.forget(ticket)
        if failures:
            raise StagingFailed(failures[0])

    async def _until_staged(self, notices: Notices, ticket: int, engine_id: int) -> list[str]:
        """Return once every worker has the adapter in a slot, or has failed: why.

        A request that is sent after the question reaches the engine after it, so that nobody need wait for its answer
        once all slots are known to be filled.
        """
        while not await notices.complete(ticket, POLL_S):
            answers = await self._call("poll", engine_id)
            if all(answer["state"] != PENDING for answer in answers):
                self.tiers = [answer["tiers"] for answer in answers]
                return [answer["reason"] for answer in answers if answer["state"] == FAILED]
        self._send(self._commit(engine_id))
        await asyncio.sleep(0)  # it is on its way now
        return []

    async def _commit(self, engine_id: int) -> None:
        self.tiers = [answer["tiers"] for answer in await self._call("poll", engine_id)]

    def prefetch(self, name: str, path: str, digest: str, *, keep: bool) -> None:
        """Let the workers prepare the adapter and bring it into host memory; without `keep`, only if it has room there.

        Waits for nothing.
        """
        if self._notices is not None:
            self._send(self._call("prefetch", name, path, digest, keep))

    def _send(self, call: Coroutine[Any, Any, Any]) -> None:
        """Let `call` run; an engine that dies meanwhile is noticed elsewhere."""
        sent = asyncio.create_task(call)
        self._sent.add(sent)
        sent.add_done_callback(self._sent.discard)
        sent.add_done_callback(asyncio.Task.exception)

    async def _call(self, method: str, *arguments: Any) -> list[Any]:
        """What each worker answers, between two steps; see `serving.engine.worker.extension`."""
        answers: list[Any] = await self._client.collective_rpc(f"loradock_{method}", args=arguments)
        return answers

    async def remove(self, engine_id: int) -> None:
        """Free the slot, which no request uses any more."""
        if self._notices is not None:
            await self._call("remove", engine_id)
        else:
            await self._client.remove_lora(engine_id)

    def close(self) -> None:
        """Stop listening to the workers."""
        if self._notices is not None:
            self._notices.close()

    def publish(self, name: str, engine_id: int, path: str) -> None:
        """Let requests name the adapter."""
        self._models.lora_requests[name] = find("LoRARequest")(lora_name=name, lora_int_id=engine_id, lora_path=path)

    def withdraw(self, name: str) -> None:
        """No further request may name the adapter."""
        self._models.lora_requests.pop(name, None)


async def serve_app(app: FastAPI, sock: Any, args: argparse.Namespace) -> Any:
    """Serve until a signal; returns what is still to be awaited once the engine is shut down."""
    from vllm import envs

    return await find("serve_http")(
        app,
        sock=sock,
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=False,
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
    )
