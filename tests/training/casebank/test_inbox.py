"""Served requests wait in the inbox until somebody settles it, and become one case each."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from adapters_registry import open_database
from tests.training.casebank.test_served import TASK, served
from training.casebank.bank import CaseBank
from training.casebank.case import Case
from training.casebank.inbox import OutcomeSink, settle
from training.casebank.served import Served
from training.casebank.tables import InboxRow


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[CaseBank]:
    database = open_database(f"sqlite:///{tmp_path / 'cases.db'}")
    yield CaseBank(database)
    database.close()


def outcome(number: int, text: str = "track") -> Served:
    answer = {"id": f"chatcmpl-{number}", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    task = {"role": "user", "content": f"{number} orders of mine are late, where are they?"}
    return served({"messages": [task]}, answer, request_id=f"req_{number}")


def waiting(bank: CaseBank) -> int:
    """Served requests in the inbox."""
    with bank.database.read() as session:
        return sum(len(msgspec.msgpack.decode(told)) for told in session.scalars(sa.select(InboxRow.outcomes)))


def test_what_was_served_becomes_cases_when_settled(bank: CaseBank) -> None:
    OutcomeSink(bank).write([outcome(number) for number in range(3)])
    assert waiting(bank) == 3
    assert settle(bank) == 3
    assert waiting(bank) == 0
    assert {case.response_id for case in bank.list()} == {"req_0", "req_1", "req_2"}
    assert settle(bank) == 0


def test_readers_and_deletion_see_what_waits(bank: CaseBank) -> None:
    for number in range(3):
        OutcomeSink(bank).write([outcome(number)])
    assert bank.feedback("chatcmpl-1", 0.8).reward == 0.8
    assert waiting(bank) == 2
    assert bank.delete(session="s1") == 3
    assert (waiting(bank), bank.list()) == (0, [])


@pytest.mark.parametrize("name", ["req_1", "chatcmpl-1"])
def test_one_response_can_be_settled_before_the_others(bank: CaseBank, name: str) -> None:
    for numbers in ([0], [1, 2], [10, 11]):
        OutcomeSink(bank).write([outcome(number) for number in numbers])
    assert settle(bank, name) == 2  # with what was written at once with it
    found = bank.find_response(name)
    assert found is not None and found.answer == "track"
    assert waiting(bank) == 3
    assert settle(bank, "req_%") == 0


def test_what_cannot_be_a_case_leaves_the_inbox_with_the_others(bank: CaseBank) -> None:
    broken = served({"messages": [TASK]}, b"data: {broken\n\n")
    failed = served({"messages": [TASK]}, {"error": {}}, status=500)
    OutcomeSink(bank).write([broken, failed, outcome(1)])
    assert waiting(bank) == 2  # a failure is not even kept
    assert settle(bank) == 1
    assert waiting(bank) == 0


def test_several_who_settle_at_once_make_no_case_twice(bank: CaseBank) -> None:
    for start in range(0, 40, 4):
        OutcomeSink(bank).write([outcome(number) for number in range(start, start + 4)])
    settled: list[int] = []
    threads = [threading.Thread(target=lambda: settled.append(settle(bank))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(settled) == 40
    assert len(bank.list(limit=100)) == 40


def test_with_redaction_nothing_is_written_before_it(bank: CaseBank) -> None:
    def redact(case: Case) -> Case:
        return dataclasses.replace(case, messages=[{"role": "user", "content": "<EMAIL>"}])

    redacting = CaseBank(bank.database, redactor=redact)
    OutcomeSink(redacting).write([outcome(1)])
    assert waiting(bank) == 0
    assert bank.list()[0].messages == [{"role": "user", "content": "<EMAIL>"}]
