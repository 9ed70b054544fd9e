"""The inference routes: decide, hold, dispatch, relay, record.

Raw ASGI rather than FastAPI endpoints: these bodies are forwarded, not validated against a model, and their overhead is
what users of a gateway pay on every request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from router import Decision, Task
from serving.engine.base import EngineResponse
from serving.errors import EngineUnavailable, ServingError
from serving.gateway.body import ParsedBody, read_body
from serving.gateway.exchange import CLIENT_GONE, JSON, ClientGone, Reply, WhileConnected, headers_of, request_id, text
from serving.gateway.rewrite import ModelRewriter, StreamRewriter, Usage, read_usage
from serving.gateway.state import Gateway
from serving.gateway.target import Target, hold
from serving.gateway.upstream_errors import from_engine
from serving.recorder import Outcome

RECORD_HEADER = b"x-loradock-record"
"""`off` keeps a request out of the CaseBank, as evaluations must"""
_ENDS_WITH_DONE = frozenset({"/v1/chat/completions", "/v1/completions"})


class Inference:
    """ASGI app for the paths of `PROMPT_FIELD`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        received = time.perf_counter()
        headers = headers_of(scope)
        exchange = _Exchange(self._gateway, scope["path"], received, Reply(send, request_id(headers)))
        self._gateway.metrics.in_flight.inc()
        try:
            await exchange.run(headers, receive)
        except ClientGone:
            exchange.gone = True
        except ServingError as error:
            await exchange.reply.fail(error)
        except Exception as error:
            self._gateway.log.exception("request %s failed", exchange.reply.headers[0][1].decode())
            await exchange.reply.fail(ServingError(f"internal error: {type(error).__name__}", code="internal_error"))
        finally:
            self._gateway.metrics.in_flight.dec()
            exchange.account()


