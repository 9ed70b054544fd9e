"""Jobs, events and files as plain documents, for HTTP and for `--json`. Times are ISO 8601 in UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from training.jobs.files import StoredFile
from training.jobs.model import Job, JobEvent, TriggerView, WorkerView


def job_document(job: Job, position: int | None = None) -> dict[str, Any]:
    """A job. `position` is its place in the queue."""
    result = job.result or {}
    return {
        "id": job.id,
        "agent": job.agent,
        "source": job.source,
        "model": job.request.model or job.progress.get("base", {}).get("name") or job.request.base,
        "state": job.state.value,
        "cancelling": job.cancelling,
        "detail": job.detail,
        "priority": job.priority.name,
        "position": position,
        "origin": job.request.origin,
        "reason": job.request.reason,
        "attempts": job.attempts,
        "host": job.host,
        "gpus": list(job.gpus),
        "dataset": job.progress.get("dataset"),
        "base": job.progress.get("base", {}).get("name"),
        "adapter": result.get("adapter") or job.progress.get("version", {}).get("engine_name"),
        "gate": _gate(job),
        "promoted": result.get("promoted", False),
        "rolled_back": result.get("rolled_back", False),
        "error": None if job.error is None else {"code": job.error_code, "message": job.error},
        "overrides": dict(job.request.overrides),
        "learning_rate_multiplier": job.request.learning_rate_multiplier,
        "metadata": dict(job.request.metadata),
        "measures": job.progress.get("train", {}).get("measures"),
        "seconds": round(job.seconds, 3),
        "cost_usd": round(job.cost_usd, 6),
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
    }


def outcome_document(job: Job) -> dict[str, Any]:
    """What `train run --wait` prints of a job that has ended."""
    result = job.result or {}
    return {
        "job": job.id,
        "version": result.get("version"),
        "gate": result.get("gate") or {"passed": False},
        "promoted": result.get("promoted", False),
        "seconds": round(job.seconds, 3),
        "cost_usd": round(job.cost_usd, 6),
    }


def event_document(event: JobEvent) -> dict[str, Any]:
    """An event."""
    return {
        "id": event.id,
        "job": event.job,
        "at": _time(event.at),
        "level": event.level,
        "message": event.message,
        "data": dict(event.data),
    }


def file_document(file: StoredFile) -> dict[str, Any]:
    """An uploaded file."""
    return {
        "id": file.id,
        "filename": file.filename,
        "purpose": file.purpose,
        "bytes": file.bytes,
        "created_at": _time(file.created_at),
    }


def worker_document(worker: WorkerView) -> dict[str, Any]:
    """A worker."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "endpoint": worker.endpoint,
        "seen_at": _time(worker.seen_at),
    }


def trigger_document(view: TriggerView) -> dict[str, Any]:
    """A decision of the triggers."""
    return {
        "agent": view.agent,
        "action": view.action,
        "reason": view.reason,
        "detail": view.detail,
        "job": view.job,
        "first_at": _time(view.first_at),
        "last_at": _time(view.last_at),
    }


def _gate(job: Job) -> dict[str, Any] | None:
    kept = job.progress.get("gate")
    return None if kept is None else {"passed": kept["passed"], "text": kept["text"]}


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
