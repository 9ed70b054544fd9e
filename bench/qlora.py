"""QLoRA training side by side: TRL's recipe, TRL with Liger, Unsloth and the fast path, on one GPU.

    python -m bench.qlora [--folder DIR] [--only NAME ...] [--steps N] [--out bench/results/qlora.json] [--add]

A random base in the shape of Qwen2.5-7B in NF4, rank 16 on all linears, rows of 2048 random tokens, every token with a
label. Each run has a process of its own; tokens a second from the fifth step on, peak memory of PyTorch's allocator
with the weights. Needs TRL, liger_kernel and unsloth beside what training needs; what is missing is reported as failed.
`host`: the embedding waits in pinned host memory. `kept`: layers that save their products instead of recomputing them.
`plain` is this project's trainer without the fast path.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.qlora_base import LENGTH, SHAPES, write_base
from bench.report import Bar, publish, result

SMALL_CARD_GIB = 8.0
LEAST_ON_SMALL_CARD = 9_000
LEAST = 13_000
USD_PER_HOUR = 0.5
ADAPTER_TOKENS = 3 * 2_000 * 300
"""three epochs of 2,000 cases of 300 tokens: an agent's adapter"""
MATERIAL = ("bitsandbytes", "triton", "trl", "liger_kernel", "unsloth", "accelerate")
CHECKED_LAYERS = 4
RUN_LIMIT_S = 240
RUNS: dict[str, dict[str, Any]] = {
    "trl-b2": {"target": "trl", "batch": 2},
    "trl-b8": {"target": "trl", "batch": 8},
    "trl-liger-b2": {"target": "trl", "batch": 2, "liger": True},
    "trl-liger-b8": {"target": "trl", "batch": 8, "liger": True},
    "unsloth-b2": {"target": "unsloth", "batch": 2},
    "unsloth-b8": {"target": "unsloth", "batch": 8},
    "plain-b2": {"target": "ours", "batch": 2, "plain": True},
    "ours-b2": {"target": "ours", "batch": 2},
    "ours-b3-host": {"target": "ours", "batch": 3, "host": True},
    "ours-b4-host": {"target": "ours", "batch": 4, "host": True},
    "ours-b2-dropout": {"target": "ours", "batch": 2, "dropout": 0.05},
    "ours-b8": {"target": "ours", "batch": 8},
    "ours-b8-kept": {"target": "ours", "batch": 8, "kept": 28},
    "ours-b16-kept": {"target": "ours", "batch": 16, "kept": 28},
    "ours-b8-kept-dropout": {"target": "ours", "batch": 8, "kept": 28, "dropout": 0.05},
    "ours-1.5b-b8": {"target": "ours", "shape": "1.5b", "batch": 8},
    "ours-0.5b-b8": {"target": "ours", "shape": "0.5b", "batch": 8},
}


def measure(names: list[str], folder: Path, steps: int) -> dict[str, Any]:
    """Numerics first, then every run; one that fails says how."""
    runs = {}
    for name in names:
        job = {"shape": "7b", "steps": steps, **RUNS[name]}
        base = write_base(job["shape"], folder)
        runs[name] = _process("bench.qlora_run", json.dumps({**job, "base": str(base)}))
        runs[name].pop("base", None)
        print(name, json.dumps(runs[name]), file=sys.stderr, flush=True)
    few = write_base("7b", folder, layers=CHECKED_LAYERS)
    return {"runs": runs, "numerics": _process("bench.qlora_check", str(few))}


def _process(module: str, argument: str) -> dict[str, Any]:
    command = [sys.executable, "-m", module, argument]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=RUN_LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {RUN_LIMIT_S} s"}
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][-300:]}
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def bars(measured: dict[str, Any]) -> list[Bar]:
    """Speed on a small card, speed on any, and that the results are peft's."""
    ours = [r for n, r in measured["runs"].items() if n.startswith("ours-b") and "failed" not in r]
    small = [r["tokens_per_s"] for r in ours if r.get("peak_gib", 1e9) <= SMALL_CARD_GIB]
    every = [r["tokens_per_s"] for r in ours]
    numerics = measured["numerics"]
    made = [
        Bar(f"inside {SMALL_CARD_GIB:g} GiB", max(small, default=None), LEAST_ON_SMALL_CARD, "tokens/s", "at least"),
        Bar("at any batch", max(every, default=None), LEAST, "tokens/s", "at least"),
    ]
    if "failed" not in numerics:
        errors = numerics["gradient_error_against_float32"]
        ratio = round(errors["fast"]["median"] / errors["plain"]["median"], 3)
        made.append(Bar("error of gradients against float32, over that of peft", ratio, 1.1, "", "at most"))
    return made


def adapter_cost(measured: dict[str, Any]) -> dict[str, Any]:
    """Dollars that an adapter costs at the speeds measured."""
    return {
        "usd_per_gpu_hour": USD_PER_HOUR,
        "tokens": ADAPTER_TOKENS,
        "usd": {
            name: round(ADAPTER_TOKENS / run["tokens_per_s"] / 3600 * USD_PER_HOUR, 4)
            for name, run in measured["runs"].items()
            if "failed" not in run
        },
    }


def table(measured: dict[str, Any]) -> Table:
    """A line a run."""
    made = Table(title="QLoRA", title_justify="left")
    for heading in ("run", "tokens/s", "peak GiB", "reserved GiB"):
        made.add_column(heading, justify="left" if heading == "run" else "right")
    for name, run in measured["runs"].items():
        cells = [str(run.get(key, "-")) for key in ("tokens_per_s", "peak_gib", "reserved_gib")]
        made.add_row(name, *cells if "failed" not in run else (run["failed"][:40], "-", "-"))
    return made


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the bases are written, 20 GB; default: a temporary one")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS), help="which runs")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a run")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--add", action="store_true", help="take over the other runs that are in --out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as spare:
        measured = measure(given.only, given.folder or Path(spare), given.steps)
    if given.add:
        measured["runs"] = json.loads(given.out.read_bytes())["measurements"]["runs"] | measured["runs"]
    measured["adapter_cost"] = adapter_cost(measured)
    settings = {"shapes": SHAPES, "row_tokens": LENGTH, "rank": 16, "timed_steps": given.steps}
    outcome = result("qlora", settings, measured, bars(measured))
    outcome["versions"] |= _versions()
    publish(outcome, [table(measured)], given.out)


def _versions() -> dict[str, str]:
    found = {}
    for package in MATERIAL:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
