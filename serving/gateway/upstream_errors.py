"""What an engine reports as an error, in OpenAI's envelope and codes."""

from __future__ import annotations

import msgspec

from serving.errors import BadRequest, EngineUnavailable, NotFound, Overloaded, ServingError
from serving.gateway.body import PROMPT_FIELD

_REFUSED_KEY = frozenset({401, 403, 407})
_LATER: dict[int, type[ServingError]] = {429: Overloaded, 503: EngineUnavailable}
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


def from_engine(status: int, body: bytes, path: str, *, adapter: bool, retry_after: str | None = None) -> ServingError:
    """The engine's error answer as ours; the text for people stays the engine's.

    A prompt past the context is 400 `context_length_exceeded` on the prompt's field, as OpenAI reports it. A 404 for
    an `adapter` means that the engine lost what it held a moment ago: the client may try again. A refused key is the
    operator's fault and not the client's, and what an upstream says about that key is not for the client.
    """
    if status in _REFUSED_KEY:
        return ServingError("the upstream refused the server's credentials", status=502, code="upstream_refused")
    error = _read(body)
    message = error.message or f"the engine answered {status}"
    retry_after_s = float(retry_after) if retry_after and retry_after.isdecimal() else None
    if status == 404:
        return _not_found(error, message, path, adapter)
    if status in _LATER:
        return _LATER[status](message, retry_after_s=retry_after_s)
    if not 400 <= status < 500:
        code = _code(error) or "engine_error"
        return ServingError(message, param=error.param, code=code, status=502 if status < 400 else status)
    if error.param in _PROMPT_TOO_LONG or error.code == "context_length_exceeded":
        return BadRequest(message, param=PROMPT_FIELD[path], code="context_length_exceeded")
    return BadRequest(message, param=error.param, code=_code(error), status=status)


def _not_found(error: _Error, message: str, path: str, adapter: bool) -> ServingError:
    if error.is_bare:
        return NotFound(f"the engine behind this model does not offer {path}", code="unknown_url")
    if adapter:
        return EngineUnavailable(f"the engine does not have the model at the moment: {message}", retry_after_s=1)
    return NotFound(message, param=error.param, code=_code(error))


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
