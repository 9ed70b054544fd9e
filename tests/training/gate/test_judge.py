"""The judge against an endpoint whose models know what a test says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.gate.stub import END, Stub, render, serving
from training.gate import EndpointClient, EndpointFailed, GateReport, Judge, record_template

NEW, OLD, BASE = "acme@000000000001", "acme@000000000002", "tiny"
LABELS = ("billing", "delivery", "refund")
CAPITALS = {f"What is the capital of {number}?": f"City{number}" for number in range(20)}


def label(question: str) -> str:
    return LABELS[int(question.rsplit(maxsplit=1)[-1]) % 3]


def knows(share: float, general: bool = True) -> Callable[[str], str]:
    """Right on the first part of the questions; knows the capitals or not."""

    def answer(question: str) -> str:
        if question in CAPITALS:
            return f"It is {CAPITALS[question]}." if general else "refund"
        number = int(question.rsplit(maxsplit=1)[-1])
        return label(question) if number < 60 * share else LABELS[(number + 1) % 3]

    return answer


@dataclass(frozen=True)
class Held:
    """A dataset's folder."""

    folder: Path
    name: str = "ds-test"


def held_out(folder: Path, count: int = 60) -> Held:
    questions = [f"question {number}" for number in range(count)]
    lines = [
        {"id": question, "messages": [{"role": "user", "content": question}], "completion": label(question)}
        | {"tools": None, "reward": 1.0, "task_type": "classification"}
        for question in questions
    ]
    (folder / "holdout.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Held(folder)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub({NEW: knows(0.9), OLD: knows(0.5), BASE: knows(0.0)})) as stub:
        yield stub


@pytest.fixture
def judged(stub: Stub, tmp_path: Path) -> Callable[..., GateReport]:
    general = tmp_path / "general.jsonl"
    rows = [{"question": asked, "answer": f"It is {city}.", "accept": [city]} for asked, city in CAPITALS.items()]
    general.write_text("\n".join(map(json.dumps, rows)))

    def gate(*, rows: int = 60, champion: str | None = OLD, client: dict[str, Any] | None = None, **more) -> GateReport:
        judge = Judge(EndpointClient(stub.url, **{"concurrency": 8, **(client or {})}))
        dataset = held_out(tmp_path, rows)
        return judge.gate(candidate=NEW, champion=champion, base=BASE, dataset=dataset, **{"general": general, **more})

    return gate


def test_a_better_candidate_passes_and_the_report_says_how_much(judged: Callable[..., GateReport], stub: Stub) -> None:
    stub.sure = {NEW: -0.1, OLD: -0.5, BASE: -3.0}
    report = judged()
    assert report.passed
    assert report.candidate and report.champion and report.base
    assert (report.candidate.exact_match, report.champion.exact_match, report.base.exact_match) == (0.9, 0.5, 0.0)
    assert report.candidate.macro_f1 == pytest.approx(0.9)
    assert report.candidate.perplexity == pytest.approx(2.718281828**0.1)
    assert report.lower_bound is not None
    assert 0.2 < report.lower_bound < 0.4
    assert report.general is not None
    assert (report.general.measure, report.general.delta) == ("accuracy", 0)
    assert "+40.0 points on 60 rows" in report.verdict


def test_nothing_that_the_gate_asks_becomes_a_case(judged: Callable[..., GateReport], stub: Stub) -> None:
    judged()
    assert stub.asked
    assert stub.recorded == 0
    assert {body["temperature"] for body in stub.asked} == {0}
    assert stub.busiest <= 8


def test_without_a_champion_the_base_is_the_measure(judged: Callable[..., GateReport]) -> None:
    report = judged(champion=None)
    assert report.passed
    assert report.champion is None
    assert BASE in report.verdict


def test_a_candidate_that_is_no_better_is_refused(judged: Callable[..., GateReport], stub: Stub) -> None:
    stub.models[NEW] = knows(0.52)
    report = judged()
    assert not report.passed
    assert "no sure gain" in report.verdict


def test_a_candidate_that_forgot_what_the_champion_knows_is_refused(
    judged: Callable[..., GateReport], stub: Stub
) -> None:
    stub.models[NEW] = knows(0.9, general=False)
    report = judged()
    assert not report.passed
    assert "points on the general set" in report.verdict


def test_a_champion_that_cannot_answer_is_compared_by_likelihood(judged: Callable[..., GateReport], stub: Stub) -> None:
    stub.models[OLD], stub.models[NEW] = knows(0.5, general=False), knows(0.9, general=False)
    stub.sure = {NEW: -2.0, OLD: -2.0}
    report = judged()
    assert report.passed
    assert report.general is not None
    assert report.general.measure == "probability"
    stub.sure = {NEW: -4.0, OLD: -2.0}
    assert "points on the general set (probability 13.5% -> 1.8%)" in judged().verdict


def test_a_candidate_whose_answers_lose_their_format_is_refused(judged: Callable[..., GateReport], stub: Stub) -> None:
    right = knows(0.9)
    stub.models[NEW] = lambda question: "who knows" if right(question) == "refund" else right(question)
    stub.models[OLD] = knows(0.1)
    assert "valid format" in judged().verdict


def test_a_small_holdout_is_not_judged(judged: Callable[..., GateReport], stub: Stub) -> None:
    report = judged(rows=19)
    assert not report.passed
    assert report.verdict == "not judged: the holdout has 19 rows, and at least 20 are needed"
    assert not stub.asked
    assert report.summary()["candidate"] == {"model": NEW}


def test_a_suite_of_ones_own_must_not_be_lost(judged: Callable[..., GateReport], stub: Stub, tmp_path: Path) -> None:
    suite = tmp_path / "arithmetic.jsonl"
    rows = [{"prompt": f"question {number}", "pattern": "^bill"} for number in range(30)]
    suite.write_text("\n".join(map(json.dumps, rows)))
    assert "suite arithmetic" not in judged(suites=[suite]).verdict
    stub.models[NEW] = lambda question: "refund" if question in CAPITALS else "delivery"
    report = judged(suites=[suite])
    assert "suite arithmetic" in report.verdict
    assert report.summary()["suites"][0]["reference"] > 0.3


# -- an endpoint with faults -------------------------------------------------------------------------------------------


def test_an_endpoint_that_is_busy_or_restarts_is_asked_again(judged: Callable[..., GateReport], stub: Stub) -> None:
    stub.breaks = 3
    stub.faults = [(503, "0"), (429, "0"), (502, None), (404, None), (503, "soon")]
    assert judged().passed


def test_an_endpoint_that_stays_away_is_no_verdict(judged: Callable[..., GateReport], stub: Stub) -> None:
    stub.faults = [(503, None)] * 10_000
    with pytest.raises(EndpointFailed, match="not now"):
        judged(client={"patience_s": 0.5})


def test_an_answer_from_somebody_else_is_no_verdict(judged: Callable[..., GateReport], stub: Stub) -> None:
    stub.answered_by = "none"
    with pytest.raises(EndpointFailed, match=f"{NEW} was asked, and none answered"):
        judged()


def test_a_row_that_the_engine_refuses_counts_as_wrong(judged: Callable[..., GateReport], stub: Stub) -> None:
    stub.refuse = "question 7"
    report = judged()
    assert report.candidate is not None
    assert report.candidate.errors == 1
    assert report.candidate.exact_match == pytest.approx(53 / 60)
    assert report.to_dict()["results"][7]["answers"]["candidate"]["error"].endswith("the prompt is too long")


# -- templates ---------------------------------------------------------------------------------------------------------


def recorded(folder: Path) -> Path:
    rows = [{"messages": [{"role": "user", "content": f"question {number}"}], "completion": "a"} for number in range(3)]
    ids = []
    for row in rows:
        prompt = render(row["messages"], opened=True)
        ids.append((prompt, prompt + list(f"{row['completion']}{END}".encode())))
    return record_template("{{ messages }}", rows, ids).write(folder).parent


def test_templates_that_render_alike_are_told_so(judged: Callable[..., GateReport], tmp_path: Path) -> None:
    report = judged(template=recorded(tmp_path / "job"))
    assert report.passed
    assert report.template is not None
    assert report.template.identical
    assert report.template.samples == 3


def test_a_served_template_that_differs_refuses_the_candidate(
    judged: Callable[..., GateReport], stub: Stub, tmp_path: Path
) -> None:
    stub.system_prompt = "Be nice."
    report = judged(template=recorded(tmp_path / "job"))
    assert not report.passed
    assert "templates differ: row 1: the prompt has 16 tokens in training and 28 served; token 0" in report.verdict


# -- reports -----------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_shows_what_decided(judged: Callable[..., GateReport], tmp_path: Path) -> None:
    report = judged()
    page = report.write_html(tmp_path / "gate.html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "<script" not in page
    for text in (NEW, "Passed", "task score", "lower bound", "Won: 24 of 60 rows", "Lost: 0 of 60 rows"):
        assert text in page


def test_what_models_say_cannot_change_the_page(judged: Callable[..., GateReport], stub: Stub, tmp_path: Path) -> None:
    stub.models[OLD] = lambda question: "<script>alert(1)</script>"
    page = judged().write_html(tmp_path / "gate.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_json_holds_every_row_and_every_figure(judged: Callable[..., GateReport], tmp_path: Path) -> None:
    document = json.loads(judged().write_json(tmp_path / "gate.json").read_text())
    assert document["passed"] is True
    assert document["candidate"]["model"] == NEW
    assert document["champion"]["exact_match"] == 0.5
    assert len(document["results"]) == 60
    assert document["results"][59]["answers"]["candidate"]["score"] == 0
