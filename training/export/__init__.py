"""Adapters for others: the PEFT folder with a model card, the merged model in 16 bits, GGUF for llama.cpp.

Lifecycle: `export(registry, ExportOrder(...), progress)` merges tensor by tensor into a folder beside the destination,
reads a GGUF file back, measures what was lost (`check_loss`: the exported model against the adapter in peft on the
unmerged base), writes the card, and moves the folder into place; above the limit nothing appears. Errors are those of
`training.export.errors` and the registry's.
"""

from training.export.cases import CaseSet, ExportCase, conversation_cases, demo_cases, general_cases, read_cases
from training.export.check import LIMIT, LossReport, check_loss
from training.export.errors import ExportError, ExportRefused, TooMuchLost
from training.export.exporter import FORMATS, ExportOrder, ExportReport, Format, export
from training.export.figures import job_figures

__all__ = [
    "FORMATS",
    "LIMIT",
    "CaseSet",
    "ExportCase",
    "ExportError",
    "ExportOrder",
    "ExportRefused",
    "ExportReport",
    "Format",
    "LossReport",
    "TooMuchLost",
    "check_loss",
    "conversation_cases",
    "demo_cases",
    "export",
    "general_cases",
    "job_figures",
    "read_cases",
]
