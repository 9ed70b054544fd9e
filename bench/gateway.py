"""What the gateway costs, in front of an upstream that costs nothing, beside a pass-through and LiteLLM's proxy.

    python -m bench.gateway [--quick] [--real] [--workers N] [--litellm-venv FOLDER] [--out bench/results/gateway.json]

Client, target and mock upstream each run in one process on the same machine (`--workers` for more gateways). Rounds are
interleaved, target by target within each kind of load, and an overhead is the difference of two medians of one round.
Half of the requests name their agent; all let the router choose (`model: auto`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.canned import STREAM_CHUNKS
from bench.environment import ROOT
from bench.processes import ChildFailed
from bench.report import Bar, publish, result
from bench.targets import ALL, REAL, Target, find_litellm, running

CONCURRENCIES = (1, 16, 64)
OPEN_RATE = 200.0
LOAD_TIMEOUT_S = 120.0
REAL_SECONDS = 4.0
"""window of a closed loop on the real engine, whose answers take long on a CPU"""


@dataclass(frozen=True, slots=True)
class Leg:
    """One kind of load: closed at `concurrency`, or open at `rate` requests a second."""

    stream: bool = False
    concurrency: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        """As results and tables call it."""
        if self.rate is not None:
            return f"open {self.rate:g}/s"
        return f"{'stream' if self.stream else 'whole'} c={self.concurrency}"

    def arguments(self, seconds: float, open_seconds: float) -> list[str]:
        """Options of `bench.load`."""
        if self.rate is not None:
            return ["--rate", str(self.rate), "--seconds", str(open_seconds)]
        return ["--concurrency", str(self.concurrency), "--seconds", str(seconds), *(["--stream"] * self.stream)]


@dataclass(frozen=True)
class Plan:
    """How long and how often. `seconds` and `open_seconds` are a leg's window."""

    rounds: int = 3
    seconds: float = 1.5
    open_seconds: float = 4.0
    warmup: float = 0.3
    seed: int = 0
    workers: int = 1


QUICK = Plan(rounds=1, seconds=0.25, open_seconds=1.0, warmup=0.1)


def legs() -> tuple[Leg, ...]:
    """Every kind of load, in the order of a round."""
    closed = tuple(Leg(stream, concurrency) for stream in (False, True) for concurrency in CONCURRENCIES)
    return (*closed, Leg(rate=OPEN_RATE))


def measure(targets: Sequence[Target], plan: Plan) -> Iterator[dict[str, Any]]:
    """One record a round, leg and target, references first: `load`'s report, processor time, overhead."""
    for target in targets:  # first requests compile patterns, open connections, fill caches
        for leg in (Leg(False, 4), Leg(True, 4)):
            _load(target, leg, plan, plan.seed)
    for number in range(plan.rounds):
        for leg in legs():
            p50s: dict[str, float | None] = {}
            for target in targets:
                if leg.rate is not None and target.reference in REAL:
                    continue  # the real engine on a CPU is far below that rate
                record = _load(target, leg, plan, plan.seed + 1 + number)
                p50 = p50s[target.name] = record["latency_ms"] and record["latency_ms"]["p50"]
                reference = p50s.get(target.reference)
                overhead = round(p50 - reference, 3) if p50 is not None and reference is not None else None
                yield {"round": number, "leg": leg.name, "target": target.name} | record | {"overhead_p50_ms": overhead}


def _load(target: Target, leg: Leg, plan: Plan, seed: int) -> dict[str, Any]:
    """Run the load generator on `target`. Raises ChildFailed when the target died of it."""
    command = [sys.executable, "-m", "bench.load", target.url, "--model", target.model, "--seed", str(seed)]
    seconds = max(plan.seconds, REAL_SECONDS) if target.reference in REAL else plan.seconds
    command += ["--warmup", str(plan.warmup), *leg.arguments(seconds, plan.open_seconds), *target.options]
    before = target.process.cpu_seconds()
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=LOAD_TIMEOUT_S)
    after = target.process.cpu_seconds()
    if done.returncode or not target.process.running():
        raise target.process.failed(f"under load ({leg.name}): {done.stderr.strip()[-500:]}")
    record: dict[str, Any] = json.loads(done.stdout)
    spent = None
    if before is not None and after is not None and record["total_requests"]:
        spent = round(1000 * (after - before) / record["total_requests"], 4)
    return record | {"cpu_ms_per_request": spent}


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Medians over rounds by leg and target; errors and unfinished requests are summed."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in records:
        grouped.setdefault(record["leg"], {}).setdefault(record["target"], []).append(record)
    return {
        leg: {target: _medians(rounds) for target, rounds in by_target.items()} for leg, by_target in grouped.items()
    }


def _medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def median(*path: str) -> float | None:
        values = []
        for value in rounds:
            found: Any = value
            for key in path:
                found = found and found.get(key)
            if found is not None:
                values.append(found)
        return round(statistics.median(values), 3) if values else None

    return {
        "rate_per_s": median("rate_per_s"),
        "latency_ms": {key: median("latency_ms", key) for key in ("p50", "p90", "p99", "max")},
        "ttft_ms": {key: median("ttft_ms", key) for key in ("p50", "p99")},
        "overhead_p50_ms": median("overhead_p50_ms"),
        "cpu_ms_per_request": median("cpu_ms_per_request"),
        "requests": sum(value["requests"] for value in rounds),
        "errors": sum(sum(value["errors"].values()) for value in rounds),
        "unfinished": sum(value["unfinished"] for value in rounds),
    }


