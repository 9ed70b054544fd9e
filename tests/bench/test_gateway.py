import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.environment import ROOT, environment
from bench.gateway import Leg, bars, legs, summarise
from bench.report import Bar


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gateway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


@pytest.mark.slow
def test_quick_run_measures_every_load_on_every_target(tmp_path: Path) -> None:
    out = tmp_path / "results" / "gateway.json"
    done = bench("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome == json.loads(out.read_text())
    medians = outcome["measurements"]["medians"]
    assert list(medians) == [leg.name for leg in legs()]
    for by_target in medians.values():
        assert list(by_target) == ["direct", "passthrough", "loradock"]
        for numbers in by_target.values():
            assert numbers["requests"] > 0
            assert (numbers["errors"], numbers["unfinished"]) == (0, 0)
            assert numbers["overhead_p50_ms"] is not None
    assert {bar["name"]: bar["met"] for bar in outcome["bars"]}["requests failed or cut short"]
    assert "overhead p50" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--targets", "direct,nginx"), "unknown targets: nginx"),
        (("--targets", "litellm", "--litellm-venv", "nowhere"), "--litellm-venv"),
        (("--rounds", "many"), "--rounds"),
    ],
)
def test_a_broken_argument_is_one_clear_line(arguments: tuple[str, ...], says: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]


def record(target: str, leg: Leg, p50: float, rate: float, errors: int = 0) -> dict[str, Any]:
    return {
        "target": target,
        "leg": leg.name,
        "rate_per_s": rate,
        "latency_ms": {"p50": p50, "p90": p50, "p99": p50 * 2, "max": p50 * 3},
        "ttft_ms": None,
        "overhead_p50_ms": p50 - 0.1,
        "cpu_ms_per_request": 0.2,
        "requests": 10,
        "errors": {"status 500": errors} if errors else {},
        "unfinished": 0,
    }


def test_bars_use_medians_over_rounds() -> None:
    fast = [record("loradock", leg, p50, 2000.0) for leg in legs() for p50 in (0.5, 0.9, 30.0)]
    measured = {bar.name: bar for bar in bars(summarise(fast))}
    assert all(bar.met for bar in measured.values())
    assert measured["overhead p50, concurrency 1"].measured == pytest.approx(0.8)
    assert measured["p99, open loop at 200/s"].measured == pytest.approx(1.8)


def test_bars_are_missed_when_slow_lossy_or_not_measured() -> None:
    slow = [record("loradock", leg, 9.0, 100.0, errors=1) for leg in legs()]
    assert not any(bar.met for bar in bars(summarise(slow)))
    assert not any(bar.met for bar in bars({}))


def test_a_bar_on_its_limit_is_met() -> None:
    assert Bar("x", 1.0, 1.0, "ms", "at most").met
    assert Bar("x", 1.0, 1.0, "/s", "at least").met


def test_environment_tells_hardware_versions_and_revision_but_not_where() -> None:
    told = environment()
    assert told["hardware"]["cores"] >= 1
    assert told["versions"]["loradock"]
    assert told["git"] is None or len(told["git"]["commit"]) == 40
    text = json.dumps(told)
    assert str(ROOT) not in text
    assert os.uname().nodename not in text