class _Exchange:
    """One request from receipt to record."""

    def __init__(self, gateway: Gateway, path: str, received: float, reply: Reply) -> None:
        self.gateway = gateway
        self.path = path
        self.reply = reply
        self.usage: Usage | None = None
        self.gone = False
        self.target: Target | None = None
        self._received = received
        self._wall = time.time()
        self._body: ParsedBody | None = None
        self._raw = b""
        self._caller = ""
        self._recorded = False
        self._session: str | None = None
        self._kept: list[bytes] = []
        self._overhead_s = 0.0

    async def run(self, headers: Mapping[bytes, bytes], receive: Receive) -> None:
        gateway = self.gateway
        caller = gateway.keys.identify(text(headers.get(b"authorization")), text(headers.get(b"host")))
        self._caller = caller.name
        self._recorded = (
            gateway.recorder.enabled and caller.record and headers.get(RECORD_HEADER, b"").lower() != b"off"
        )
        length = headers.get(b"content-length")
        self._raw = await read_body(
            receive, int(length) if length and length.isdigit() else None, gateway.settings.max_body_bytes
        )
        body = self._body = ParsedBody(self.path, self._raw)
        task = body.task(
            agent=text(headers.get(b"x-agent")),
            session=text(headers.get(b"x-session-id")),
            owner=caller.name,
            wishes=caller.wishes,
        )
        self._session = task.session
        client = WhileConnected(receive)
        try:
            async with client, gateway.admission:
                await self._answer(body, task)
        finally:
            self.gone = client.gone

    async def _answer(self, body: ParsedBody, task: Task) -> None:
        decision = self.gateway.decide(task)
        self._recorded = self._recorded and self.gateway.records(decision.agent)
        self.reply.route = _told(decision)  # an error from here on tells the route as well
        async with hold(self.gateway, decision) as target:  # held until the last byte
            self._dispatching(target)
            # The Responses API tells its usage by itself; elsewhere ours is asked for where the client's is not.
            ask_usage = body.stream and not body.wants_usage and target.ours and self.path in _ENDS_WITH_DONE
            request = body.for_engine(target.model, ask_usage=ask_usage)
            async with target.engine.open(self.path, request) as answer:
                await self._relay(answer, body, target)

    def _dispatching(self, target: Target) -> None:
        """Everything is known but the answer: fill in the headers and count the route."""
        self.target = target
        decision = target.decision
        self._overhead_s = time.perf_counter() - self._received - target.waited_s
        route = self.reply.route
        route[b"x-loradock-adapter"] = target.adapter_name.encode()
        route[b"x-loradock-reason"] = target.reason.encode()
        route[b"x-loradock-adapter-state"] = target.adapter_state.encode()
        route[b"x-loradock-overhead-ms"] = b"%.3f" % (1e3 * self._overhead_s)
        self.gateway.metrics.route(
            target.reason, self.gateway.known_agent(decision.agent), self._overhead_s, target.waited_s
        )

    async def _relay(self, answer: EngineResponse, body: ParsedBody, target: Target) -> None:
        content_type = answer.headers.get("content-type", "application/json")
        if answer.status >= 300:
            raise from_engine(
                answer.status,
                await answer.read(),
                self.path,
                adapter=target.adapter is not None,
                retry_after=answer.headers.get("retry-after"),
            )
        if content_type.startswith("text/event-stream"):
            await self._relay_stream(answer, body, content_type, target.model)
            return
        data = await answer.read()
        self.usage = read_usage(data)
        data = ModelRewriter(body.model, target.model).rewrite(data)
        self._keep(data)
        await self.reply.whole(
            answer.status, data, JSON if content_type == "application/json" else content_type.encode()
        )

    async def _relay_stream(
        self, answer: EngineResponse, body: ParsedBody, content_type: str, engine_model: str
    ) -> None:
        rewriter = StreamRewriter(body.model, engine_model, drop_usage=not body.wants_usage)
        reply = self.reply
        await reply.begin_stream(answer.status, content_type.encode())
        async for chunk in answer.chunks():
            data = rewriter.feed(chunk)
            if data:
                self._keep(data)
                await reply.chunk(data)
        rest = rewriter.finish()
        self.usage = rewriter.usage
        if not rewriter.done and self.path in _ENDS_WITH_DONE:
            raise EngineUnavailable("the engine ended the stream before its last event")
        await reply.end_stream(rest)

    def _keep(self, data: bytes) -> None:
        if self._recorded:
            self._kept.append(data)

    def account(self) -> None:
        """Count the request and hand its outcome to the recorder."""
        gateway, target, usage = self.gateway, self.target, self.usage
        seconds = time.perf_counter() - self._received
        left = self.gone and not self.reply.finished
        status = CLIENT_GONE if left or not self.reply.status else self.reply.status
        gateway.metrics.request(self.path, status, seconds)
        if target is None or self._body is None:
            return
        if usage is not None:
            gateway.metrics.tokens(target.adapter_name, usage.prompt_tokens, usage.completion_tokens)
        if self._recorded:
            gateway.recorder.record(
                Outcome(
                    request_id=self.reply.headers[0][1].decode(),
                    path=self.path,
                    caller=self._caller,
                    agent=target.decision.agent,
                    session=self._session,
                    adapter=None if target.adapter is None else target.adapter_name,
                    base=target.engine.base_name,
                    reason=target.reason,
                    difficulty=target.decision.difficulty,
                    status=status,
                    request=self._raw,
                    response=b"".join(self._kept) if self.reply.finished and not self.reply.failed else None,
                    streamed=self._body.stream,
                    prompt_tokens=usage.prompt_tokens if usage else None,
                    completion_tokens=usage.completion_tokens if usage else None,
                    started_at=self._wall,
                    latency_s=seconds,
                    metadata=self._body.metadata,
                )
            )


def _told(decision: Decision) -> dict[bytes, bytes]:
    """The headers of a decision on which nothing has been done yet."""
    return {
        b"x-loradock-model": decision.base.encode(),
        b"x-loradock-adapter": b"none",
        b"x-loradock-agent": _header_value(decision.agent),
        b"x-loradock-difficulty": b"%.3f" % decision.difficulty,
        b"x-loradock-reason": decision.reason.encode(),
        b"x-loradock-adapter-state": b"none",
    }


def _header_value(agent: str | None) -> bytes:
    """An agent's name as a header's value; a client may name any, line breaks included."""
    return quote(agent or "none", safe="").encode()[:256]