def bars(summary: dict[str, dict[str, dict[str, Any]]]) -> list[Bar]:
    """What the gateway has to reach, measured or not."""

    def of(leg: Leg) -> dict[str, Any]:
        return summary.get(leg.name, {}).get("loradock", {})

    single, many, streams, steady = of(Leg(False, 1)), of(Leg(False, 16)), of(Leg(True, 16)), of(Leg(rate=OPEN_RATE))
    flawed = [by_target["loradock"] for by_target in summary.values() if "loradock" in by_target]
    lost = float(sum(leg["errors"] + leg["unfinished"] for leg in flawed)) if flawed else None
    real = [
        Bar(f"throughput through the gateway / engine direct, {leg.name}", ratio, 0.98, "", "at least")
        for leg in (Leg(False, 64), Leg(True, 64))
        if (ratio := _ratio(summary.get(leg.name, {}))) is not None
    ]
    return [
        *real,
        Bar("overhead p50, concurrency 1", single.get("overhead_p50_ms"), 1.0, "ms", "at most"),
        Bar("requests, concurrency 16", many.get("rate_per_s"), 1500.0, "/s", "at least"),
        Bar(f"streams of {STREAM_CHUNKS} chunks, concurrency 16", streams.get("rate_per_s"), 400.0, "/s", "at least"),
        Bar(f"p99, open loop at {OPEN_RATE:g}/s", steady.get("latency_ms", {}).get("p99"), 5.0, "ms", "at most"),
        Bar("requests failed or cut short", lost, 0.0, "", "at most"),
    ]


def _ratio(by_target: dict[str, dict[str, Any]]) -> float | None:
    """Requests per second through the gateway over those of the real engine by itself."""
    if not set(REAL) <= set(by_target):
        return None
    alone, gateway = (by_target[name]["rate_per_s"] for name in REAL)
    return round(gateway / alone, 3) if alone and gateway is not None else None


def table(summary: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """The medians, a line a leg and target."""
    drawn = Table(title="gateway in front of a mock upstream (medians over rounds; times in ms)", title_justify="left")
    for heading in ("load", "target"):
        drawn.add_column(heading)
    for heading in ("per s", "p50", "p99", "max", "first event", "overhead p50", "CPU/request", "lost"):
        drawn.add_column(heading, justify="right")
    for leg, by_target in summary.items():
        for target, numbers in by_target.items():
            shown = [numbers["rate_per_s"], *(numbers["latency_ms"][key] for key in ("p50", "p99", "max"))]
            shown += [numbers["ttft_ms"]["p50"], numbers["overhead_p50_ms"], numbers["cpu_ms_per_request"]]
            cells = ["-" if value is None else f"{value:,.2f}" for value in shown]
            drawn.add_row(leg, target, *cells, str(numbers["errors"] + numbers["unfinished"]))
        drawn.add_section()
    return drawn


def run(names: tuple[str, ...], plan: Plan, litellm: Path | None, out: Path | None) -> None:
    """Start the targets, measure, publish."""
    with (
        tempfile.TemporaryDirectory(prefix="loradock-bench-") as folder,
        running(names, Path(folder), plan.workers, litellm) as targets,
        Progress(console=Console(file=sys.stderr), transient=True) as progress,
    ):
        total = plan.rounds * len(legs()) * len(targets)
        records = list(progress.track(measure(targets, plan), total=total, description="measuring"))
        settings = asdict(plan) | {"targets": {target.name: target.version for target in targets}}
    summary = summarise(records)
    outcome = result("gateway", settings, {"medians": summary, "rounds": records}, bars(summary))
    publish(outcome, [table(summary)], out)


def main() -> None:
    """Parse arguments and run; a target that does not come up is exit code 1, a bar that is missed is not."""
    parser = argparse.ArgumentParser(prog="bench.gateway", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round without LiteLLM: does it work at all")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="window of a closed loop")
    parser.add_argument("--open-seconds", type=float, default=Plan.open_seconds, help="window of the open loop")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--workers", type=int, default=Plan.workers, help="gateway processes (LORADOCK_WORKERS)")
    parser.add_argument("--real", action="store_true", help="also the real vLLM, by itself and behind the gateway")
    parser.add_argument("--targets", help=f"comma-separated, of {','.join(ALL)}; default: all that are installed")
    parser.add_argument("--litellm-venv", type=Path, help="virtual environment that holds LiteLLM; default: PATH")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    litellm = find_litellm(arguments.litellm_venv)
    default = [name for name in ALL if name != "litellm" or (litellm and not arguments.quick)]
    names = tuple(arguments.targets.split(",")) if arguments.targets else tuple(default)
    if unknown := set(names) - set(ALL):
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    if "litellm" in names and litellm is None:
        parser.error("LiteLLM's command was not found; say where with --litellm-venv")
    ordered = tuple(name for name in ALL if name in names or name == "direct")
    if arguments.real:
        ordered += REAL
    plan = QUICK if arguments.quick else Plan(arguments.rounds, arguments.seconds, arguments.open_seconds)
    plan = Plan(**asdict(plan) | {"seed": arguments.seed, "workers": arguments.workers})
    try:
        run(ordered, plan, litellm, arguments.out)
    except ChildFailed as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
