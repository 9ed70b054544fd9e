"""Every error a client can see, as types, and the one table that maps them to HTTP.

ServingError
├── BadRequest            400 invalid_request_error
├── Unauthorized          401 authentication_error
├── Forbidden             403 permission_error
├── NotFound              404 invalid_request_error (unknown model: code model_not_found)
├── Conflict              409 invalid_request_error
├── BodyTooLarge          413 invalid_request_error
├── Unprocessable         422 invalid_request_error
├── Overloaded            429 rate_limit_error, Retry-After
├── AdapterLoadFailed     503 server_error, the adapter cannot be loaded, the engine lives
├── EngineUnavailable     503 server_error, Retry-After
└── EngineTimeout         504 server_error

Errors of the registry are mapped by `from_registry`. Bodies follow OpenAI's envelope.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters_registry import DatabaseError
from adapters_registry.errors import LifecycleError, RegistryError, ResourceNotFound


class ServingError(Exception):
    """Base of all errors that reach a client."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: float | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.code
        self.status = status if status is not None else self.status
        self.retry_after_s = retry_after_s if retry_after_s is not None else self.retry_after_s

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers that belong to the error."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after_s)))}

    def envelope(self) -> bytes:
        """The JSON body: `{"error": {"message", "type", "param", "code"}}`."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def sse_event(self) -> bytes:
        """The same as one server-sent event, for a stream that has begun."""
        return b"data: " + self.envelope() + b"\n\n"


class BadRequest(ServingError):
    """The request is malformed."""

    status, type = 400, "invalid_request_error"


class Unauthorized(ServingError):
    """No key, or an unknown one."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(ServingError):
    """The key may not do this."""

    status, type, code = 403, "permission_error", "insufficient_permissions"


class NotFound(ServingError):
    """No such thing."""

    status, type = 404, "invalid_request_error"


class Conflict(ServingError):
    """The state of the thing does not allow this."""

    status, type = 409, "invalid_request_error"


class BodyTooLarge(ServingError):
    """The request body exceeds `max_body_bytes`."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class Unprocessable(ServingError):
    """A field is unknown, of the wrong type, or names something that cannot be used."""

    status, type = 422, "invalid_request_error"


class Overloaded(ServingError):
    """No room in the queue."""

    status, type, code, retry_after_s = 429, "rate_limit_error", "overloaded", 1.0


class AdapterLoadFailed(ServingError):
    """The engine refused the adapter; the engine lives on."""

    status, code = 503, "adapter_load_failed"


class EngineUnavailable(ServingError):
    """The engine is down, starting, or died with the request in flight."""

    status, code, retry_after_s = 503, "engine_unavailable", 5.0


class EngineTimeout(ServingError):
    """No answer, or no further piece of one, came within `request_timeout_s`."""

    status, code = 504, "engine_timeout"


def from_registry(error: RegistryError) -> ServingError:
    """The registry's errors as clients see them: 404, 409, 503, or 422 with the reason."""
    if isinstance(error, DatabaseError):
        return ServingError(error.message, code=error.code, status=503, retry_after_s=1.0)
    if isinstance(error, ResourceNotFound):
        return NotFound(error.message, param=error.param, code=error.code)
    if isinstance(error, LifecycleError):
        return Conflict(error.message, param=error.param, code=error.code)
    return Unprocessable(error.message, param=error.param, code=error.code)
