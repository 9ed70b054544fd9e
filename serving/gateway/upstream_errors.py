"""What an engine reports as an error, in OpenAI's envelope and codes."""

from __future__ import annotations

import msgspec

from serving.errors import BadRequest, EngineUnavailable, NotFound, Overloaded, ServingError
from serving.gateway.body import PROMPT_FIELD

_PROMPT_TOO_LONG = frozenset({"input_tokens", "input_text"})
"""vLLM's names for the parameter at fault when the prompt does not fit"""


class _Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None

    @property
    def is_bare(self) -> bool:
        """Whether the engine's server answered, and no handler of its API."""
        return not self.message and self.type is None


class _Envelope(msgspec.Struct):
    error: _Error | str | None = None
    message: str | None = None


_decode = msgspec.json.Decoder(_Envelope, strict=False).decode


def from_engine(status: int, body: bytes, path: str) -> ServingError:
    """The engine's error answer as ours; the text for people stays the engine's.

    A prompt past the context is 400 `context_length_exceeded` on the prompt's field, as OpenAI reports it. A 404 means
    that the engine lost an adapter which it held a moment ago: the client may try again.
    """
    error = _read(body)
    message = error.message or f"the engine answered {status}"
    if status == 404:
        if error.is_bare:
            return NotFound(f"the engine behind this model does not offer {path}", code="unknown_url")
        return EngineUnavailable(f"the engine does not have the model at the moment: {message}", retry_after_s=1)
    if status == 429:
        return Overloaded(message)
    if not 400 <= status < 500:
        return ServingError(message, param=error.param, code=_code(error) or "engine_error", status=status)
    if error.param in _PROMPT_TOO_LONG or error.code == "context_length_exceeded":
        return BadRequest(message, param=PROMPT_FIELD[path], code="context_length_exceeded")
    return BadRequest(message, param=error.param, code=_code(error), status=status)


def _read(body: bytes) -> _Error:
    try:
        envelope = _decode(body)
    except msgspec.DecodeError:
        return _Error()
    if isinstance(envelope.error, _Error):
        return envelope.error
    return _Error(message=envelope.error or envelope.message or "")


def _code(error: _Error) -> str | None:
    return error.code if isinstance(error.code, str) and not error.code.isdigit() else None
