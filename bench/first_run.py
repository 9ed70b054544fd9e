"""How long a newcomer waits: from a fresh clone with empty caches to the first routed answer, and at the second start.

    python -m bench.first_run [--out bench/results/first_run.json]

Clones the committed state of this checkout into a temporary folder and runs `make serve` there, as a user would, with
caches and temporary files of its own. pip's configuration (which index to ask) is the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.environment import ROOT
from bench.processes import Child, ChildFailed, free_port, kill, started_with
from bench.report import Bar, publish, result

MODEL = "support-agent"
TASK = "Classify this ticket: I was charged twice for my March invoice and want the second payment back."
FIRST_LIMIT_S = 8 * 60.0
SECOND_LIMIT_S = 75.0
GIVE_UP_S = 20 * 60.0
POLL_S = 0.25
STOP_TIMEOUT_S = 60.0
CACHES = {
    "PIP_CACHE_DIR": "pip",
    "UV_CACHE_DIR": "uv",
    "XDG_CACHE_HOME": "cache",
    "HF_HOME": "hf",
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TMPDIR": "tmp",
}
NOT_INHERITED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ENGINE", "VENV")


@dataclass(frozen=True, slots=True)
class Start:
    """One `make serve`. Seconds from its start; `left_behind` counts processes that outlived its end."""

    listening_s: float | None
    answered_s: float
    answer: Mapping[str, str]
    stopped_s: float
    left_behind: int

    def as_json(self) -> dict[str, Any]:
        """The start as results hold it."""
        return {
            "first_health_answer_s": self.listening_s,
            "first_routed_answer_s": self.answered_s,
            "answer": dict(self.answer),
            "stop_s": self.stopped_s,
            "processes_left_behind": self.left_behind,
        }


def clone(folder: Path) -> Path:
    """The committed state of this checkout, in a new folder."""
    target = folder / "loradock"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)], check=True)
    return target


def newcomers_environment(folder: Path, port: int) -> dict[str, str]:
    """This environment without what belongs to this checkout, with empty caches under `folder`."""
    env = {
        key: value for key, value in os.environ.items() if not key.startswith("LORADOCK_") and key not in NOT_INHERITED
    }
    if venv := os.environ.get("VIRTUAL_ENV"):
        env["PATH"] = os.pathsep.join(part for part in env["PATH"].split(os.pathsep) if not part.startswith(venv))
    for variable, name in CACHES.items():
        (folder / name).mkdir(exist_ok=True)
        env[variable] = str(folder / name)
    return env | {"LORADOCK_PORT": str(port)}


def start(checkout: Path, log: Path, env: Mapping[str, str]) -> Start:
    """Run `make serve` until it has answered a routed request, then Ctrl-C. Raises ChildFailed."""
    url = f"http://127.0.0.1:{env['LORADOCK_PORT']}"
    began = time.monotonic()
    with Child(["make", "serve"], log, env, cwd=checkout) as serve:
        listening: float | None = None
        while (headers := routed_answer(url)) is None:
            elapsed = time.monotonic() - began
            if not serve.running():
                raise serve.failed(f"ended after {elapsed:.0f} s")
            if elapsed > GIVE_UP_S:
                raise serve.failed(f"gave no routed answer in {GIVE_UP_S:.0f} s")
            if listening is None and healthy(url):
                listening = round(elapsed, 1)
            time.sleep(POLL_S)
        answered = round(time.monotonic() - began, 1)
        stopped = serve.stop(signal.SIGINT, STOP_TIMEOUT_S)
        left = started_with(env["TMPDIR"])
    kept = {name: value for name, value in headers.items() if name.startswith("x-loradock-")}
    return Start(listening, answered, kept, round(stopped, 1), len(left))


def routed_answer(url: str) -> dict[str, str] | None:
    """The headers (lower case) of an answer by an adapter, or None while there is none."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": TASK}], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            json.load(answer)
    except (OSError, HTTPException):  # nobody listens yet, or 503 while the engine starts
        return None
    return headers if headers.get("x-loradock-adapter", "none") != "none" else None


def healthy(url: str) -> bool:
    """Whether the endpoint is up, engine or not."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, HTTPException):
        return False


def table(starts: Mapping[str, Start]) -> Table:
    """The two starts, a line each."""
    drawn = Table(title="make serve", title_justify="left")
    for heading in ("start", "first /health", "first routed answer", "stopped in", "left behind"):
        drawn.add_column(heading, justify="left" if heading == "start" else "right")
    for name, one in starts.items():
        listening = "-" if one.listening_s is None else f"{one.listening_s:.1f} s"
        cells = (f"{one.answered_s:.1f} s", f"{one.stopped_s:.1f} s", str(one.left_behind))
        drawn.add_row(name, listening, *cells)
    return drawn


def run(out: Path | None) -> None:
    """Clone, start twice, publish."""
    status = Console(file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="loradock-first-") as name:
        folder = Path(name)
        checkout = clone(folder)
        env = newcomers_environment(folder, free_port())
        starts: dict[str, Start] = {}
        for attempt in ("first", "second"):
            status.print(f"{attempt} start: make serve ...")
            try:
                starts[attempt] = start(checkout, folder / f"make-serve-{attempt}.log", env)
            finally:
                kill(started_with(env["TMPDIR"]))
    bars = [
        Bar("first routed answer, fresh clone", starts["first"].answered_s, FIRST_LIMIT_S, "s", "at most"),
        Bar("first routed answer, second start", starts["second"].answered_s, SECOND_LIMIT_S, "s", "at most"),
        Bar("processes left behind", sum(float(one.left_behind) for one in starts.values()), 0.0, "", "at most"),
    ]
    measured = {attempt: one.as_json() for attempt, one in starts.items()}
    publish(result("first_run", {"model": MODEL, "caches": "empty"}, measured, bars), [table(starts)], out)


def main() -> None:
    """Parse arguments and run; a `make serve` that fails is exit code 1, a bar that is missed is not."""
    parser = argparse.ArgumentParser(prog="bench.first_run", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the clone go too
    try:
        run(arguments.out)
    except ChildFailed as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
