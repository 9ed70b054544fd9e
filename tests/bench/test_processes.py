import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.environment import ROOT
from bench.processes import Child, ChildFailed, started_with

linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); time.sleep(60)"
BUSY = """
import time
print('up', flush=True)
while time.process_time() < 0.3: pass
print('done', flush=True)
time.sleep(60)
"""


def python(code: str, tmp_path: Path, mark: str = "") -> Child:
    env = {"PATH": os.environ["PATH"], "MARK": mark}
    return Child([sys.executable, "-c", code], tmp_path / "child.log", env, announces=True)


def assert_gone(mark: str) -> None:
    deadline = time.monotonic() + 5  # a killed process is gone once the kernel has come to it
    while started_with(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started_with(mark) == []


@linux
def test_leaving_ends_the_process_and_its_children(tmp_path: Path) -> None:
    mark = f"mark-{time.monotonic_ns()}"
    with python(PARENT, tmp_path, mark) as child:
        assert child.first_line() == "up"
        assert len(started_with(mark)) == 2
    assert not child.running()
    assert_gone(mark)


@linux
def test_a_bench_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    mark = f"mark-{time.monotonic_ns()}"
    bench = f"""
import asyncio, sys
from pathlib import Path
from bench.processes import Child
async def main():
    command, log = [sys.executable, '-c', {SLEEP!r}], Path({str(tmp_path / "log")!r})
    with Child(command, log, {{'MARK': {mark!r}}}, announces=True) as child:
        print(child.first_line(), flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", bench], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    process.stdout.close()
    assert_gone(mark)


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    with python(DEAF, tmp_path) as child:
        child.first_line()
        assert child.stop(signal.SIGTERM, timeout_s=0.2) >= 0.2
        assert not child.running()


def test_a_process_that_dies_while_starting_shows_its_log(tmp_path: Path) -> None:
    child = python("raise SystemExit('no such model')", tmp_path)
    with child, pytest.raises(ChildFailed, match="no such model"):
        child.first_line()


@linux
def test_processor_time_is_that_of_the_process(tmp_path: Path) -> None:
    with python(BUSY, tmp_path) as child:
        child.first_line()
        child.first_line()
        spent = child.cpu_seconds()
        assert spent is not None
        assert 0.25 <= spent < 2.0


@linux
def test_processes_are_found_by_their_environment(tmp_path: Path) -> None:
    mark = f"mark-{time.monotonic_ns()}"
    with python(SLEEP, tmp_path, mark) as child:
        child.first_line()
        assert started_with(mark) == [child.pid]
    assert started_with(mark) == []
