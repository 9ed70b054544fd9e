"""Chat requests as commands send them: one streamed answer with who gave it and how fast, or many at once."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serving.cli.client import Server, transport_error
from serving.cli.errors import ApiError, CliError

if TYPE_CHECKING:
    import httpx

PATH = "/v1/chat/completions"
_PREFIX = "x-loradock-"


@dataclass
class Answer:
    """One answer. Times are in seconds from the request on; `ttft_s` is None until a first piece of text came."""

    text: str = ""
    routed: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    usage: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    ttft_s: float | None = None
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Completion tokens, as the engine counts them; 0 where it does not tell."""
        return int((self.usage or {}).get("completion_tokens") or 0)

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed: tokens after the first over the time after the first."""
        if self.ttft_s is None or self.tokens < 2 or self.seconds <= self.ttft_s:
            return None
        return (self.tokens - 1) / (self.seconds - self.ttft_s)

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "content": self.text,
            **{name: self.routed.get(name) for name in ("model", "adapter", "adapter-state", "agent", "reason")},
            "difficulty": _number(self.routed.get("difficulty")),
            "request_id": self.request_id,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "ttft_ms": None if self.ttft_s is None else round(1e3 * self.ttft_s, 3),
            "seconds": round(self.seconds, 4),
            "tokens_per_s": None if self.tokens_per_s is None else round(self.tokens_per_s, 2),
        }


def chat_body(model: str, messages: Sequence[Mapping[str, str]], *, stream: bool, **more: Any) -> dict[str, Any]:
    """A request body; `more` are further fields, left out where None."""
    body: dict[str, Any] = {"model": model, "messages": list(messages), "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return body | {name: value for name, value in more.items() if value is not None}


class Stream:
    """Reads one answer out of server-sent events."""

    def __init__(self, headers: Mapping[str, str], began: float) -> None:
        self.answer = Answer(routed=routed_by(headers), request_id=headers.get("x-request-id"))
        self._began = began
        self._done = False

    def feed(self, line: str) -> str:
        """The text that `line` adds. Raises ApiError for an error event."""
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            self._done = True
        if not data or self._done:
            return ""
        event = json.loads(data)
        if "error" in event:
            raise ApiError(event["error"], 0)
        return self._take(event)

    def _take(self, event: Mapping[str, Any]) -> str:
        answer = self.answer
        answer.usage = event.get("usage") or answer.usage
        added = ""
        for choice in event.get("choices") or ():
            added += (choice.get("delta") or {}).get("content") or ""
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if added and answer.ttft_s is None:
            answer.ttft_s = time.perf_counter() - self._began
        answer.text += added
        return added

    def finish(self) -> Answer:
        """The whole answer. Raises CliError when the stream broke off."""
        self.answer.seconds = time.perf_counter() - self._began
        if not self._done:
            raise CliError("the answer broke off before its end")
        return self.answer


def stream_chat(
    server: Server, body: Mapping[str, Any], headers: dict[str, str], on_text: Callable[[str], None]
) -> Answer:
    """Send `body`, give `on_text` each piece as it comes, and return the whole."""
    began = time.perf_counter()
    with server.stream(PATH, body, headers) as response:
        stream = Stream(response.headers, began)
        for line in response.iter_lines():
            if added := stream.feed(line):
                on_text(added)
        return stream.finish()


@asynccontextmanager
async def asking(server: Server, concurrency: int) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[Answer]]]:
    """A function that sends one body, streamed or not, and returns the answer. It raises ApiError and CliError.

    None of these requests becomes a case: they come from benches.
    """
    async with server.asynchronous(concurrency) as client:
        client.headers["x-loradock-record"] = "off"

        async def ask(body: dict[str, Any]) -> Answer:
            import httpx

            try:
                return await (_ask_stream(client, body) if body["stream"] else _ask_whole(client, body))
            except httpx.HTTPError as error:
                raise transport_error(error, server.url) from None

        yield ask


async def _ask_stream(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    began = time.perf_counter()
    async with client.stream("POST", PATH, json=body) as response:
        if response.status_code >= 400:
            raise _refusal(response.status_code, await response.aread())
        stream = Stream(response.headers, began)
        async for line in response.aiter_lines():
            stream.feed(line)
        return stream.finish()


async def _ask_whole(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    began = time.perf_counter()
    response = await client.post(PATH, json=body)
    if response.status_code >= 400:
        raise _refusal(response.status_code, response.content)
    document = response.json()
    choice = document["choices"][0]
    return Answer(
        text=choice["message"].get("content") or "",
        routed=routed_by(response.headers),
        request_id=response.headers.get("x-request-id"),
        usage=document.get("usage"),
        finish_reason=choice.get("finish_reason"),
        seconds=time.perf_counter() - began,
    )


def _refusal(status: int, content: bytes) -> CliError:
    try:
        return ApiError(json.loads(content)["error"], status)
    except (ValueError, KeyError, TypeError):
        return CliError(f"the server answered {status}")


def routed_by(headers: Mapping[str, str]) -> dict[str, str]:
    """The `x-loradock-*` headers without their prefix."""
    return {name.lower()[len(_PREFIX) :]: value for name, value in headers.items() if name.lower().startswith(_PREFIX)}


async def ask_all(
    ask: Callable[[dict[str, Any]], Awaitable[Answer]],
    bodies: Iterable[dict[str, Any]],
    concurrency: int,
    on_done: Callable[[], None],
) -> list[Answer | CliError]:
    """The answers to `bodies` in their order, `concurrency` at once; a failure takes the place of its answer."""
    import asyncio

    numbered = enumerate(bodies)
    results: dict[int, Answer | CliError] = {}

    async def work(mine: Iterator[tuple[int, dict[str, Any]]]) -> None:
        for index, body in mine:
            try:
                results[index] = await ask(body)
            except CliError as error:
                results[index] = error
            on_done()

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(numbered))
    return [results[index] for index in sorted(results)]


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
