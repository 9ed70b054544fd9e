"""Uploaded files: rows in the database, contents under `home`/files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from adapters_registry.database import Database
from training.jobs import rows
from training.jobs.errors import JobConflict, JobNotFound
from training.jobs.model import FILE, LIVE, new_id
from training.jobs.tables import FileRow, JobRow


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An uploaded file."""

    id: str
    filename: str
    purpose: str
    bytes: int
    owner: str
    created_at: datetime


class FileStore:
    """Files by id. Thread-safe; `home` is the folder of all state."""

    def __init__(self, database: Database, home: Path) -> None:
        self._database = database
        self._folder = home / "files"

    def add(self, filename: str, purpose: str, owner: str, chunks: Iterable[bytes]) -> StoredFile:
        """Store a file; its row appears when its content is whole. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file_id = new_id(FILE.rstrip("-"))
        partial, size = self._folder / f"{file_id}.part", 0
        try:
            with partial.open("wb") as file:
                for chunk in chunks:
                    size += file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._folder / file_id)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        row = FileRow(
            id=file_id, filename=filename[:255], purpose=purpose, bytes=size, owner=owner[:64], created_at=rows.now()
        )
        with self._database.write() as session:
            session.add(row)
            session.flush()
            return _stored(row)

    def get(self, file_id: str) -> StoredFile:
        """One file. Raises JobNotFound."""
        with self._database.read() as session:
            row = session.get(FileRow, file_id)
            if row is None:
                raise JobNotFound(f"no file {file_id[:80]!r}", param="file_id")
            return _stored(row)

    def path(self, file_id: str) -> Path:
        """Where its content lies. Raises JobNotFound."""
        return self._folder / self.get(file_id).id

    def list(
        self, *, purpose: str | None = None, after: str | None = None, limit: int = 100, oldest_first: bool = False
    ) -> tuple[StoredFile, ...]:
        """Files behind the file `after`, the newest first unless asked otherwise."""
        order = FileRow.id if oldest_first else FileRow.id.desc()
        statement = sa.select(FileRow).order_by(order).limit(limit)
        if purpose is not None:
            statement = statement.where(FileRow.purpose == purpose)
        if after is not None:  # ids sort by age
            statement = statement.where(FileRow.id > after if oldest_first else FileRow.id < after)
        with self._database.read() as session:
            return tuple(_stored(row) for row in session.scalars(statement))

    def delete(self, file_id: str) -> None:
        """Delete a file. Raises JobNotFound, or JobConflict while a job needs it."""
        with self._database.write() as session:
            row = session.get(FileRow, file_id)
            if row is None:
                raise JobNotFound(f"no file {file_id[:80]!r}", param="file_id")
            user = session.scalar(sa.select(JobRow.id).where(JobRow.source == file_id, JobRow.state.in_(LIVE)).limit(1))
            if user is not None:
                raise JobConflict(f"job {user} needs file {file_id}; cancel it first", param="file_id")
            session.delete(row)
        (self._folder / file_id).unlink(missing_ok=True)


def _stored(row: FileRow) -> StoredFile:
    return StoredFile(row.id, row.filename, row.purpose, row.bytes, row.owner, row.created_at)
