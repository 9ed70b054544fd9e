"""What the learned router is worth on public data: APGR in three settings, calibration, shares, cost, agents.

    python -m bench.router_learned --data FOLDER [--out bench/results/router_learned.json]

FOLDER holds the public sets, which are no part of this project. Each setting is a run of `loradock router eval` with
the baselines beside it, and ends within five minutes on two cores; the agents' set is made of the texts of the three
agent sets, with the routing set's prompts as tasks of no agent, which the recogniser has never seen.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.learning import SETS, read
from bench.report import Bar, publish, result
from bench.router import measure, snapshot
from router import Router
from router.evaluation import OUT_OF_SCOPE, read_routes
from router.learned import RouterModel, fit_outcomes, fit_recogniser

ROUTES = "routing_mmlu.csv.gz"
SETTINGS: dict[str, tuple[list[str], float]] = {
    "5-fold": ([], 0.72),
    "held-out subjects": (["--group", "subject"], 0.60),
    "1,500 labels": (["--train-rows", "1500"], 0.65),
}
"""arguments of `router eval` beside `--cv 5`, and the least APGR"""
MINUTES = 5.0
DECIDED_ROWS = 3000
"""about, that the router is fitted on whose whole decision is timed"""
DECIDED_CHARS = 2048
"""512 tokens at four characters each"""
ROUNDS = 1000


def evaluate(data: Path, arguments: Iterable[str], seed: int) -> dict[str, Any]:
    """One run of `router eval`: its report as JSON, and the seconds it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        given = ["--data", str(data / ROUTES), "--cv", "5", "--seed", str(seed), *arguments, "--report", folder]
        _loradock("eval", *given, "--json")
        report: dict[str, Any] = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
    return {**report, "seconds": round(time.perf_counter() - began, 1)}


def recognise(data: Path, seed: int) -> dict[str, Any]:
    """One run of `router eval-agents`."""
    with tempfile.TemporaryDirectory() as folder:
        files = {split: Path(folder) / f"{split}.csv" for split in ("train", "test")}
        for split, file in files.items():
            with file.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(("text", "agent"))
                for agent, each in SETS.items():
                    writer.writerows((text, agent) for text, _ in read(data / getattr(each, split), split))
                if split == "test":
                    writer.writerows((prompt, OUT_OF_SCOPE) for prompt in prompts(data / ROUTES))
        given = ["--train", str(files["train"]), "--test", str(files["test"]), "--seed", str(seed), "--json"]
        found: dict[str, Any] = json.loads(_loradock("eval-agents", *given))
    return found


def decide(data: Path, seed: int) -> dict[str, float]:
    """Microseconds of whole decisions by a learned router, among twenty agents and three tiers (see `bench.router`)."""
    rows = read_routes(data / ROUTES)
    pairs = [(text, agent) for agent, each in SETS.items() for text, _ in read(data / each.train, "train")]
    recogniser = fit_recogniser(*map(list, zip(*pairs, strict=True)), seed=seed)
    model = RouterModel.of(fit_outcomes(rows[:: max(1, len(rows) // DECIDED_ROWS)], seed=seed), recogniser)
    now = snapshot()
    router = Router.from_model(model, now.presets)
    text = " ".join(row.prompt for row in rows[:20])[:DECIDED_CHARS]
    case = ([{"role": "user", "content": text}], "auto")
    measure(router, now, case, rounds=100)
    return measure(router, now, case, ROUNDS)


def prompts(path: Path) -> list[str]:
    """The prompts of the routing set."""
    with gzip.open(path, "rt", newline="", encoding="utf-8") as stream:
        return [row["prompt"] for row in csv.DictReader(stream)]


def _loradock(command: str, *arguments: str) -> str:
    program = [sys.executable, "-m", "serving.cli", "router", command, *arguments]
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout


def bars(found: Mapping[str, Mapping[str, Any]], agents: Mapping[str, Any], decision: Mapping[str, float]) -> list[Bar]:
    """What must hold, of the estimator that each setting chose."""
    made = []
    for name, (_, least) in SETTINGS.items():
        report = found[name]
        chosen = report["chosen"]
        figures = report["estimators"][chosen]
        shares = report["strong_share"][chosen]
        apart = max(abs(100 * (realised - float(wanted))) for wanted, realised in shares.items())
        over = report["over_tfidf"].get(chosen, [0.0])[0]
        made += [
            Bar(f"APGR, {name}", figures["apgr"], least, "", "at least"),
            Bar(f"over TF-IDF, lower end of 95 %, {name}", over, 0.0, "", "at least"),
            Bar(f"calibration error, {name}", figures["ece"], 0.05, "", "at most"),
            Bar(f"strong share off its target, {name}", round(apart, 2), 3.0, "points", "at most"),
            Bar(f"features, score and choice, p99, {name}", figures["p99_ms"], 2.0, "ms", "at most"),
            Bar(f"time of the run, {name}", round(report["seconds"] / 60, 2), MINUTES, "min", "at most"),
        ]
        for other in ("random", "length"):
            cheaper = report["cost_quality"][f"cheaper_than_{other}_everywhere"]
            made.append(
                Bar(f"utility cheaper than {other} at every quality, {name}", float(cheaper), 1.0, "", "at least")
            )
    return [
        *made,
        Bar("whole decision, 512 tokens, p99 of CPU time", decision["cpu_p99_us"] / 1e3, 2.0, "ms", "at most"),
        Bar("agents, accuracy", agents["accuracy"], 0.98, "", "at least"),
        Bar("agents, out-of-scope recall", agents["oos_recall"], 0.95, "", "at least"),
        Bar("agents, in scope refused", agents["in_scope_false_oos"], 0.03, "", "at most"),
    ]


def table(name: str, report: Mapping[str, Any]) -> Table:
    """All estimators of one setting."""
    drawn = Table(title=f"{name}; chosen: {report['chosen']}", title_justify="left")
    columns = ("apgr", "cpt50", "cpt80", "ece", "p50_ms", "p99_ms")
    for heading in ("estimator", *columns):
        drawn.add_column(heading, justify="left" if heading == "estimator" else "right")
    for estimator, figures in report["estimators"].items():
        drawn.add_row(estimator, *("-" if figures[key] is None else f"{figures[key]:.3f}" for key in columns))
    return drawn


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(prog="bench.router_learned", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    agents = recognise(arguments.data, arguments.seed)
    found = {name: evaluate(arguments.data, extra, arguments.seed) for name, (extra, _) in SETTINGS.items()}
    decision = decide(arguments.data, arguments.seed)
    results = {**found, "agents": agents, "decision": decision}
    outcome = result("router_learned", {"seed": arguments.seed}, results, bars(found, agents, decision))
    publish(outcome, [table(*each) for each in found.items()], arguments.out)


if __name__ == "__main__":
    main()
