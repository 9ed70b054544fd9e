"""What serving needs of the learning half, as Protocols; the composition root passes training's own in.

Answers are plain documents whose times are ISO 8601; the routes turn them into the objects of OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from router import Learnt

Document = dict[str, Any]


class TrainingJobs(Protocol):
    """The queue of training jobs. Methods wait for the database, so they are called in threads."""

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
        """Queue a job, or join the live one of the same agent and dataset."""
        ...

    def job(self, job_id: str) -> Document:
        """One job."""
        ...

    def jobs(self, *, after: str | None = None, limit: int = 20) -> Sequence[Document]:
        """Jobs, the newest first, behind the job `after`."""
        ...

    def cancel(self, job_id: str, *, actor: str) -> Document:
        """End a job; it may take its worker a moment."""
        ...

    def events(self, job_id: str) -> Sequence[Document]:
        """What happened, the newest first."""
        ...

    def checkpoints(self, job_id: str) -> Sequence[Document]:
        """Checkpoints that are kept, the newest first."""
        ...

    def status(self) -> Document:
        """How training stands now."""
        ...


class UploadedFiles(Protocol):
    """Files that clients upload. Methods wait for the disk, so they are called in threads."""

    def add_file(self, filename: str, purpose: str, owner: str, chunks: Iterable[bytes]) -> Document:
        """Store an upload. Raises OSError."""
        ...

    def file(self, file_id: str) -> Document:
        """One file."""
        ...

    def list_files(
        self, *, purpose: str | None, after: str | None, limit: int, oldest_first: bool
    ) -> Sequence[Document]:
        """Files behind the file `after`."""
        ...

    def file_path(self, file_id: str) -> Path:
        """Where a file's content lies."""
        ...

    def delete_file(self, file_id: str) -> None:
        """Delete a file that no live job needs."""
        ...


class Cases(Protocol):
    """The CaseBank. Methods wait for the database, so they are called in threads.

    An unknown case is a ResourceNotFound; with `owner`, so are those of other callers.
    """

    def feedback(
        self,
        response_id: str,
        *,
        reward: float | None,
        label: str | None,
        correction: str | None,
        source: str,
        owner: str | None,
    ) -> Document:
        """Note what an answer was worth, by any id of it; the case."""
        ...

    def case(self, case_id: str, *, owner: str | None) -> Document:
        """One case, by any id of it."""
        ...

    def cases(self, *, limit: int, after: str | None, **wanted: Any) -> Sequence[Document]:
        """Cases behind the case `after`, the newest first; `wanted` are values that their fields must have."""
        ...

    def add_case(self, case: Mapping[str, Any], *, owner: str) -> tuple[Document, bool]:
        """Store a case; what is stored, and whether it is new."""
        ...

    def delete_cases(self, *, case_id: str | None = None, user: str | None = None, session: str | None = None) -> int:
        """Remove the cases that fulfil all that is given; how many."""
        ...


class RouterLearning(Protocol):
    """What was learned for the router. Methods wait for the database and the disk, so they are called in threads."""

    def revision(self) -> int:
        """Count of the changes; a single look-up."""
        ...

    def read(self) -> Learnt:
        """All of it, as it is now."""
        ...


class Training(TrainingJobs, UploadedFiles, Protocol):
    """Both."""
