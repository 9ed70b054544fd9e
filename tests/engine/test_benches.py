"""The benches that start engines, a minute of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.environment import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TIMEOUT_S = 280


def smoked(bench: str, folder: Path, *options: str) -> dict[str, Any]:
    """What `bench` measures in its smoke run."""
    pytest.importorskip("vllm")
    out = folder / f"{bench}.json"
    command = [sys.executable, "-m", f"bench.{bench}", "--smoke", "--out", str(out), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    measurements: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["measurements"]
    return measurements


def test_residency_lets_stock_vllm_and_ours_carry_the_same_loads(tmp_path: Path) -> None:
    measured = smoked("residency", tmp_path, "--plot", str(tmp_path / "gaps.png"))
    for contestant in ("ours", "stock"):
        [control], [cold] = (measured["beside"]["page-cache"][contestant][probed] for probed in ("control", "cold"))
        [arrived] = measured["zipf"][contestant]
        assert control["errors"] == cold["errors"] == arrived["errors"] == 0
        assert min(control["tokens"], cold["tokens"], arrived["requests"]) > 0
    churned = measured["churn"]
    assert (churned["wrong"], churned["errors"], churned["engine_restarts"]) == (0, 0, 0)
    assert (tmp_path / "gaps.png").stat().st_size > 1000


def test_throughput_compares_adapters_and_the_way_through_the_gateway(tmp_path: Path) -> None:
    measured = smoked("throughput", tmp_path)
    rates = measured["variants"]["profile"]["tokens_per_s"]
    assert set(rates) == {"base", "one adapter", "3 adapters"}
    through = measured["gateway"]
    assert set(through) == {"direct", "gateway", "gateway_cores", "gateway_apart_ms", "direct_apart_ms"}
    assert all(min(rounds) > 0 for rounds in (rates | through).values())
