"""The ASGI app, built from a `Gateway`: inference as raw ASGI, everything else as FastAPI routes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters_registry.errors import RegistryError
from serving.errors import BadRequest, BodyTooLarge, ServingError, Unprocessable, from_registry
from serving.gateway.adapters import adapters_router
from serving.gateway.body import PROMPT_FIELD
from serving.gateway.cases import cases_router
from serving.gateway.catalogue import catalogue_router
from serving.gateway.exchange import Reply, headers_of, request_id, text
from serving.gateway.files import UPLOAD_PATH, files_router
from serving.gateway.fine_tuning import fine_tuning_router
from serving.gateway.inference import Inference
from serving.gateway.probes import probes_router
from serving.gateway.state import Gateway

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health"})
"""the only paths that need no key where keys are configured, and that answer to any name where none are"""


def create_app(gateway: Gateway) -> Endpoint:
    """The endpoint. Its lifespan starts and stops `gateway`."""
    inference = Inference(gateway)
    return Endpoint(inference, _routes(gateway, inference))


class Endpoint:
    """The whole ASGI app. Inference answers its own errors, so no request of it passes layers made for other routes."""

    def __init__(self, inference: ASGIApp, routes: FastAPI) -> None:
        self._inference = inference
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PROMPT_FIELD:
                await self._inference(scope, receive, send)
            else:
                await self.routes(scope, receive, send)
        except asyncio.CancelledError:  # the server ends, which uvicorn would log as a defect, with its traceback
            log.info("%s is cut off: the server ends", scope.get("path"))


def _routes(gateway: Gateway, inference: ASGIApp) -> FastAPI:
    """Everything that is not inference, and the lifespan."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await gateway.start()
        except BaseException:
            await gateway.stop()  # an engine may have been started already
            raise
        # What has been imported and composed stays, so the collector need not walk it: its full runs, which stop every
        # stream, take a few milliseconds instead of 100.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            await gateway.stop()

    app = FastAPI(title="loradock", lifespan=lifespan, docs_url="/docs", redoc_url=None)
    for path in PROMPT_FIELD:  # so that other methods get 405
        app.router.routes.append(Route(path, inference, methods=["POST"]))
    for router in (probes_router(gateway), catalogue_router(gateway), adapters_router(gateway)):
        app.include_router(router)
    if gateway.training is not None:
        app.include_router(files_router(gateway.training))
        app.include_router(fine_tuning_router(gateway, gateway.training))
    if gateway.cases is not None:
        app.include_router(cases_router(gateway.cases))
    app.add_exception_handler(ServingError, _serving_error)
    app.add_exception_handler(RegistryError, _registry_error)
    app.add_exception_handler(OSError, _os_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Front, gateway=gateway)
    return app


class Front:
    """Around everything that is not inference: the caller, the request id, the body's size, the count.

    Inference does the same for itself, closer to its work.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = headers_of(scope)
        reply = Reply(send, request_id(headers))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *reply.headers]
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                caller = self._gateway.keys.identify(text(headers.get(b"authorization")), text(headers.get(b"host")))
                scope.setdefault("state", {})["caller"] = caller
            settings = self._gateway.settings
            limit = settings.max_upload_bytes if scope["path"] == UPLOAD_PATH else settings.max_body_bytes
            _check_length(headers.get(b"content-length"), limit)
            await self._app(scope, _bounded(receive, limit), send_with_id)
        except ServingError as error:
            status = error.status
            await reply.fail(error)
        except Exception as error:
            log.exception("request %s: %s %s failed", reply.headers[0][1].decode(), scope["method"], scope["path"])
            if status:
                raise  # an answer has begun; the connection has to end
            status = 500
            await reply.fail(ServingError(f"internal error: {type(error).__name__}", code="internal_error"))
        finally:
            self._gateway.metrics.request(_template(scope), status, time.perf_counter() - began)


def _check_length(length: bytes | None, limit: int) -> None:
    if length and length.isdigit() and int(length) > limit:
        raise BodyTooLarge(f"the request body is larger than the limit of {limit} bytes")


def _bounded(receive: Receive, limit: int) -> Receive:
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise BodyTooLarge(f"the request body is larger than the limit of {limit} bytes")
        return message

    return bounded


def _template(scope: Scope) -> str:
    """The route's path with its parameters unfilled, so that metrics have few labels."""
    route = scope.get("route")
    return getattr(route, "path", "other")


def _answer(error: ServingError) -> Response:
    return Response(error.envelope(), error.status, dict(error.headers), media_type="application/json")


async def _serving_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)  # noqa: S101 - registered for this type
    return _answer(error)


async def _registry_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RegistryError)  # noqa: S101 - registered for this type
    return _answer(from_registry(error))


async def _os_error(request: Request, error: Exception) -> Response:
    """A full disk, a folder that may not be written: the operator's to mend, so the reason is told."""
    log.error("request %s %s failed", request.method, request.url.path, exc_info=error)
    reason = error.strerror if isinstance(error, OSError) else None
    return _answer(ServingError(f"the server's storage failed: {reason or error}", code="storage_failed"))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "json_invalid":
        return _answer(BadRequest("the request body is not valid JSON", code="invalid_json"))
    message = f"'{where}': {first['msg']}" if where else str(first["msg"])
    return _answer(Unprocessable(message, param=where, code=first["type"]))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type
    if isinstance(error.__cause__, ServingError):  # raised while FastAPI read the body
        return _answer(error.__cause__)
    failure = ServingError(error.detail, status=error.status_code)
    failure.type = "invalid_request_error" if error.status_code < 500 else "server_error"
    if error.status_code in (404, 405):
        failure.message = f"{request.method} {request.url.path}: {error.detail.lower()}"
        failure.code = "unknown_url"
    answer = _answer(failure)
    answer.headers.update(error.headers or {})
    return answer
