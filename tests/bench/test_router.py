"""The router's bench runs whole and says where it ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import router


def test_result_holds_every_case_and_the_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "router.json"
    monkeypatch.setattr("sys.argv", ["router", "--rounds", "3", "--out", str(out)])
    router.main()
    outcome = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == outcome
    assert {"hardware", "versions", "git", "measured_at"} <= set(outcome)
    assert len(outcome["measurements"]) == 6
    assert outcome["measurements"][router.LONG]["chars"] == 2048
    (bar,) = outcome["bars"]
    assert bar["measured"] == round(outcome["measurements"][router.LONG]["cpu_p99_us"] / 1e3, 3)
