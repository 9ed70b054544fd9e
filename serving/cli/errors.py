"""How commands fail. Every message is one line for a person.

CliError            exit code 1
├── NoServer        nothing answers at the server's address
├── ApiError        the server answered with an error; carries its envelope
└── Misuse          exit code 2: an argument or a setting is wrong
"""

from __future__ import annotations

from typing import Any


class CliError(Exception):
    """The command failed."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())

    def envelope(self) -> dict[str, Any]:
        """The error as `--json` prints it: OpenAI's envelope."""
        return {"error": {"message": self.message, "type": "cli_error", "param": None, "code": None}}


class NoServer(CliError):
    """Nothing answers."""


class ApiError(CliError):
    """The server refused; `error` is what its envelope holds, `status` the HTTP status (0 within a stream)."""

    def __init__(self, error: dict[str, Any], status: int) -> None:
        super().__init__(str(error.get("message") or f"the server answered {status}"))
        self.error = error
        self.status = status

    def envelope(self) -> dict[str, Any]:
        """The server's own."""
        return {"error": self.error}


class Misuse(CliError):
    """An argument or a setting is wrong."""

    exit_code = 2
