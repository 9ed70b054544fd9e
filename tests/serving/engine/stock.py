"""The part of a stock vLLM server that loadock's remote engines see, over real HTTP, with faults to inject."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class StockServer:
    """Answers as vLLM 0.32 does; `updating` says whether adapters may be loaded at run time."""

    def __init__(self, *, updating: bool = True, key: str | None = None) -> None:
        self.updating = updating
        self.key = key
        self.status = 200
        self.base: dict[str, Any] = {"id": "org/base", "root": "/nowhere/base", "max_model_len": 77}
        self.adapters: dict[str, str] = {}
        self.url = ""

    @property
    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self.models),
            Route("/metrics", self.metrics),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        if self.updating:
            routes.append(Route("/v1/load_lora_adapter", self.load, methods=["POST"]))
            routes.append(Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]))
        return Starlette(routes=routes, exception_handlers={404: self.unknown_route})

    async def unknown_route(self, _: Request, __: Exception) -> Response:
        return JSONResponse({"detail": "Not Found"}, 404)

    async def models(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if self.status != 200:
            return JSONResponse({"error": {"message": "not now"}}, self.status)
        cards = [self.base, *({"id": n, "root": p, "parent": self.base["id"]} for n, p in self.adapters.items())]
        return JSONResponse({"object": "list", "data": cards})

    async def metrics(self, _: Request) -> Response:
        return Response("# TYPE up gauge\nup 1\n")

    async def chat(self, request: Request) -> Response:
        return JSONResponse({"model": (await request.json())["model"], "choices": []})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        if body["lora_name"] in self.adapters:
            return JSONResponse({"error": {"message": "has already been loaded"}}, 400)
        if "bad" in body["lora_path"]:
            return JSONResponse({"error": {"message": "No adapter found"}}, 404)
        self.adapters[body["lora_name"]] = body["lora_path"]
        return Response("Success")

    async def unload(self, request: Request) -> Response:
        if self.adapters.pop((await request.json())["lora_name"], None) is None:
            return JSONResponse({"error": {"message": "cannot be found"}}, 404)
        return Response("Success")


@asynccontextmanager
async def listening(server: StockServer, port: int = 0) -> AsyncIterator[StockServer]:
    """Serve on loopback."""
    sock = socket.create_server(("127.0.0.1", port))
    server.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    http = uvicorn.Server(uvicorn.Config(server.app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(http.serve(sockets=[sock]))
    try:
        while not http.started:  # noqa: ASYNC110 - uvicorn tells in no other way
            await asyncio.sleep(0.01)
        yield server
    finally:
        http.should_exit = True
        await task
        sock.close()
