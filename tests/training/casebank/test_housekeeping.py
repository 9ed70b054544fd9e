"""Somebody places what was served and deletes what is too old, and goes on after a fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adapters_registry import DatabaseError
from tests.training.casebank.conftest import case
from tests.training.casebank.test_inbox import outcome, waiting
from training.casebank import CaseBank, housekeeping
from training.casebank.housekeeping import Housekeeper, Processors
from training.casebank.inbox import OutcomeSink


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_served_is_placed_and_what_is_old_is_deleted(
    bank: CaseBank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bank.add([case("old", created_at=datetime.now(UTC) - timedelta(days=31)), case("new")])
    real, faults = bank.settle_next, iter([DatabaseError("locked")])

    def settle_next() -> bool:
        for fault in faults:
            raise fault
        return real()

    monkeypatch.setattr(bank, "settle_next", settle_next)
    deleted: list[bool] = []
    keeper = Housekeeper(bank, 30, lambda: deleted.append(True), settle_s=0.01)
    keeper.start()
    until(lambda: bool(deleted))
    OutcomeSink(bank).write([outcome(1)])
    until(lambda: waiting(bank) == 0)
    keeper.stop()
    assert {each.prompt_text for each in bank.list()} == {"new", "1 orders of mine are late, where are they?"}
    assert "locked" in caplog.text


def test_the_processors_use_is_counted_from_look_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(housekeeping, "STAT", stat)
    stat.write_text("cpu 100 0 100 800 0 0 0 0 0 0\n")
    processors = Processors()
    stat.write_text("cpu 110 0 110 860 20 0 0 0 0 0\n")
    assert processors.used() == pytest.approx(0.2)
    stat.write_text("cpu 150 0 110 860 20 0 0 0 0 0\n")
    assert processors.used() == pytest.approx(1.0)
    stat.unlink()
    assert 0 <= Processors().used() <= 1
