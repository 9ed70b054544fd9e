"""The request body: only what routing needs is parsed, everything else keeps its bytes.

A body becomes a dict from field name to raw JSON (`msgspec.Raw`), so that replacing `model` leaves every other value
as the client wrote it, whatever field it is.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import msgspec
from starlette.types import Message, Receive

from configs.routing import Quality
from router import NO_WISHES, Task, Wishes
from serving.errors import BadRequest, BodyTooLarge
from serving.gateway.exchange import ClientGone

Fields = dict[str, msgspec.Raw]

_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_any = msgspec.json.Decoder().decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw] | None).decode
_encode = msgspec.json.Encoder().encode

PROMPT_FIELD = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
}
"""which field of each endpoint holds the task"""
LIMIT_FIELDS = {
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}
"""which fields of an endpoint limit the answer, the first that is there and not null counts"""
QUALITIES: tuple[Quality, ...] = get_args(Quality)


class ParsedBody:
    """A request body, checked as far as routing reads it.

    Raises BadRequest naming the field when the body is no JSON object, `model` is missing or empty, the prompt field is
    missing or empty, or one of the fields that routing reads has the wrong type.
    """

    __slots__ = ("fields", "messages", "metadata", "model", "path", "prompt", "stream", "tools", "wants_usage")

    def __init__(self, path: str, raw: bytes) -> None:
        self.path = path
        self.fields = _parse_fields(raw)
        self.model: str = self._read("model", str, "a string")
        if not self.model:
            raise BadRequest("you must provide a model parameter", param="model", code="missing_required_parameter")
        self.stream: bool = bool(self._read("stream", bool, "a boolean"))
        self.metadata: dict[str, Any] = self._read("metadata", dict, "an object") or {}
        self.tools: bool = self._has_items("tools")
        options = self._read("stream_options", dict, "an object") or {}
        self.wants_usage: bool = bool(options.get("include_usage"))
        self.messages: list[dict[str, Any]] = []
        self.prompt: str | list[Any] | None = None
        self._read_prompt()

    def _read(self, name: str, kind: type, what: str) -> Any:
        raw = self.fields.get(name)
        if raw is None:
            return None
        value = _decode_field(name, raw)
        if value is not None and not isinstance(value, kind):
            raise BadRequest(f"'{name}' must be {what}", param=name, code="invalid_type")
        return value

    def _has_items(self, name: str) -> bool:
        raw = self.fields.get(name)
        try:
            return bool(raw and _decode_list(raw))
        except msgspec.DecodeError:
            raise BadRequest(f"'{name}' must be an array", param=name, code="invalid_type") from None

    def _read_prompt(self) -> None:
        name = PROMPT_FIELD[self.path]
        raw = self.fields.get(name)
        value = None if raw is None else _decode_field(name, raw)
        if value is None or value in ("", []):
            raise BadRequest(f"'{name}' must not be empty", param=name, code="missing_required_parameter")
        if name == "messages":
            self.messages = _check_messages(value, name)
        elif isinstance(value, list) and isinstance(value[0], dict):
            self.messages = value
        elif isinstance(value, (str, list)):
            self.prompt = value
        else:
            raise BadRequest(f"'{name}' must be a string or an array", param=name, code="invalid_type")

    def task(self, *, agent: str | None, session: str | None, owner: str, wishes: Wishes = NO_WISHES) -> Task:
        """What the router looks at; `agent` and `session` are the headers', which go before `metadata`'s.

        `wishes` are the API key's. Raises BadRequest for metadata that cannot mean anything.
        """
        agent = agent or self._metadata_text("agent")
        session = session or self._metadata_text("session_id")
        wishes = self._wishes().over(wishes)
        max_tokens = self._max_tokens()
        if self.prompt is not None:
            return Task.from_prompt(
                self.prompt,
                model=self.model,
                agent=agent,
                session=session,
                owner=owner,
                wishes=wishes,
                max_tokens=max_tokens,
            )
        instructions = self._read("instructions", str, "a string") if self.path == "/v1/responses" else None
        return Task.from_messages(
            self.messages,
            model=self.model,
            instructions=instructions,
            has_tools=self.tools,
            agent=agent,
            session=session,
            owner=owner,
            wishes=wishes,
            max_tokens=max_tokens,
        )

    def _wishes(self) -> Wishes:
        """What `metadata` says of quality and cost. OpenAI's own are strings, so a number may come as one."""
        if not self.metadata:
            return NO_WISHES
        quality = self._metadata_text("quality")
        if quality is not None and quality not in QUALITIES:
            raise BadRequest(
                f"'metadata.quality' must be one of {', '.join(QUALITIES)}",
                param="metadata.quality",
                code="invalid_value",
            )
        max_cost = self._max_cost()
        return NO_WISHES if quality is None and max_cost is None else Wishes(quality, max_cost)

    def _max_cost(self) -> float | None:
        value = self.metadata.get("max_cost")
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (number > 0 and math.isfinite(number)):
            raise BadRequest(
                "'metadata.max_cost' must be a number of USD above 0", param="metadata.max_cost", code="invalid_value"
            )
        return number

    def _max_tokens(self) -> int | None:
        """The limit of the answer; one of the wrong kind is the engine's to refuse."""
        for name in LIMIT_FIELDS.get(self.path, ()):
            raw = self.fields.get(name)
            if raw is not None and (value := _decode_field(name, raw)) is not None:
                is_limit = isinstance(value, int) and not isinstance(value, bool) and value > 0
                return value if is_limit else None
        return None

    def _metadata_text(self, name: str) -> str | None:
        value = self.metadata.get(name)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"'metadata.{name}' must be a string", param=f"metadata.{name}", code="invalid_type")
        return value

    def for_engine(self, model: str, *, ask_usage: bool) -> bytes:
        """The body to send on: `model` replaced, and the usage of a stream asked for where the client did not."""
        fields: dict[str, Any] = {**self.fields, "model": model}
        if ask_usage:
            options = self._read("stream_options", dict, "an object") or {}
            fields["stream_options"] = {**options, "include_usage": True}
        return _encode(fields)


def _parse_fields(raw: bytes) -> Fields:
    try:
        return _decode_fields(raw)
    except msgspec.ValidationError:
        raise BadRequest("the request body must be a JSON object", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}", code="invalid_json") from None


def _decode_field(name: str, raw: msgspec.Raw) -> Any:
    try:
        return _decode_any(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"'{name}' cannot be read: {error}", param=name, code="invalid_json") from None


def _check_messages(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise BadRequest(f"'{name}' must be an array", param=name, code="invalid_type")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadRequest(f"'{name}[{index}]' must be an object", param=f"{name}.{index}", code="invalid_type")
        if not isinstance(message.get("role"), str):
            raise BadRequest(
                f"'{name}[{index}].role' must be a string",
                param=f"{name}.{index}.role",
                code="missing_required_parameter",
            )
    return value


async def read_body(receive: Receive, content_length: int | None, limit: int) -> bytes:
    """The whole request body.

    Raises BodyTooLarge over `limit` bytes, before reading where the length is told, and ClientGone when no more comes.
    """
    if content_length is not None and content_length > limit:
        raise _too_large(limit)
    message = await _next(receive)
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts, size = [body], len(body)
    while message.get("more_body", False):
        message = await _next(receive)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit} bytes")
