from __future__ import annotations

import json
import shlex
import socket
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from adapters_registry.model import AdapterVersion, AgentAliases, RegistrySnapshot, State
from configs.settings import Settings, load_settings
from serving.cli.output import Output
from serving.cli.serve import NOT_FLAGS, Lines, Terminal, example, setting_flags
from serving.engine.base import EngineState, EngineStatus
from tests.serving.cli.conftest import Cli
from tests.serving.cli.parrot import Parrot

URL = "http://127.0.0.1:8000"
STARTING = EngineStatus(EngineState.STARTING, 1, 0, "loading weights", progress=0.4)


@dataclass
class Screen:
    """A terminal of so many columns that remembers what was on it."""

    console: Console

    @property
    def text(self) -> str:
        return self.console.export_text(clear=False)


def _terminal(settings: Settings, width: int) -> tuple[Terminal, Screen]:
    with Path("/dev/null").open("w") as nowhere:
        out = Output()
        out.console = Console(width=width, force_terminal=True, record=True, file=nowhere)
        screen = Screen(out.console)
        terminal = Terminal(settings, out)
        terminal.listening(URL)
        terminal.engine_status("cage", STARTING)
        failed = Parrot()
        failed.name, failed.base_name = "large", "qwen-7b"
        failed.status = EngineStatus(EngineState.FAILED, 1, 3, "no GPU is visible")
        terminal.ready([Parrot(), failed], _registered())
        terminal.engine_status("cage", EngineStatus(EngineState.RESTARTING, 1, 1, "died: signal 9"))
        terminal.stopping()
        terminal.close()
        return terminal, screen


def _registered() -> RegistrySnapshot:
    version = AdapterVersion(
        "legal-agent", "ab" * 32, "legal-agent", "tiny", 4, Path("x"), 1, State.CHAMPION, datetime.now(UTC), "x"
    )
    name = version.engine_name
    agents = {"legal-agent": AgentAliases(champion=name), "qa": AgentAliases()}
    return RegistrySnapshot(1, {name: version}, {"legal-agent": version}, agents)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"home": tmp_path / "home"}, environ={}).settings


def test_every_setting_has_a_flag() -> None:
    assert {flag.name for flag in setting_flags()} == set(Settings.model_fields) - NOT_FLAGS


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_progress_then_what_serves(settings: Settings, width: int) -> None:
    _, screen = _terminal(settings, width)
    for told in (
        "engine cage",
        f"{URL}/v1",
        "tiny (engine cage, 3 adapter slots)",
        "failed, no GPU is visible" if width == 120 else "failed, no GPU is",
        "legal-agent@abababababab",
        "qa: no adapter",
        "restarting: died: signal 9",
        "stopping",
    ):
        assert told in screen.text
    outside = screen.text[screen.text.index("curl") :]
    assert max(map(len, outside.splitlines())) <= 80


def test_the_example_is_one_shell_command_with_a_json_body() -> None:
    summary = {"url": URL, "agents": {"qa": None, "legal-agent": "legal-agent@abababababab"}}
    command = example(summary, with_key=True).split("\n\n")[0]
    words = shlex.split(command)
    assert words[:2] == ["curl", f"{URL}/v1/chat/completions"]
    assert json.loads(words[words.index("-d") + 1])["model"] == "legal-agent"
    assert "Authorization: Bearer $LORADOCK_API_KEY" in words
    assert subprocess.run(("bash", "-n", "-c", command), check=False).returncode == 0
    assert "Authorization" not in example(summary, with_key=False)


def test_without_a_terminal_each_change_is_one_line(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(settings, Output())
    lines.listening(URL)
    lines.engine_status("cage", EngineStatus(EngineState.STOPPED, 0, 0, "not started"))
    for _ in range(3):
        lines.engine_status("cage", STARTING)
    lines.engine_status("cage", replace(STARTING, state=EngineState.READY, detail=""))
    lines.ready([Parrot()], _registered())
    lines.stopping()
    assert capsys.readouterr().out.splitlines() == [
        f"loradock: listening on {URL}",
        "loradock: engine cage: starting: loading weights",
        "loradock: engine cage: ready",
        "loradock: agent legal-agent: legal-agent@abababababab",
        "loradock: agent qa: no adapter",
        f"loradock: ready; endpoint {URL}/v1, log in {settings.home / 'logs'}",
        "loradock: stopping",
    ]


def test_with_json_the_summary_stands_alone(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(settings, Output(as_json=True))
    lines.listening(URL)
    lines.engine_status("cage", STARTING)
    lines.ready([Parrot()], _registered())
    lines.stopping()
    summary = json.loads(capsys.readouterr().out)
    assert summary["url"] == URL
    assert summary["agents"] == {"legal-agent": "legal-agent@abababababab", "qa": None}
    assert summary["engines"][0]["state"] == "ready"


@pytest.mark.parametrize(
    ("engine", "staging", "hint"),
    [
        ({}, True, "max_lora_rank = 8"),
        ({}, False, None),  # on a CPU nothing is known of it
        ({"max_lora_rank": 16}, True, None),
        ({"model": "embedded"}, True, None),
    ],
)
def test_slots_of_a_larger_rank_than_any_adapter_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: dict[str, object], staging: bool, hint: str | None
) -> None:
    engines = [{"name": "cage", "model": "some/model", **engine}]
    settings = load_settings({"home": tmp_path, "engines": engines}, environ={}).settings
    parrot = Parrot()
    parrot.staging, parrot.max_lora_rank = staging, 16
    failed = Parrot()
    failed.staging, failed.status = True, EngineStatus(EngineState.FAILED, 1, 3, "no GPU is visible")
    Lines(settings, Output()).ready([failed], _registered())
    assert "max_lora_rank" not in capsys.readouterr().out
    Lines(settings, Output()).ready([parrot], _registered())
    told = capsys.readouterr().out
    assert ("max_lora_rank" in told) is (hint is not None)
    assert hint is None or hint in told


def test_an_engine_that_does_not_start_is_told(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(settings, Output())
    failed = Parrot()
    failed.status = EngineStatus(EngineState.FAILED, 1, 3, "no GPU is visible")
    lines.ready([failed], _registered())
    assert "not ready: engine cage" in capsys.readouterr().out


def test_a_port_in_use_is_one_line(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = cli("serve", "--port", taken.getsockname()[1])
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert "is in use" in result.err


def test_an_open_address_without_keys_is_refused(cli: Cli) -> None:
    result = cli("serve", "--host", "0.0.0.0", "--port", "0")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "loradock keys add" in result.err
