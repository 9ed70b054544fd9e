"""Canary and watch on rewards that lie in the CaseBank, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from adapters_registry import Database
from tests.adapters_registry.conftest import any_database, database_url, migrated  # noqa: F401 - fixtures
from training.casebank.tables import CaseRow
from training.gate.canary import Canaries
from training.gate.rewards import CaseRewards

AGENT, NEW, OLD = "support", "help@000000000001", "help@000000000002"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Users:
    """Writes what users thought of answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._count = 0

    def reward(self, adapter: str, *rewards: float | None, at: datetime = BEGAN + HOUR, **more: object) -> None:
        reason = "canary" if adapter == NEW else "champion"
        with self._database.write() as session:
            for value in rewards:
                self._count += 1
                row = {"id": f"{self._count:036d}", "session": f"s{self._count}", "reward": value, "adapter": adapter}
                given = {"agent": AGENT, "reason": reason, "created_at": at, "source": "served"}
                rest = {"messages": [], "sampling": {}, "corrected": False, "content_hash": "", "cluster": ""}
                session.execute(
                    sa.insert(CaseRow).values({**row, **given, **rest, "split": "train", "signature": b"", **more})
                )


@pytest.fixture
def users(any_database: Database) -> Iterator[Users]:  # noqa: F811
    return Users(any_database)


@pytest.fixture
def canaries(any_database: Database) -> Canaries:  # noqa: F811
    return Canaries(CaseRewards(any_database), requests=60, timeout_s=86_400)


def mixed(count: int, good: int) -> list[float]:
    return [1.0] * good + [0.0] * (count - good)


def advance(canaries: Canaries, after: timedelta = 2 * HOUR) -> tuple[str, str]:
    found = canaries.advance(AGENT, NEW, OLD, BEGAN, now=BEGAN + after)
    return found.decision, found.text


def test_a_canary_goes_on_until_its_rewards_suffice(canaries: Canaries, users: Users) -> None:
    assert advance(canaries)[0] == "continue"
    users.reward(NEW, *mixed(40, 30))
    users.reward(OLD, *mixed(200, 140))
    assert advance(canaries)[0] == "continue"
    users.reward(NEW, *mixed(20, 15))
    decision, text = advance(canaries)
    assert decision == "promote"
    assert "borne out after 60 rewarded requests" in text


def test_a_canary_that_does_worse_to_the_end_is_rejected(canaries: Canaries, users: Users) -> None:
    users.reward(NEW, *mixed(60, 38))
    users.reward(OLD, *mixed(200, 140))
    decision, text = advance(canaries)
    assert (decision, "not borne out" in text) == ("reject", True)


def test_harm_ends_a_canary_early(canaries: Canaries, users: Users) -> None:
    users.reward(NEW, *mixed(25, 5))
    users.reward(OLD, *mixed(200, 180))
    decision, text = advance(canaries)
    assert (decision, text.startswith("worse")) == ("reject", True)


def test_when_time_is_up_the_verdict_of_the_gate_stands(canaries: Canaries, users: Users) -> None:
    users.reward(NEW, 0.0, 0.5, 1.0)
    assert advance(canaries, after=23 * HOUR)[0] == "continue"
    decision, text = advance(canaries, after=24 * HOUR)
    assert (decision, "gate's verdict stands" in text) == ("promote", True)


def test_only_rewarded_routed_requests_of_the_time_count(canaries: Canaries, users: Users) -> None:
    users.reward(NEW, *mixed(60, 60))
    users.reward(OLD, *mixed(30, 30))
    counted = canaries.advance(AGENT, NEW, OLD, BEGAN, now=BEGAN + HOUR).difference
    users.reward(NEW, *[None] * 20)
    users.reward(NEW, *mixed(20, 0), at=BEGAN - HOUR)
    users.reward(NEW, *mixed(20, 0), reason="explicit")
    users.reward(NEW, *mixed(20, 0), agent="legal")
    assert canaries.advance(AGENT, NEW, OLD, BEGAN, now=BEGAN + HOUR).difference == counted


def test_a_promoted_version_that_does_worse_than_the_one_before_has_regressed(canaries: Canaries, users: Users) -> None:
    users.reward(OLD, *mixed(100, 90), at=BEGAN - HOUR)
    users.reward(NEW, *mixed(30, 27))
    assert canaries.regressed(AGENT, NEW, OLD, BEGAN).decision == "continue"
    users.reward(NEW, *mixed(30, 6))
    assert canaries.regressed(AGENT, NEW, OLD, BEGAN).decision == "reject"


def test_without_rewards_nothing_has_regressed(canaries: Canaries, users: Users) -> None:
    users.reward(OLD, *mixed(100, 90), at=BEGAN - HOUR)
    assert canaries.regressed(AGENT, NEW, OLD, BEGAN).decision == "continue"
