"""Counting: each rewarded case once, whatever is judged again, deleted, predicted anew or counted by several."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from adapters_registry import DatabaseError
from router import EVERYONE, RULES, Learnt
from tests.training.routing.conftest import BASES, LEGAL, PRESETS, Learning, MakeLearning
from training.jobs.tables import JobRow
from training.routing.counting import Counter
from training.routing.gates import Gates
from training.routing.predicting import Asked, Prediction, Predictor
from training.routing.refit import Scene
from training.routing.scopes import POOL
from training.routing.tables import EvidenceRow, OutcomeRow, ScopeRow

PREDICTOR = Scene(PRESETS, BASES).predictor(None)
EASY, HARD = "Hello", "Prove the equation x^2 = 12 step by step and explain why it must hold. " * 8


def evidence(learning: Learning) -> dict[tuple[str, str, str], tuple[int, float]]:
    """Cases and rewards by scope, agent and candidate."""
    with learning.database.read() as session:
        key = (EvidenceRow.scope, EvidenceRow.agent, EvidenceRow.candidate)
        sums = sa.select(*key, sa.func.sum(EvidenceRow.cases), sa.func.sum(EvidenceRow.reward)).group_by(*key)
        rows = session.execute(sums).all()
    return {tuple(row[:3]): (row[3], pytest.approx(row[4])) for row in rows if row[3]}


def corrected(learnt: Learnt, owner: str, candidate: str = "tiny", agent: str | None = None) -> tuple[float, int]:
    known = learnt.evidence.get(owner)
    return known.corrected(agent, candidate, 0.5, 0.1) if known else (0.5, 0)


def test_rewarded_cases_become_evidence_and_others_do_not(any_learning: MakeLearning) -> None:
    learning = any_learning()
    for reward in (1.0, 1.0, 0.0):
        learning.serve(EASY, reward)
    learning.serve(HARD, 1.0, agent="legal", adapter=LEGAL, reason="champion")
    learning.serve(EASY, None)
    learning.serve(EASY, 1.0, reason="explicit")
    learnt = learning.learn()
    assert evidence(learning) == {("ann", "", "tiny"): (3, 2.0), ("ann", "legal", LEGAL): (1, 1.0)}
    assert corrected(learnt, "ann")[1] == 3
    assert corrected(learnt, "ann", LEGAL, "legal")[1] == 1


def test_counting_again_changes_nothing(any_learning: MakeLearning) -> None:
    learning = any_learning()
    learning.serve(EASY, 1.0)
    first = learning.learn()
    again = learning.learn()
    assert again.revision == first.revision
    assert evidence(learning) == {("ann", "", "tiny"): (1, 1.0)}


def test_the_last_word_on_a_case_counts(any_learning: MakeLearning) -> None:
    learning = any_learning()
    case = learning.serve(EASY, 1.0)
    before = learning.learn()
    learning.bank.feedback(case, 0.0)
    after = learning.learn()
    assert evidence(learning) == {("ann", "", "tiny"): (1, 0.0)}
    assert corrected(after, "ann")[0] < 0.5 < corrected(before, "ann")[0] + 0.1


def test_what_is_deleted_is_forgotten(any_learning: MakeLearning) -> None:
    learning = any_learning()
    kept, gone = learning.serve(EASY, 1.0), learning.serve(HARD, 1.0)
    learning.learn()
    learning.bank.delete(ids=[gone])
    learning.learn()
    assert evidence(learning) == {("ann", "", "tiny"): (1, 1.0)}
    learning.bank.delete(ids=[kept])
    assert not learning.learn().evidence


def test_pages_are_counted_to_their_end(learning: MakeLearning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.routing.counting.PAGE", 7)
    here = learning()
    here.serve_many([(f"question {number}", number % 2, {}) for number in range(40)])
    here.learn()
    assert evidence(here) == {("ann", "", "tiny"): (40, 20.0)}


def test_several_keepers_count_each_case_once(any_learning: MakeLearning) -> None:
    learning = any_learning()
    learning.serve_many([(f"question {number}", 1.0, {}) for number in range(60)])
    keepers = [learning.keeper() for _ in range(3)]
    failures: list[Exception] = []

    def step(keeper) -> None:
        try:
            keeper.step()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=step, args=(keeper,)) for keeper in keepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    learning.learn()
    assert not failures
    assert evidence(learning) == {("ann", "", "tiny"): (60, 60.0)}


def test_other_tiers_make_other_predictions(any_learning: MakeLearning) -> None:
    learning = any_learning()
    for _ in range(5):
        learning.serve(HARD, 1.0, base="large")
    learning.learn()
    expected = sa.select(sa.func.sum(EvidenceRow.expected))
    strongest = learning.database.scalar(expected)
    learning.learn(bases=("tiny", "large", "huge"))
    assert learning.database.scalar(expected) < strongest
    assert evidence(learning) == {("ann", "", "large"): (5, 5.0)}
    bases = learning.database.scalar(sa.select(sa.func.count()).select_from(ScopeRow))
    assert bases == 1


def test_evidence_goes_by_owner_and_what_nobody_owns_is_everyones(any_learning: MakeLearning) -> None:
    learning = any_learning()
    for _ in range(30):
        learning.serve(EASY, 1.0, owner="ann")
    learning.serve(EASY, 0.0, owner="bob")
    learning.serve(EASY, 0.0, owner=None)
    learnt = learning.learn()
    assert set(learnt.evidence) == {"ann", "bob", EVERYONE}
    assert [corrected(learnt, owner)[1] for owner in ("ann", "bob", EVERYONE)] == [31, 2, 1]
    assert corrected(learnt, "ann")[0] > 0.5 > corrected(learnt, "bob")[0]


def test_settings_say_whether_all_learn_together_or_nobody(any_learning: MakeLearning) -> None:
    learning = any_learning(learning="shared")
    learning.serve(EASY, 1.0, owner="ann")
    learning.serve(EASY, 1.0, owner="bob")
    assert set(learning.learn().evidence) == {EVERYONE}
    assert evidence(learning) == {(POOL, "", "tiny"): (2, 2.0)}
    apart = any_learning(learning="tenant")
    assert not apart.read().evidence, "what was pooled is nobody's own"
    assert set(apart.learn().evidence) == {"ann", "bob"}
    off = any_learning(learning="off")
    assert not off.read().evidence
    assert not off.learn().evidence
    assert evidence(off) == {}


def test_a_gates_answers_count_for_the_owners_of_its_questions(any_learning: MakeLearning) -> None:
    learning = any_learning()
    cases = {owner: learning.serve(f"clause of {owner}", None, owner=owner, agent="legal") for owner in ("ann", "bob")}
    _gate(learning, "ftjob-1", cases)
    learnt = learning.learn()
    learning.learn()
    assert evidence(learning) == {
        ("ann", "legal", LEGAL): (1, 1.0),
        ("ann", "legal", "tiny"): (1, 0.0),
        ("bob", "legal", LEGAL): (1, 0.0),
        ("bob", "legal", "tiny"): (1, 0.0),
    }
    assert corrected(learnt, "ann", LEGAL, "legal")[0] > corrected(learnt, "bob", LEGAL, "legal")[0]


def test_a_gate_is_counted_whole_or_not_at_all(learning: MakeLearning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.routing.gates.PAGE", 1)
    here = learning()
    _gate(here, "ftjob-3", {owner: here.serve(f"clause of {owner}", None, owner=owner) for owner in ("ann", "bob")})

    def only_anns(scope: str) -> Predictor:
        if scope != "ann":
            raise DatabaseError("gone")
        return PREDICTOR

    with pytest.raises(DatabaseError):
        Gates(here.database, here.home, "tenant").count(Counter(here.database, "tenant", only_anns))
    assert set(here.learn().evidence) == {"ann", "bob"}


def test_predicting_again_holds_up_no_writer(learning: MakeLearning) -> None:
    here = learning()
    here.serve(EASY, 1.0)
    here.learn()

    class Meanwhile(Predictor):
        def predict(self, asked: Asked) -> Prediction:
            here.serve("meanwhile", None)
            return super().predict(asked)

    others = Meanwhile(PREDICTOR.router, PRESETS, ("tiny", "large", "huge"))
    Counter(here.database, "tenant", lambda _: others).recount()
    assert here.database.scalar(sa.select(ScopeRow.basis)) == others.basis


def test_a_gate_whose_report_is_gone_is_passed_over(learning: MakeLearning) -> None:
    here = learning()
    _gate(here, "ftjob-2", {"ann": here.serve("clause", None)})
    (here.home / "jobs" / "ftjob-2" / "gate.json").write_text("{")
    assert not here.learn().evidence


def test_nothing_learnt_is_no_version_and_no_evidence(any_learning: MakeLearning) -> None:
    learnt = any_learning().learn()
    assert learnt.router_of("ann") is None
    assert not learnt.evidence
    assert RULES == "rules"


def _gate(learning: Learning, job: str, cases: dict[str, str]) -> None:
    """A finished gate over a case of each owner: the candidate was right on ann's alone, the base never."""
    folder = learning.home / "jobs" / job
    folder.mkdir(parents=True)
    results = [
        {"id": case, "answers": {"candidate": {"score": float(owner == "ann")}, "base": {"score": 0.0}}}
        for owner, case in cases.items()
    ]
    report = {"candidate": {"model": LEGAL}, "champion": None, "base": {"model": "tiny"}, "results": results}
    (folder / "gate.json").write_text(json.dumps(report))
    now = datetime.now(UTC)
    with learning.database.write() as session:
        session.add(
            JobRow(
                id=job,
                agent="legal",
                source="casebank:legal",
                state="succeeded",
                priority=0,
                request={},
                detail="",
                progress={"gate": {"passed": True}},
                attempts=0,
                interruptions=0,
                cancelling=False,
                gpus=[],
                rate_usd_hour=0.0,
                seconds=0.0,
                cost_usd=0.0,
                created_at=now,
                not_before=now,
            )
        )


def test_outcomes_hold_no_text(learning: MakeLearning) -> None:
    here = learning()
    here.serve("a secret", 1.0)
    here.learn()
    with here.database.read() as session:
        row = session.scalars(sa.select(OutcomeRow)).one()
        assert "secret" not in str({column.name: getattr(row, column.name) for column in OutcomeRow.__table__.columns})
