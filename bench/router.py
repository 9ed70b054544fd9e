"""Time of the router's part of a request (features, recognition, choice) in process, on one core.

    python -m bench.router [--rounds 2000] [--out bench/results/router.json]

Microseconds at p50 and p99 for each kind of request.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.table import Table

from adapters_registry.model import AdapterVersion, AgentAliases, RegistrySnapshot, State
from bench.report import Bar, publish, result
from configs.agents import load_presets
from router import BaseTier, Router, RouterSnapshot, Task
from router.features import tokens

QUESTION = (
    "Please review the indemnification clause below and tell me whether our liability is capped. The supplier must "
    "notify us within 30 days, and the parties agree to arbitration in London. Compare it with clause 14.2 of the "
    "master agreement, and answer in JSON with at least three fields: risk, reason, change."
)
LONG = "512 tokens, model auto"
LIMIT_MS = 2.0
"""at p99, for a prompt of 512 tokens"""
AGENTS = 20
Case = tuple[list[dict[str, str]], str]
"""messages and model"""


def snapshot() -> RouterSnapshot:
    """Twenty agents with a champion each, over three tiers."""
    versions, agents = {}, {}
    for number in range(AGENTS):
        name = f"agent-{number}" if number else "legal-agent"
        version = AdapterVersion(
            name=name,
            digest=f"{number:064x}",
            agent=name,
            base="small",
            rank=16,
            path=Path(name),
            size_bytes=1,
            state=State.CHAMPION,
            created_at=datetime.now(UTC),
            source="bench",
        )
        versions[version.engine_name] = version
        agents[name] = AgentAliases(champion=version.engine_name)
    registry = RegistrySnapshot(1, versions, {each.name: each for each in versions.values()}, agents)
    tiers = (BaseTier("s", "small", 0.1), BaseTier("m", "medium", 1.0), BaseTier("l", "large", 10.0, slots=0))
    return RouterSnapshot(registry, tiers, load_presets(), {}, lambda _: True)


def measure(router: Router, now: RouterSnapshot, case: Case, rounds: int) -> dict[str, float]:
    """Microseconds from parsed messages to the decision: on the clock, and of this thread's own CPU time."""
    messages, model = case
    wall, cpu = np.empty(rounds), np.empty(rounds)
    for index in range(rounds):
        tokens.cache_clear()  # every request brings a new text
        began, began_cpu = time.perf_counter_ns(), time.thread_time_ns()
        router.decide(Task.from_messages(messages, model=model), now)
        cpu[index], wall[index] = time.thread_time_ns() - began_cpu, time.perf_counter_ns() - began
    figures: dict[str, float] = {"chars": sum(len(message["content"]) for message in messages)}
    for name, series in (("wall", wall), ("cpu", cpu)):
        p50, p99 = np.percentile(series, [50, 99]) / 1e3
        figures |= {f"{name}_p50_us": round(float(p50), 1), f"{name}_p99_us": round(float(p99), 1)}
    return figures


def table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """A line a case."""
    drawn = Table(title="router, microseconds", title_justify="left")
    columns = tuple(next(iter(figures.values())))
    for heading in ("case", *columns):
        drawn.add_column(heading.removesuffix("_us"), justify="left" if heading == "case" else "right")
    for name, row in figures.items():
        drawn.add_row(name, *(f"{row[column]:g}" for column in columns))
    return drawn


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(prog="bench.router", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    now = snapshot()
    router = Router.from_presets(now.presets)
    long = " ".join([QUESTION] * 7)[:2048]  # about 512 tokens
    cases: dict[str, Case] = {
        "typical, model auto": ([{"role": "user", "content": QUESTION}], "auto"),
        "typical, model auto:agent": ([{"role": "user", "content": QUESTION}], "auto:legal"),
        "short, model auto": ([{"role": "user", "content": "Where is my card?"}], "auto"),
        LONG: ([{"role": "user", "content": long}], "auto"),
        "8 MB, model auto": ([{"role": "user", "content": QUESTION * ((8 << 20) // len(QUESTION))}], "auto"),
        "40 turns, model auto": (
            [{"role": ("user", "assistant")[i % 2], "content": QUESTION} for i in range(39)],
            "auto",
        ),
    }
    measure(router, now, cases["typical, model auto"], rounds=200)
    gc.collect()
    results = {name: measure(router, now, case, rounds) for name, case in cases.items()}
    cpu_ms = round(results[LONG]["cpu_p99_us"] / 1e3, 3)
    bars = [Bar(f"score and select, {LONG}, p99 of CPU time", cpu_ms, LIMIT_MS, "ms", "at most")]
    outcome = result("router", {"rounds": rounds, "agents": AGENTS}, results, bars)
    publish(outcome, [table(results)], arguments.out)


if __name__ == "__main__":
    main()
