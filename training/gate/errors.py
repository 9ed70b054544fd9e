"""How judging fails. Every message is one line for a person.

GateError              the verdict cannot be reached
├── EndpointFailed     the endpoint does not answer, or answers with something else than it was asked for
└── RowsInvalid        a holdout, a suite or the general set cannot be read
"""

from __future__ import annotations


class GateError(Exception):
    """The verdict cannot be reached; a later try may."""

    def __init__(self, message: str) -> None:
        self.message = " ".join(message.split())
        super().__init__(self.message)


class EndpointFailed(GateError):
    """The endpoint does not answer, or answers with something else than it was asked for; `status` 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class RowsInvalid(GateError):
    """A holdout, a suite or the general set cannot be read."""
