"""The gate: whether a trained adapter may serve, and how it takes over.

Lifecycle: `Judge(EndpointClient(url)).gate(...)` asks candidate, champion and base the frozen holdout through the
running endpoint and returns a `GateReport`. Imports no torch: the models answer where they serve.
"""

from training.gate.endpoint import EndpointClient
from training.gate.errors import EndpointFailed, GateError, RowsInvalid
from training.gate.judge import Judge
from training.gate.report import GateReport
from training.gate.template import TemplateRecord, record_template

__all__ = [
    "EndpointClient",
    "EndpointFailed",
    "GateError",
    "GateReport",
    "Judge",
    "RowsInvalid",
    "TemplateRecord",
    "record_template",
]
