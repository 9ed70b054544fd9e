"""The answer's body: `model` becomes what the client sent, and usage is read on the way through.

Only whole server-sent events are passed on, so that a name is never cut by the network; nothing else is held back.
"""

from __future__ import annotations

import re

import msgspec

from serving.errors import EngineUnavailable

MAX_EVENT_BYTES = 16 << 20
_DONE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
_MODEL = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.)*)"')
_EVENT_END = re.compile(rb"\r?\n\r?\n")


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request, as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _UsageHolder(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()
    choices: list[msgspec.Raw] = []
    response: msgspec.Raw = msgspec.Raw()


_decode_holder = msgspec.json.Decoder(_UsageHolder).decode


class _AnyUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


_decode_usage = msgspec.json.Decoder(_AnyUsage | None).decode


class ModelRewriter:
    """Writes `public` wherever the engine named its model.

    The engine is expected to call it `engine_model`; where it does not, its spelling is learned from its first answer.
    """

    __slots__ = ("_expected", "_new", "_old")

    def __init__(self, public: str, engine_model: str) -> None:
        self._new = b'"model":' + msgspec.json.encode(public)
        self._expected = msgspec.json.encode(engine_model)[1:-1]
        self._old: bytes | None = None

    def rewrite(self, data: bytes) -> bytes:
        """`data` with the model's name replaced. Text inside JSON strings is safe: its quotes are escaped."""
        if self._old is None:
            self._old = self._find(data)
        return data if self._old is None else data.replace(self._old, self._new)

    def _find(self, data: bytes) -> bytes | None:
        # An answer may echo other fields called `model`, as a request's metadata, before its own.
        found = list(_MODEL.finditer(data))
        match = next((match for match in found if match[1] == self._expected), found[0] if found else None)
        return match[0] if match else None


class StreamRewriter:
    """One server-sent event stream on its way to the client.

    With `drop_usage` the extra chunk that carries only the usage, which loradock asked for, does not reach the client.
    """

    __slots__ = ("_drop_usage", "_model", "_rest", "done", "usage")

    def __init__(self, public_model: str, engine_model: str, *, drop_usage: bool) -> None:
        self._model = ModelRewriter(public_model, engine_model)
        self._drop_usage = drop_usage
        self._rest = b""
        self.usage: Usage | None = None
        self.done = False

    def feed(self, chunk: bytes) -> bytes:
        """The whole events that `chunk` completes, rewritten; empty when none."""
        data = self._rest + chunk if self._rest else chunk
        if data.endswith(b"\n\n"):
            self._rest = b""
        else:
            end = data.rfind(b"\n\n") + 2
            if end == 1:
                crlf = data.rfind(b"\r\n\r\n")
                end = crlf + 4 if crlf >= 0 else 0
            self._rest = data[end:]
            if len(self._rest) > MAX_EVENT_BYTES:
                raise EngineUnavailable(f"the engine sent {MAX_EVENT_BYTES} bytes without ending an event")
            data = data[:end]
            if not data:
                return b""
        self._look_for_done(data)
        if b'"usage":' in data:
            data = self._take_usage(data)
        return self._model.rewrite(data)

    def finish(self) -> bytes:
        """What is left when the stream ends without a final empty line."""
        rest, self._rest = self._rest, b""
        self._look_for_done(rest)
        return self._model.rewrite(rest)

    def _look_for_done(self, data: bytes) -> None:
        # The plain search first: it is the cheaper one, and few pieces of a stream are the last.
        if b"[DONE]" in data and _DONE.search(data):
            self.done = True

    def _take_usage(self, data: bytes) -> bytes:
        kept = []
        start = 0
        for match in _EVENT_END.finditer(data):
            event = data[start : match.end()]
            start = match.end()
            if b'"usage":' in event and self._read_event(event) and self._drop_usage:
                continue
            kept.append(event)
        kept.append(data[start:])
        return b"".join(kept)

    def _read_event(self, event: bytes) -> bool:
        """Note the usage in `event`; whether the event carries nothing else."""
        position = event.find(b"data:")
        try:
            holder = _decode_holder(event[position + 5 :].strip()) if position >= 0 else None
            usage = None if holder is None else usage_of(holder)
        except msgspec.DecodeError:
            return False
        if usage is not None:
            self.usage = usage
        return holder is not None and usage is not None and not holder.choices and not holder.response


def usage_of(holder: _UsageHolder) -> Usage | None:
    """Usage of a chat, completion, embedding or response object."""
    raw = holder.usage or (_decode_holder(holder.response).usage if holder.response else holder.response)
    if not raw:
        return None
    usage = _decode_usage(raw)
    if usage is None:
        return None
    return Usage(usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens)


def read_usage(body: bytes) -> Usage | None:
    """Usage of a whole answer, None where it has none or is no JSON object."""
    try:
        return usage_of(_decode_holder(body))
    except msgspec.DecodeError:
        return None
