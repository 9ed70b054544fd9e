"""From imported cases to the next answer, by itself, on the real vLLM: nobody asks for anything in between."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.environment import ROOT
from bench.processes import Child, free_port
from configs.embedded import holdout
from tests.endpoint.conftest import Server

pytestmark = [pytest.mark.slow, pytest.mark.alone]

AGENT = "parcel-desk"
CASES = 150
LIMIT_S = 180.0
SEEN_S = 5.0
"""after the job's end: another process promotes, and the endpoint looks at the registry twice a second"""
USERS_TEXT = {"role": "user", "content": "i hereby ask to be reimbursed in full for order 88315."}


@pytest.fixture
def learning(tmp_path: Path) -> Iterator[Server]:
    """A server that looks for cases each second, and lets the gate's verdict stand where no user rewards."""
    port = free_port()
    settings = {
        "LORADOCK_HOME": str(tmp_path / "home"),
        "LORADOCK_PORT": str(port),
        "LORADOCK_DEMO": "false",
        "LORADOCK_TRAINING__POLL_S": "1",
        "LORADOCK_TRAINING__COOLDOWN_S": "0",
        "LORADOCK_TRAINING__CANARY_TIMEOUT_S": "0",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORADOCK_")}
    command = [sys.executable, "-m", "serving.cli", "serve"]
    with Child(command, tmp_path / "log", env=kept | settings, cwd=ROOT) as child:
        server = Server(f"http://127.0.0.1:{port}", tmp_path / "home", child)
        server.wait_ready()
        yield server


def loradock(server: Server, *arguments: str) -> str:
    """What a command prints on the server's home."""
    settings = {"LORADOCK_HOME": str(server.home), "LORADOCK_PORT": server.url.rpartition(":")[2]}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORADOCK_")}
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", *arguments],
        env=kept | settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def demo(file: Path) -> Path:
    """Conversations of a desk that names what a customer wants."""
    with holdout("support").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    labels = sorted({row["label"] for row in rows})[:6]
    rows = [row for row in rows if row["label"] in labels]
    random.Random(1).shuffle(rows)
    with file.open("w", encoding="utf-8") as stream:
        for row in rows[:CASES]:
            answer = {"role": "assistant", "content": row["label"]}
            stream.write(json.dumps({"messages": [{"role": "user", "content": row["text"]}, answer]}) + "\n")
    return file


def answered_by(server: Server) -> str:
    body = {"model": f"auto:{AGENT}", "messages": [USERS_TEXT], "max_tokens": 8}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).headers["x-loradock-adapter"]


@pytest.mark.timeout(900)
def test_imported_cases_become_the_next_answer_by_themselves(learning: Server, tmp_path: Path) -> None:
    assert answered_by(learning) == "none"
    began = time.monotonic()
    loradock(learning, "cases", "import", str(demo(tmp_path / "demo.jsonl")), "--agent", AGENT, "--format", "messages")
    ended = None
    while (adapter := answered_by(learning)) == "none":
        jobs = learning.get("/v1/fine_tuning/jobs").json()["data"]
        if ended is None and jobs and jobs[0]["status"] in {"succeeded", "failed", "cancelled"}:
            ended = time.monotonic()
        assert ended is None or time.monotonic() - ended < SEEN_S, jobs
        assert time.monotonic() - began < 3 * LIMIT_S, jobs
        time.sleep(0.2 if ended else 2)
    took_s = time.monotonic() - began
    (job,) = json.loads(loradock(learning, "train", "jobs", "--json"))["data"]
    assert (job["origin"], job["adapter"], job["promoted"]) == ("trigger", adapter, True)
    joined = learning.get("/v1/training/status").json()
    assert (joined["running"], joined["job"]) == (False, job["id"])
    assert took_s < LIMIT_S
