"""`training-status.json`: how far a run is, for whoever looks."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

FILE = "training-status.json"
State = Literal["starting", "running", "stopped", "done", "failed"]


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """One moment of a run. Times are ISO 8601 in UTC; the loss is the smoothed one, in nats a counted token."""

    state: State = "starting"
    running: bool = True
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    total_epochs: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    eta_seconds: float | None = None
    started_at: str | None = None
    checkpoint_at: str | None = None
    error: str | None = None


def read_status(folder: Path) -> TrainingStatus | None:
    """The status of the run in `folder`; None where no run has begun."""
    try:
        values = json.loads((folder / FILE).read_bytes())
    except FileNotFoundError:
        return None
    known = {field.name for field in dataclasses.fields(TrainingStatus)}
    return TrainingStatus(**{key: value for key, value in values.items() if key in known})


def now() -> str:
    """This moment, as status files write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(file: Path, value: Any) -> None:
    """Replace `file` in one step, so that a reader sees the old content or the new."""
    temporary = file.with_name(f"{file.name}.part")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(file)


class StatusFile:
    """Keeps the status of a run on disk, at most `per_second` times a second unless the state changes."""

    def __init__(self, folder: Path, *, per_second: float = 4.0, owner: bool = True) -> None:
        self._file = folder / FILE
        self._pause = 1 / per_second
        self._written = float("-inf")
        self._owner = owner
        before = read_status(folder) if owner else None
        started = before.started_at if before and before.started_at else now()
        self.status = TrainingStatus(started_at=started, checkpoint_at=before.checkpoint_at if before else None)

    def update(self, **changes: Any) -> None:
        """Note `changes`; they reach the disk at once if the state is among them, else when it is time."""
        before, self.status = self.status, dataclasses.replace(self.status, **changes)
        moment = time.monotonic()
        due = self.status.state != before.state or moment - self._written >= self._pause
        if self._owner and due:
            self._written = moment
            self._write()

    def end(self, state: State, error: str | None = None) -> None:
        """The last word of this process."""
        done = {"eta_seconds": 0.0} if state == "done" else {"eta_seconds": None}
        self.status = dataclasses.replace(self.status, state=state, running=False, error=error, **done)
        if self._owner:
            self._write()

    def _write(self) -> None:
        try:
            write_json(self._file, dataclasses.asdict(self.status))
        except OSError:  # a full disk must not end the run for want of its status
            self._file.with_name(f"{self._file.name}.part").unlink(missing_ok=True)
