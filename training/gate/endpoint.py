"""The running endpoint, as the gate asks it: greedy answers, and how likely a given answer is."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from training.gate.errors import EndpointFailed

if TYPE_CHECKING:
    import httpx

PATH = "/v1/chat/completions"
UNRECORDED = {"x-loradock-record": "off"}
"""header of requests that must not become cases"""
NOT_YET = frozenset({429, 502, 503})
"""statuses of an endpoint that will answer later"""
NOT_KNOWN_YET = 404
"""a version that was registered a moment ago; the endpoint looks at the registry twice a second"""
KNOWN_AFTER_S = 5.0
PAUSE_S = 0.2
MAX_PAUSE_S = 10.0

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """One greedy answer. `prompt_ids` are the tokens that the endpoint rendered the prompt to."""

    text: str
    tool_calls: tuple[Mapping[str, Any], ...]
    prompt_ids: tuple[int, ...]
    completion_tokens: int
    cut_off: bool


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A conversation's tokens, as the endpoint rendered them, and the natural log probability of each.

    The first token has none, because nothing precedes it.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]


class EndpointClient:
    """The endpoint at `url` (without `/v1`), asked `concurrency` questions at once.

    A request that the endpoint cannot take yet is sent again for `patience_s` seconds, after what it says in
    `Retry-After`. A client belongs to one `async with client.connected()`.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        concurrency: int = 16,
        timeout_s: float = 300,
        patience_s: float = 120,
    ) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._patience_s = patience_s

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """Connections for the time of the context."""
        import httpx

        headers = UNRECORDED | ({"authorization": f"Bearer {self._key}"} if self._key else {})
        limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
        async with httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(self._timeout_s, connect=10),
            limits=limits,
            trust_env=not _is_loopback(urlsplit(self.url).hostname or ""),
        ) as http:
            yield Connection(http, self._concurrency, self._patience_s)


class Connection:
    """An open `EndpointClient`. Errors are EndpointFailed."""

    def __init__(self, http: httpx.AsyncClient, concurrency: int, patience_s: float) -> None:
        self._http = http
        self._slots = asyncio.Semaphore(concurrency)
        self._patience_s = patience_s

    async def answer(self, model: str, messages: Sequence[Message], max_tokens: int, tools: Any = None) -> Reply:
        """The greedy answer of `model`: a base's public name or `name@version`."""
        body: dict[str, Any] = {
            "model": model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_tokens,
            "return_token_ids": True,
        }
        document = await self._ask(body | ({"tools": tools} if tools else {}))
        choice = document["choices"][0]
        message = choice["message"]
        return Reply(
            text=message.get("content") or "",
            tool_calls=tuple(call["function"] for call in message.get("tool_calls") or ()),
            prompt_ids=tuple(document.get("prompt_token_ids") or ()),
            completion_tokens=int((document.get("usage") or {}).get("completion_tokens") or 0),
            cut_off=choice.get("finish_reason") == "length",
        )

    async def likelihood(
        self, model: str, messages: Sequence[Message], tools: Any = None, *, closed: bool = True
    ) -> Likelihood:
        """How likely `model` finds each token of a conversation that ends with the assistant's answer.

        `closed` renders the end of the answer's turn as well. vLLM tells the probabilities of a prompt only, so the
        answer is sent as a part of it, and one token is generated and thrown away.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "return_token_ids": True,
            "add_generation_prompt": False,
            "continue_final_message": not closed,
        }
        document = await self._ask(body | ({"tools": tools} if tools else {}))
        ids, told = document.get("prompt_token_ids"), document.get("prompt_logprobs")
        if not ids or not told or len(ids) != len(told):
            raise EndpointFailed(f"the engine of {model} tells no probabilities of a prompt")
        values = [None if each is None else each[str(token)]["logprob"] for token, each in zip(ids, told, strict=True)]
        return Likelihood(tuple(ids), tuple(values))

    async def _ask(self, body: Mapping[str, Any]) -> Any:
        began, pause_s = time.monotonic(), PAUSE_S
        while True:
            async with self._slots:
                status, document, wait_s = await self._send(body)
            if status and status < 400:
                return document
            patience_s = KNOWN_AFTER_S if status == NOT_KNOWN_YET else self._patience_s
            retried = status in NOT_YET or status in {0, NOT_KNOWN_YET}
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            wait_s = pause_s * random.uniform(0.5, 1) if wait_s is None else wait_s  # noqa: S311 - spreads retries
            if not retried or time.monotonic() - began + wait_s > patience_s:
                raise EndpointFailed(f"{body['model']}: {_reason(document, status)}", status)
            await asyncio.sleep(wait_s)

    async def _send(self, body: Mapping[str, Any]) -> tuple[int, Any, float | None]:
        """Status (0 for a broken connection), document, and what `Retry-After` says in seconds."""
        import httpx

        try:
            response = await self._http.post(PATH, json=body)
        except httpx.TransportError as error:
            return 0, f"{self._http.base_url} does not answer: {error or type(error).__name__}", None
        model, by = str(body["model"]), response.headers.get("x-loradock-adapter", "none")
        if response.status_code < 400 and "@" in model and by != model:
            raise EndpointFailed(f"{model} was asked, and {by} answered")
        try:
            document = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise EndpointFailed(
                f"what answers at {self._http.base_url} is no endpoint: its answer is no JSON"
            ) from None
        wait = response.headers.get("retry-after", "")
        return response.status_code, document, min(float(wait), MAX_PAUSE_S) if wait.isdigit() else None


def _reason(document: Any, status: int) -> str:
    try:
        return str(document["error"]["message"])
    except (KeyError, TypeError):
        return document if isinstance(document, str) else f"the endpoint answered {status}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
