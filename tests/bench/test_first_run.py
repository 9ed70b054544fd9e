import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.environment import revision
from bench.first_run import clone, newcomers_environment, routed_answer, start
from bench.processes import ChildFailed, free_port, started_with

SERVER = """
import http.server, os, subprocess, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        Handler.asked += 1
        if Handler.asked < 3:
            self.send_response(503); self.send_header("content-length", "0"); self.end_headers(); return
        self.send_response(200)
        self.send_header("X-Loradock-Adapter", "none" if Handler.asked < 5 else "support-agent@0123456789ab")
        self.send_header("content-length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *a): pass
if os.environ.get("STRAY"):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["LORADOCK_PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `make serve` is a server that needs a while to route."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "server.py").write_text(SERVER)
    (folder / "Makefile").write_text("serve:\n\t@exec python3 server.py\nbroken:\n\t@false\n")
    yield folder
    for pid in started_with(str(tmp_path / "caches")):
        os.kill(pid, 9)


def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "caches").mkdir()
    return newcomers_environment(tmp_path / "caches", free_port())


def test_a_start_lasts_until_an_adapter_has_answered(checkout: Path, tmp_path: Path) -> None:
    one = start(checkout, tmp_path / "log", environment(tmp_path))
    assert one.answer["x-loradock-adapter"] == "support-agent@0123456789ab"
    assert one.listening_s is not None
    assert 0.5 < one.answered_s < 20  # the fifth answer is the first by an adapter
    assert one.left_behind == 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_processes_that_outlive_the_server_are_counted(checkout: Path, tmp_path: Path) -> None:
    one = start(checkout, tmp_path / "log", environment(tmp_path) | {"STRAY": "1"})
    assert one.left_behind == 1


def test_a_server_that_ends_is_reported_with_its_log(checkout: Path, tmp_path: Path) -> None:
    (checkout / "Makefile").write_text("serve:\n\t@echo the disk is full && false\n")
    with pytest.raises(ChildFailed, match="the disk is full"):
        start(checkout, tmp_path / "log", environment(tmp_path))


def test_nobody_listening_is_no_answer() -> None:
    assert routed_answer(f"http://127.0.0.1:{free_port()}") is None


def test_a_newcomer_inherits_no_settings_and_no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_ENGINE", "gpu")
    monkeypatch.setenv("VIRTUAL_ENV", "/venv")
    monkeypatch.setenv("PATH", f"/venv/bin{os.pathsep}/usr/bin")
    monkeypatch.setenv("PIP_CACHE_DIR", "/warm")
    env = environment(tmp_path)
    assert {key for key in env if key.startswith("LORADOCK_")} == {"LORADOCK_PORT"}
    assert "VIRTUAL_ENV" not in env
    assert env["PATH"] == "/usr/bin"
    assert Path(env["PIP_CACHE_DIR"]).is_relative_to(tmp_path)
    assert not list(Path(env["PIP_CACHE_DIR"]).iterdir())


@pytest.mark.skipif(revision() is None, reason="needs a git checkout")
def test_the_clone_holds_what_is_committed(tmp_path: Path) -> None:
    target = clone(tmp_path)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=target, check=True, capture_output=True, text=True)
    now = revision()
    assert now
    assert head.stdout.strip() == now["commit"]
    assert not (target / ".venv").exists()
