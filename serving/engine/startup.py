"""How far an engine's start is, and why one failed, read from its log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from serving.engine.worker import protocol

TAIL_BYTES = 1 << 16
MAX_DETAIL = 500


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of the start: the words that tell it in the log, how it is called, how much is done when it begins."""

    marker: bytes
    detail: str
    progress: float


PHASES = (
    Phase((protocol.PHASE + protocol.IMPORTING).encode(), "importing vLLM", 0.02),
    Phase((protocol.PHASE + protocol.CONFIGURING).encode(), "reading the model's configuration", 0.35),
    Phase((protocol.PHASE + protocol.STARTING_CORE).encode(), "starting the engine core", 0.55),
    Phase(b"Starting to load model", "loading weights", 0.65),
    Phase(b"KV cache size", "profiling and warming up", 0.8),
    Phase(b"Capturing CUDA graph", "capturing CUDA graphs", 0.85),
    Phase((protocol.PHASE + protocol.STARTING_SERVER).encode(), "starting the server", 0.93),
)

EXCEPTION = re.compile(r"\b(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b: (?P<message>.+)")
CONSEQUENCE = re.compile(r"Engine core initialization failed|EngineCore encountered an issue|cancelled")
USAGE = re.compile(r"^.*?: error: (?P<message>.+)$")


class LogReader:
    """Reads what is new in a growing log and tells the phase of the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._begin = self._offset
        self._rest = b""
        self.phase = PHASES[0]

    def advance(self) -> Phase:
        """The latest phase; never an earlier one than before."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            new = log.read()
        self._offset += len(new)
        text = self._rest + new
        self._rest = text[-256:]
        for phase in PHASES:
            if phase.progress > self.phase.progress and phase.marker in text:
                self.phase = phase
        return self.phase

    def explain(self) -> str:
        """Why this start ended, on one line."""
        with self._path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(self._begin, size - TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return explain(lines)


def explain(lines: list[str]) -> str:
    """The line of a log that tells why a process ended: our own, argparse's, the last exception's, or the last one."""
    for line in reversed(lines):
        if protocol.ERROR in line:
            return shorten(line.partition(protocol.ERROR)[2])
        if usage := USAGE.match(line):
            return shorten(usage["message"])
    for line in reversed(lines):
        if (found := EXCEPTION.search(line)) and not CONSEQUENCE.search(line):
            return shorten(found[0])
    told = [line for line in lines if line.strip()]
    return shorten(told[-1]) if told else "it wrote nothing into its log"


def shorten(text: str) -> str:
    """`text` on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL else line[: MAX_DETAIL - 1] + "…"
