"""Why an export ends without a model.

ExportError             one line for a person
├── ExportRefused       this adapter, base or destination cannot be exported so; nothing was begun
└── TooMuchLost         the exported model answers worse than the adapter did; carries the report of the check
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.export.check import LossReport


class ExportError(Exception):
    """The export failed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())


class ExportRefused(ExportError):
    """It cannot be done for these parts."""


class TooMuchLost(ExportError):
    """More was lost than is allowed."""

    def __init__(self, message: str, report: LossReport) -> None:
        super().__init__(message)
        self.report = report
