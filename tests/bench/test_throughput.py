import json
import subprocess
import sys
from pathlib import Path

from bench.environment import ROOT


def test_the_gateways_share_needs_no_engine_when_a_stand_in_keeps_the_pace(tmp_path: Path) -> None:
    out = tmp_path / "paced.json"
    command = [sys.executable, "-m", "bench.throughput", "--smoke", "--paced", "400", "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    measured = json.loads(out.read_text(encoding="utf-8"))["measurements"]["gateway"]
    assert set(measured) == {"gateway", "direct", "gateway_cores", "gateway_apart_ms", "direct_apart_ms"}
    assert 200 < measured["direct"][0] < 500
    assert 200 < measured["gateway"][0] < 500
    assert measured["gateway_cores"][0] > 0
    assert 0 < measured["gateway_apart_ms"][0] < 1000
    assert 0 < measured["direct_apart_ms"][0] < 1000
