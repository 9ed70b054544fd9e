from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import typer

from serving.cli.app import COMMANDS, build_app
from tests.serving.cli.conftest import Cli

COMMAND = (sys.executable, "-m", "serving.cli")
HEAVY = ("torch", "transformers", "vllm", "sklearn", "fastapi", "sqlalchemy", "httpx", "numpy")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    # Processor time of the best of three: the first may still read files from a cold disk.
    assert min(_help_cpu_s() for _ in range(3)) < 0.6
    assert _loaded(HEAVY, "") == "[]"
    assert _loaded((*HEAVY, "pydantic"), "()") == "[]"


def _loaded(modules: Sequence[str], wanted: str) -> str:
    """Those of `modules` that building the app loads; `wanted` is source."""
    build = f"import sys, serving.cli.app as app; app.build_app({wanted})"
    probe = f"{build}; print([name for name in {modules!r} if name in sys.modules])"
    return subprocess.run((sys.executable, "-c", probe), capture_output=True, text=True, check=True).stdout.strip()


def test_commands_are_listed_as_they_tell_themselves() -> None:
    listed, loaded = (typer.main.get_command(build_app(wanted)).commands for wanted in ((), COMMANDS))
    assert listed.keys() == loaded.keys()
    for name, command in loaded.items():
        assert listed[name].help == (command.help or "").splitlines()[0]


def _help_cpu_s() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run((*COMMAND, "--help"), capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "adapters" in done.stdout
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def test_version(cli: Cli) -> None:
    result = cli("--version")
    assert (result.code, result.out.split()[0]) == (0, "loradock")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["serv"], "Did you mean 'serve'"),
        (["adapters", "add", "x"], "Missing argument 'SOURCE'"),
        (["models", "--nonsense"], "--nonsense"),
        (["bench", "--requests", "many"], "--requests"),
        (["bench", "--concurrency", "0"], "--concurrency"),
        (["serve", "--port", "x"], "port: "),
        (["serve", "--port", "70000"], "port: "),
        (["serve", "--cold-policy", "maybe"], "cold_policy: "),
        (["models", "--url", "localhost:1"], "--url"),
        (["--config", "nowhere.toml", "models"], "nowhere.toml does not exist"),
        (["route", " "], "TASK is empty"),
        (["route", "x", "--agent", "ü"], "--agent"),
        (["chat", ""], "nothing to ask"),
        (["chat", "x", "--session", "a\nb"], "--session"),
        (["adapters", "add", "x", "./nowhere"], "./nowhere does not exist"),
        (["adapters", "show", ".."], "'..' is not a name"),
    ],
)
def test_a_broken_argument_is_one_line_and_exit_code_2(cli: Cli, arguments: list[str], told: str) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("loradock: ")
    assert told in result.err
    assert result.err.count("\n") == 1


def test_a_broken_setting_names_where_it_came_from(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_PORT", "tcp")
    result = cli("models")
    assert result.code == 2
    assert "from env LORADOCK_PORT" in result.err


def test_without_arguments_the_help_is_shown(cli: Cli) -> None:
    result = cli()
    assert (result.code, result.err) == (2, "")
    assert "serve" in result.out


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "arguments", [["models"], ["status"], ["chat", "hi"], ["bench"], ["adapters", "list"], ["route", "x"]]
)
def test_without_a_server_one_line_tells_how_to_start_it(cli: Cli, free_port: int, arguments: list[str]) -> None:
    result = cli(*arguments, "--url", f"http://127.0.0.1:{free_port}/v1")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"loradock: no server answers at http://127.0.0.1:{free_port}: "
        "start one with 'loradock serve', or name another with --url\n"
    )


def test_an_error_with_json_is_one_document(cli: Cli, free_port: int) -> None:
    result = cli("models", "--json", "--url", f"http://127.0.0.1:{free_port}")
    assert result.code == 1
    assert "no server answers" in result.json["error"]["message"]
    broken = cli("adapters", "add", "--json")
    assert broken.code == 2
    assert "NAME" in broken.json["error"]["message"]


def test_the_server_is_found_through_the_settings(cli: Cli, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_HOST", "0.0.0.0")
    monkeypatch.setenv("LORADOCK_PORT", str(free_port))
    assert f"http://127.0.0.1:{free_port}:" in cli("models").err
    monkeypatch.setenv("LORADOCK_HOST", "::1")
    assert f"http://[::1]:{free_port}:" in cli("models").err
    monkeypatch.setenv("LORADOCK_PORT", "0")
    assert "--url" in cli("models").err


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    cli: Cli, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    began = time.monotonic()
    assert "no server answers" in cli("models", "--url", f"http://127.0.0.1:{free_port}").err
    assert time.monotonic() - began < 4


class _Stranger(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html>It works!</html>"
        self.send_response(404 if self.path.startswith("/v1/adapters") else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


def test_another_program_on_the_port_is_told_apart(cli: Cli) -> None:
    with HTTPServer(("127.0.0.1", 0), _Stranger) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{stranger.server_address[1]}"
            answers = [cli("models", "--url", url), cli("adapters", "list", "--url", url)]
        finally:
            stranger.shutdown()
            thread.join()
    for answer in answers:
        assert (answer.code, answer.out) == (1, "")
        assert "is not loradock" in answer.err


def test_ctrl_c_exits_130_without_a_traceback(alone: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        with subprocess.Popen((*COMMAND, "models", "--url", url), stderr=subprocess.PIPE, env=environment) as command:
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)  # the request is under way
                for _ in range(4):  # Python misses one that comes just before it begins to wait for the socket
                    command.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        command.wait(timeout=5)
                        break
                assert command.poll() == 130
            assert command.stderr is not None
            assert b"Traceback" not in command.stderr.read()


def test_a_closed_pipe_is_no_traceback() -> None:
    shell = f"{sys.executable} -m serving.cli config show --json | head -c 1"
    done = subprocess.run(("bash", "-c", shell), capture_output=True, check=True)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_json_stands_alone(cli: Cli) -> None:
    result = cli("config", "show", "--json")
    assert json.loads(result.out)["port"] == {"value": 8000, "origin": "default"}
    assert result.err == ""
