"""The bars of the learned router's bench are those of the estimator that each setting chose."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from bench.learning import SETS
from bench.router_learned import ROUTES, SETTINGS, bars, decide, table
from tests.router.learned.tasks import agent_texts, route_rows

FIGURES = {"apgr": 0.7, "cpt50": 0.25, "cpt80": 0.5, "ece": 0.02, "p50_ms": 1.0, "p99_ms": 1.5}
REPORT = {
    "chosen": "blend",
    "estimators": {
        "blend": FIGURES,
        "length": FIGURES | {"apgr": 0.5},
        "oracle": FIGURES | {"ece": None, "p99_ms": None},
    },
    "over_tfidf": {"blend": [0.01, 0.03]},
    "strong_share": {"blend": {"0.1": 0.12, "0.5": 0.46}},
    "cost_quality": {"cheaper_than_random_everywhere": True, "cheaper_than_length_everywhere": False},
    "seconds": 120.0,
}
AGENTS = {"accuracy": 0.99, "oos_recall": 0.96, "in_scope_false_oos": 0.04}


def test_bars_are_met_or_not_one_by_one() -> None:
    found = {bar.name: bar for bar in bars(dict.fromkeys(SETTINGS, REPORT), AGENTS, {"cpu_p99_us": 2500.0})}
    assert not found["APGR, 5-fold"].met
    assert found["APGR, held-out subjects"].met
    assert found["over TF-IDF, lower end of 95 %, 5-fold"].measured == 0.01
    share = found["strong share off its target, 5-fold"]
    assert (share.measured, share.met) == (4.0, False)
    assert found["utility cheaper than random at every quality, 5-fold"].met
    assert not found["utility cheaper than length at every quality, 5-fold"].met
    assert found["time of the run, 1,500 labels"].measured == 2.0
    assert found["agents, accuracy"].met
    assert not found["whole decision, 512 tokens, p99 of CPU time"].met
    assert not found["agents, in scope refused"].met


def test_whole_decisions_of_a_learned_router_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.router_learned.ROUNDS", 5)
    with gzip.open(tmp_path / ROUTES, "wt", newline="") as stream:
        csv.writer(stream).writerow(("prompt", "weak_correct", "strong_correct"))
        csv.writer(stream).writerows((row.prompt, row.weak, row.strong) for row in route_rows(120))
    for number, each in enumerate(SETS.values()):
        with gzip.open(tmp_path / each.train, "wt", newline="") as stream:
            csv.writer(stream).writerow(("text", "label"))
            csv.writer(stream).writerows((text, "any") for text in agent_texts(40, seed=number)[0])
    assert decide(tmp_path, 0)["cpu_p99_us"] > 0


def test_the_table_has_a_line_an_estimator() -> None:
    assert table("5-fold", REPORT).row_count == 3
