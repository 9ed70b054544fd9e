"""What the endpoint asks of training: submit, look, cancel, files. No work is done here; answers are documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.jobs.describe import event_document, file_document, job_document, trigger_document, worker_document
from training.jobs.errors import JobRefused
from training.jobs.files import FileStore
from training.jobs.model import CASEBANK, FILE, Job, JobRequest, JobState, Priority
from training.jobs.store import JobStore
from training.jobs.trainer import STATUS, read_json
from training.jobs.triggers import decisions

STATUS_FIELDS = (
    "step",
    "total_steps",
    "epoch",
    "total_epochs",
    "loss",
    "learning_rate",
    "eta_seconds",
    "started_at",
    "checkpoint_at",
    "error",
)
PURPOSE = "fine-tune"
Document = dict[str, Any]


class TrainingService:
    """Jobs and files of one database and one `home`. Thread-safe. Errors are JobError's."""

    def __init__(self, store: JobStore, files: FileStore, home: Path) -> None:
        self.store = store
        self.files = files
        self._home = home

    # -- jobs --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        *,
        agent: str,
        source: str,
        model: str,
        base: str | None,
        overrides: Mapping[str, Any],
        learning_rate_multiplier: float | None,
        metadata: Mapping[str, str],
        actor: str,
    ) -> Document:
        """Queue a job for the API, or join the live one."""
        request = JobRequest(
            agent,
            source,
            Priority[metadata.get("priority", "NORMAL").upper()],
            origin="api",
            actor=actor,
            base=base,
            model=model,
            overrides=overrides,
            learning_rate_multiplier=learning_rate_multiplier,
            metadata=metadata,
        )
        self._check_source(source)
        return self._document(self.store.submit(request))

    def _check_source(self, source: str) -> None:
        if source.startswith(FILE):
            file = self.files.get(source)
            if file.purpose != PURPOSE:
                raise JobRefused(
                    f"file {file.id} was uploaded for {file.purpose!r}, and training takes {PURPOSE!r}",
                    param="training_file",
                )
        elif not source.startswith(CASEBANK) or source == CASEBANK:
            raise JobRefused(
                f"training_file {source[:80]!r} is neither 'casebank:AGENT' nor the id of an uploaded file",
                param="training_file",
            )

    def job(self, job_id: str) -> Document:
        """One job."""
        return self._document(self.store.get(job_id))

    def jobs(self, *, after: str | None = None, limit: int = 20) -> Sequence[Document]:
        """Jobs, the newest first."""
        return [self._document(job) for job in self.store.list(after=after, limit=limit)]

    def cancel(self, job_id: str, *, actor: str) -> Document:
        """See `JobStore.cancel`."""
        return self._document(self.store.cancel(job_id, actor=actor))

    def events(self, job_id: str) -> Sequence[Document]:
        """What happened, the newest first."""
        return [event_document(event) for event in reversed(self.store.events(job_id, limit=100_000))]

    def checkpoints(self, job_id: str) -> Sequence[Document]:
        """Checkpoints that are kept, the newest first: `id`, `step`, `created_at` and the metrics known then."""
        folder = self._folder(self.store.get(job_id)) / "checkpoints"
        steps = {_step(path): path for path in folder.glob("*") if path.is_dir()} if folder.is_dir() else {}
        metrics = _metrics(folder.parent / "metrics.jsonl")
        return [
            {
                "id": f"ftckpt-{job_id.rpartition('-')[2]}-{step}",
                "job": job_id,
                "step": step,
                "created_at": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(),
                "metrics": _known_at(metrics, step),
            }
            for step, path in sorted(steps.items(), reverse=True)
            if step >= 0
        ]

    def _document(self, job: Job) -> Document:
        position = self.store.position(job.id) if job.state is JobState.QUEUED else None
        return job_document(job, position) | {"training": self.progress(job)}

    # -- how it stands -----------------------------------------------------------------------------------------------

    def status(self) -> Document:
        """The run in progress, or the latest one; live jobs; the queue; workers; each agent's latest trigger."""
        live = self.store.list(states=[JobState.RUNNING, JobState.GATING, JobState.CANARY], limit=100)
        training = [job for job in live if job.state is JobState.RUNNING]
        shown = [*training, *live, *self.store.list(limit=1)][:1]
        latest = {view.agent: view for view in reversed(decisions(self.store))}
        return (self.progress(shown[0]) if shown else self.progress(None)) | {
            "jobs": [self.progress(job) for job in live],
            "queued": len(self.store.list(states=[JobState.QUEUED], limit=1000)),
            "workers": [worker_document(worker) for worker in self.store.workers()],
            "triggers": [trigger_document(view) for view in latest.values()],
        }

    def progress(self, job: Job | None) -> Document:
        """The trainer's status of one job, with the job's own; all empty without one."""
        told = (read_json(self._folder(job) / STATUS) or {}) if job is not None else {}
        fields = {name: told.get(name) for name in STATUS_FIELDS}
        if job is None:
            return {"running": False, **fields, "job": None, "agent": None, "state": None, "detail": None}
        if job.state is JobState.FAILED:
            fields["error"] = job.error
        return {
            "running": job.state is JobState.RUNNING,
            **fields,
            "job": job.id,
            "agent": job.agent,
            "state": job.state.value,
            "detail": job.detail,
        }

    def _folder(self, job: Job) -> Path:
        return self._home / "jobs" / job.id

    # -- files -------------------------------------------------------------------------------------------------------

    def add_file(self, filename: str, purpose: str, owner: str, chunks: Iterable[bytes]) -> Document:
        """Store an upload. Raises OSError."""
        return file_document(self.files.add(filename, purpose, owner, chunks))

    def file(self, file_id: str) -> Document:
        """One file."""
        return file_document(self.files.get(file_id))

    def list_files(
        self, *, purpose: str | None, after: str | None, limit: int, oldest_first: bool
    ) -> Sequence[Document]:
        """Files, the newest first unless asked otherwise."""
        found = self.files.list(purpose=purpose, after=after, limit=limit, oldest_first=oldest_first)
        return [file_document(file) for file in found]

    def file_path(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self.files.path(file_id)

    def delete_file(self, file_id: str) -> None:
        """Delete a file that no live job needs."""
        self.files.delete(file_id)


def _step(folder: Path) -> int:
    digits = "".join(char for char in folder.name if char.isdigit())
    return int(digits) if digits else -1


def _metrics(file: Path) -> list[Document]:
    """The lines of the run's metrics, without one that is being written."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            found.append(values)
    return found


def _known_at(metrics: Sequence[Document], step: int) -> Document:
    known: Document = {}
    for values in metrics:
        if int(values.get("step") or 0) <= step:
            known |= {key: value for key, value in values.items() if isinstance(value, (int, float))}
    return known
