"""`loradock router`: the commands, their fixed output, and what they say of broken files."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from router.learned import RouterModel
from tests.router.evaluation.data import ROUTES
from tests.router.learned.tasks import agent_texts, route_rows, strangers
from tests.serving.cli.conftest import Cli

FIGURES = ["apgr", "apgr_ci", "cpt50", "cpt80", "ece", "p50_ms", "p99_ms"]


def write(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DAAO's head, whose library takes seconds to import; it has a test of its own."""
    monkeypatch.setattr("serving.cli.router._daao", lambda: None)
    monkeypatch.setattr("router.evaluation.comparison.TIMED", 20)


@pytest.fixture
def routes(tmp_path: Path) -> Path:
    header = ("kind", "prompt", "weak_correct", "strong_correct")
    rows = route_rows(150, groups=9)
    return write(tmp_path / "routes.csv", header, ((row.group, row.prompt, row.weak, row.strong) for row in rows))


def agents(path: Path, seed: int, others: int = 0) -> Path:
    pairs = [*zip(*agent_texts(160, seed=seed), strict=True), *((text, "oos") for text in strangers(others, seed=seed))]
    return write(path, ("text", "agent"), pairs)


def test_eval_prints_the_fixed_document(cli: Cli, routes: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    result = cli("router", "eval", "--data", routes, "--cv", 2, "--seed", 0, "--report", report, "--json")
    assert result.code == 0, result.err
    found = result.json
    assert list(found) == ["rows", "estimators", "chosen"]
    assert found["rows"] == 150
    assert list(found["estimators"]) == ["length", "rules", "tfidf", "blend", "oracle"]
    assert all(list(figures) == FIGURES for figures in found["estimators"].values())
    apgr = {name: figures["apgr"] for name, figures in found["estimators"].items()}
    assert found["chosen"] in ("tfidf", "blend")
    assert apgr["length"] < 0.65 < apgr["blend"] < apgr["oracle"]
    low, high = found["estimators"]["blend"]["apgr_ci"]
    assert low < apgr["blend"] < high
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert "http" not in page.replace("</html>", "")
    details = json.loads((report / "report.json").read_text())
    paid = details["cost_quality"]["usd_per_1000"]
    assert paid["utility"][5] < min(paid["random"][5], paid["length"][5])
    assert details["over_tfidf"]["length"][1] < 0
    assert (report / "cost_quality.png").read_bytes().startswith(b"\x89PNG")


def test_eval_holds_out_groups_draws_rows_and_scores_another_file(cli: Cli, routes: Path, tmp_path: Path) -> None:
    result = cli("router", "eval", "--data", routes, "--group", "kind", "--cv", 3, "--train-rows", 80, "--json")
    assert result.code == 0, result.err
    assert result.json["rows"] == 150
    fresh = route_rows(90, seed=1)
    header = ("prompt", "weak_correct", "strong_correct")
    test = write(tmp_path / "fresh.csv", header, ((row.prompt, row.weak, row.strong) for row in fresh))
    result = cli("router", "eval", "--data", routes, "--test", test, "--neighbours", "--json")
    assert result.code == 0, result.err
    assert result.json["rows"] == 90
    assert "neighbours" in result.json["estimators"]


def test_eval_draws_a_table_for_people(cli: Cli, routes: Path) -> None:
    result = cli("router", "eval", "--data", routes, "--cv", 2)
    assert result.code == 0, result.err
    assert "over tfidf" in result.out
    assert "150 held-out rows" in result.out


def test_eval_agents_prints_the_fixed_figures(cli: Cli, tmp_path: Path) -> None:
    train, test = agents(tmp_path / "train.csv", 0), agents(tmp_path / "test.csv", 1, others=60)
    result = cli("router", "eval-agents", "--train", train, "--test", test, "--json")
    assert result.code == 0, result.err
    assert list(result.json) == ["accuracy", "macro_f1", "oos_recall", "in_scope_false_oos", "ece", "p99_ms"]
    assert result.json["accuracy"] > 0.9
    assert result.json["oos_recall"] > 0.9
    assert result.json["in_scope_false_oos"] < 0.1


def test_fit_writes_a_model_that_loads(cli: Cli, routes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    texts = agents(tmp_path / "agents.csv", 0, others=60)
    result = cli("router", "fit", "--data", routes, "--agents", texts, "--out", folder, "--json")
    assert result.code == 0, result.err
    model = RouterModel.load(folder)
    assert result.json == {"version": model.version, "folder": str(folder), "rows": 150, "texts": 160}
    assert model.outcomes is not None
    assert model.recogniser is not None
    assert list(model.recogniser.agents) == ["legal", "support"]  # `oos` is no agent


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("fit", "--out", "x"), "give --data, --agents or both", 2),
        (("fit", "--data", "missing.csv", "--out", "x"), "missing.csv: No such file", 2),
        (("fit", "--data", "few.csv", "--out", "x"), "3 rows; 50 are the least", 1),
        (("fit", "--data", "few.csv", "--out", "x", "--estimator", "magic"), "no estimator 'magic'; there are", 1),
        (("eval", "--data", "few.csv", "--train-rows", "74"), "75", 2),
        (("eval", "--data", "few.csv", "--group", "subject"), "lacks the column 'subject'", 2),
        (("eval", "--data", "few.csv", "--cv", "5"), "3 different prompts cannot fill 5 folds", 1),
    ],
)
def test_what_is_wrong_is_one_line(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str, code: int
) -> None:
    write(Path("few.csv"), ("prompt", "weak_correct", "strong_correct"), [("a", 0, 1), ("b", 1, 1), ("c", 0, 0)])
    result = cli("router", *arguments)
    assert (result.code, result.err.count("\n")) == (code, 1)
    assert message in result.err


def test_a_missing_matplotlib_is_said_before_the_work(cli: Cli, routes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.cli.router.find_spec", lambda name: None)
    result = cli("router", "eval", "--data", routes, "--report", "x")
    assert result.code == 2
    assert "matplotlib" in result.err


@pytest.mark.skipif(not ROUTES.is_file(), reason="LORADOCK_TEST_DATA names no folder with the public routing data")
def test_on_real_rows_the_blend_beats_the_length(cli: Cli, tmp_path: Path) -> None:
    with gzip.open(ROUTES, "rt", newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    some = write(tmp_path / "some.csv", header, rows[::10])
    result = cli("router", "eval", "--data", some, "--cv", 2, "--json")
    assert result.code == 0, result.err
    found = result.json["estimators"]
    assert found["blend"]["apgr"] > found["length"]["apgr"]
    assert found["blend"]["ece"] < 0.08
