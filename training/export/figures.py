"""Figures of a training job as a model card shows them: the trainer's measures, and the gate's scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TRAINING = {
    "rows": "cases",
    "steps": "steps",
    "tokens": "tokens",
    "loss": "loss",
    "validation_loss": "loss on validation cases",
    "validation_exact": "exact answers on validation cases",
    "alpha": "alpha",
    "training_seconds": "seconds",
    "tokens_per_second": "tokens a second",
    "peak_memory_bytes": "peak memory, bytes",
}
"""what of a trainer's result is told, and how"""
ROLES = ("candidate", "champion", "base")


def job_figures(measures: Mapping[str, Any] | None, gate: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Tables by title, for what there is of a trainer's result and a gate's report."""
    tables: dict[str, dict[str, Any]] = {}
    if measures:
        tables["Training"] = {label: measures[key] for key, label in TRAINING.items() if measures.get(key) is not None}
    if gate and (rows := dict(_gate_rows(gate))):
        tables["Gate"] = rows
    return {title: rows for title, rows in tables.items() if rows}


def _gate_rows(gate: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if gate.get("verdict"):
        yield "verdict", gate["verdict"]
    for role in ROLES:
        for name, value in (gate.get(role) or {}).items():
            if isinstance(value, int | float):
                yield f"{role}: {name.replace('_', ' ')}", value
    if bootstrap := gate.get("bootstrap"):
        yield "gain, lower bound", bootstrap.get("lower")
