"""The engine's process once vLLM is imported: configure, start, serve, and end at once when the engine core dies."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from typing import Annotated, Any, NoReturn

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.engine.worker import bridge, protocol
from serving.engine.worker.adapters import Adapters, LoadRefused
from serving.engine.worker.tiers import expose

DEAD_CHECK_S = 0.2

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""becomes part of a path"""


class LoadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a load."""

    name: str
    id: int
    path: str
    digest: Digest


class PrefetchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a prefetch: into host memory with `keep`, else prepared on disk, and into host memory if it has room."""

    name: str
    path: str
    digest: Digest
    keep: bool


class UnloadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of an unload."""

    name: str
    id: int


def serve(arguments: list[str], plan: protocol.StagingPlan | None, *, fork_server: bool) -> int:
    """Run vLLM until a signal. Returns the exit status. `fork_server` says that one was started to preload vLLM."""
    try:
        bridge.import_all()
        protocol.tell(protocol.PHASE + protocol.CONFIGURING)
        args = bridge.parse([*arguments, "--middleware", f"{DieWithEngine.__module__}.{DieWithEngine.__name__}"])
        config = bridge.configure(args)
        bridge.bound_white_space(config)
    except (bridge.UnknownVllm, ImportError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        return refuse(error)
    import uvloop

    uvloop.run(run(args, config, plan, fork_server=fork_server))
    return 0


def refuse(error: Exception) -> int:
    """Tell why the start cannot succeed, on one line."""
    text = " ".join(str(error).split())
    protocol.tell(protocol.ERROR + (text or type(error).__name__))
    return protocol.EXIT_CONFIG


async def run(args: argparse.Namespace, config: Any, plan: protocol.StagingPlan | None, *, fork_server: bool) -> None:
    """Start the engine core and serve its app."""
    signal.signal(signal.SIGTERM, interrupted)
    _, sock = bridge.find("setup_server")(args, reuse_port=False)
    protocol.tell(protocol.PHASE + protocol.STARTING_CORE)
    async with bridge.start_engine(args, config, fork_server=fork_server) as engine:
        protocol.tell(protocol.PHASE + protocol.STARTING_SERVER)
        app = await engine.build_app(args)
        if plan is not None:
            problem = await engine.open_staging(plan)
            protocol.tell(protocol.STAGING + (f"off, vLLM loads adapters itself: {problem}" if problem else "on"))
        extend(app, engine)
        watch = asyncio.create_task(die_with(engine))
        shutdown = await bridge.serve_app(app, sock, args)
        watch.cancel()
    await shutdown


def interrupted(*_: object) -> NoReturn:
    """End a start; once uvicorn runs, it handles the signal."""
    raise KeyboardInterrupt


def extend(app: FastAPI, engine: bridge.Bridge) -> None:
    """Add residency's routes."""
    app.router.routes.extend(routes(Adapters(engine), engine))
    if engine.stages:
        expose(engine)
    app.state.loradock_engine = engine


def routes(adapters: Adapters, engine: bridge.Bridge) -> list[Route]:
    """Residency's routes."""

    async def load(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=LoadRequest)
            await adapters.load(body.name, body.id, body.path, body.digest)
        except msgspec.DecodeError as error:
            return answer({"error": str(error)}, 400)
        except LoadRefused as error:
            return answer({"error": str(error)}, 409)
        return answer({})

    async def unload(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=UnloadRequest)
        except msgspec.DecodeError as error:
            return answer({"error": str(error)}, 400)
        await adapters.unload(body.name, body.id)
        return answer({})

    async def prefetch(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=PrefetchRequest)
        except msgspec.DecodeError as error:
            return answer({"error": str(error)}, 400)
        engine.prefetch(body.name, body.path, body.digest, keep=body.keep)
        return answer({})

    async def status(_: Request) -> Response:
        running = engine.running()
        return answer(
            {
                "vllm": bridge.version(),
                "max_model_len": engine.max_model_len,
                "slots": engine.slots,
                "adapters": engine.adapters(),
                "running": {name: count for name, count in running.items() if name is not None},
                "running_base": running[None],
            }
        )

    return [
        Route(protocol.LOAD_PATH, load, methods=["POST"]),
        Route(protocol.PREFETCH_PATH, prefetch, methods=["POST"]),
        Route(protocol.UNLOAD_PATH, unload, methods=["POST"]),
        Route(protocol.STATUS_PATH, status, methods=["GET"]),
    ]


def answer(content: dict[str, Any], status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


class DieWithEngine:
    """End this process rather than send what vLLM makes of a dead engine core.

    Every request in flight then sees its connection close, at once and all alike, and the gateway starts a new engine.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        engine: bridge.Bridge = scope["app"].state.loradock_engine

        async def send_alive(message: Message) -> None:
            if engine.dead:
                die()
            await send(message)

        await self._app(scope, receive, send_alive)


async def die_with(engine: bridge.Bridge) -> None:
    """End this process soon after the engine core, also when no request notices."""
    while not engine.dead:  # noqa: ASYNC110 - vLLM tells of it in no other way
        await asyncio.sleep(DEAD_CHECK_S)
    die()


def die() -> NoReturn:
    """Exit without any clean-up: the guard clears what is left."""
    os._exit(protocol.EXIT_ENGINE_DEAD)
