"""Cases are kept once for each content, judged, counted and deleted; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from tests.training.casebank.conftest import case
from training.casebank import Case, CaseBank, CaseInvalid, CaseNotFound
from training.casebank.tables import BandRow

LONG = "My parcel has not arrived yet although it was sent nine days ago, and nobody answers my letters about it"


def test_what_is_added_comes_back(any_bank: CaseBank) -> None:
    given = case(
        "May I?", "No.", source="served", owner="ann", response_id="req_1", body_id="chatcmpl-1", session="s", user="u",
        task_type="chat", tools=[{"type": "function"}], adapter="support@0123456789ab", base="tiny", reason="champion",
        sampling={"temperature": 0.5}, difficulty=0.25, prompt_tokens=3, completion_tokens=2, latency_s=0.125,
        reward=0.5, reward_source="ann", episode="e",
    )  # fmt: skip
    added = any_bank.add([given])
    found = any_bank.get(added.ids[0])
    kept = ("messages", "response", "source", "owner", "session", "user", "task_type", "tools", "adapter", "base")
    kept += ("reason", "sampling", "difficulty", "prompt_tokens", "completion_tokens", "latency_s", "reward", "episode")
    assert {name: getattr(found, name) for name in kept} == {name: getattr(given, name) for name in kept}
    assert found.created_at is not None and found.created_at.tzinfo is UTC
    assert found.rewarded_at == found.created_at
    assert len(found.content_hash) == 64
    assert found.split in ("train", "holdout")
    assert any_bank.find_response("req_1") == any_bank.find_response("chatcmpl-1") == found
    assert any_bank.find_response("req_2") is None
    with pytest.raises(CaseNotFound):
        any_bank.get("nobody")


def test_ids_grow_with_time(bank: CaseBank) -> None:
    ids = bank.add([case(f"question number {number}") for number in range(50)]).ids
    assert list(ids) == sorted(ids)
    assert [each.id for each in bank.cases("support")] == list(ids)
    assert [each.id for each in bank.list(limit=10, after=ids[20])] == list(ids[10:20][::-1])


def test_what_no_database_stores_is_replaced(any_bank: CaseBank) -> None:
    odd = "nul \x00 and half a pair \ud83d"
    any_bank.add([case(odd, odd, label=odd, session="s" * 10_000, user=odd, agent="a" * 5000)])
    found = any_bank.list(session="s" * 10_000)[0]
    assert found.answer == found.label == "nul \N{REPLACEMENT CHARACTER} and half a pair \N{REPLACEMENT CHARACTER}"
    assert any_bank.list(agent="a" * 5000) == any_bank.list(user=odd) == [found]


@pytest.mark.parametrize("wrong", [case("x", reward=1.5), case("x", reward=-0.1), Case(messages=[], agent="a")])
def test_a_wrong_case_keeps_all_of_its_batch_out(bank: CaseBank, wrong: Case) -> None:
    with pytest.raises(CaseInvalid):
        bank.add([case("right"), wrong])
    assert bank.list() == []


# -- the same content again ------------------------------------------------------------------------------------------


def test_known_content_is_not_added_again(any_bank: CaseBank) -> None:
    first = any_bank.add([case("a?"), case("b?"), case("a?")])
    assert (len(first.ids), first.duplicates) == (2, 1)
    assert first.existing == (first.ids[0],)
    assert any_bank.add([case("a?"), case("b?")]).ids == ()
    assert len(any_bank.add([case("a?", "another answer"), case("a?", agent="other")]).ids) == 2


def test_served_repeats_are_kept_and_learned_once(any_bank: CaseBank) -> None:
    for number in range(3):
        any_bank.add([case("a?", source="served", response_id=f"r{number}")])
    assert len(any_bank.list()) == 3
    assert [each.response_id for each in any_bank.cases("support")] == ["r0"]
    assert len(list(any_bank.cases("support", repeats=True))) == 3
    assert len({each.split for each in any_bank.list()}) == len({each.cluster for each in any_bank.list()}) == 1
    any_bank.feedback("r1", 1.0)
    assert [(each.response_id, each.reward) for each in any_bank.cases("support")] == [("r1", 1.0)]
    assert any_bank.count_eligible("support") == 1
    any_bank.feedback("r2", 0.0)
    assert any_bank.count_eligible("support") == 0, "the last word counts"


def test_what_is_imported_stands_for_what_was_only_served(any_bank: CaseBank) -> None:
    any_bank.add([case("a?", source="served", response_id="r0")])
    assert len(any_bank.add([case("a?", source="import", reward=1.0)]).ids) == 1
    assert [each.source for each in any_bank.cases("support")] == ["import"]
    assert any_bank.add([case("a?", source="import", reward=1.0)]).duplicates == 1


def test_another_takes_over_when_the_learned_one_is_deleted(any_bank: CaseBank) -> None:
    ids = [any_bank.add([case(LONG, source="served", session=f"s{number}")]).ids[0] for number in range(3)]
    assert any_bank.delete(session="s0") == 1
    assert [each.id for each in any_bank.cases("support")] == [ids[2]], "the last that was written"
    alike = any_bank.get(any_bank.add([case(LONG.replace("nine", "ten"))]).ids[0])
    assert alike.cluster == any_bank.get(ids[1]).cluster, "still found as a near duplicate"


# -- clusters and the split ------------------------------------------------------------------------------------------


def test_near_duplicates_share_cluster_and_side(any_bank: CaseBank) -> None:
    texts = [LONG, LONG.replace("nine", "ten"), LONG.upper(), LONG + "!", "Something else altogether, about fish"]
    for text in texts:
        any_bank.add([case(text, f"answer to {text}")])
    clusters = [each.cluster for each in any_bank.cases("support")]
    assert len(set(clusters[:4])) == 1
    assert clusters[4] != clusters[0]
    assert len({each.split for each in list(any_bank.cases("support"))[:4]}) == 1
    other = any_bank.get(any_bank.add([case(LONG, agent="other")]).ids[0])
    assert other.cluster not in clusters, "agents have nothing in common"


def test_the_prompts_of_a_system_do_not_make_tasks_alike(bank: CaseBank) -> None:
    system = {"role": "system", "content": LONG * 5}
    for text in ("What is a fish?", "Where do trains go at night?"):
        bank.add([Case(messages=[system, {"role": "user", "content": text}], response={"content": "x"}, agent="a")])
    assert len({each.cluster for each in bank.cases("a")}) == 2


def test_an_episode_is_on_one_side(bank: CaseBank) -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    for number in range(40):
        bank.add([case(f"{word} {number}", episode=f"e{number}") for word in words])
    sides: dict[str | None, set[str | None]] = {}
    for each in bank.cases("support"):
        sides.setdefault(each.episode, set()).add(each.split)
    assert all(len(side) == 1 for side in sides.values())
    assert 2 <= sum("holdout" in side for side in sides.values()) <= 16


def test_a_side_that_is_told_holds(bank: CaseBank) -> None:
    bank.add([case(f"{LONG} {number}", f"a{number}", split="holdout") for number in range(3)])
    bank.add([case(f"{LONG} {number}", f"b{number}", split="train") for number in range(3)])
    assert [each.split for each in bank.cases("support")] == ["holdout"] * 3 + ["train"] * 3


def test_the_side_does_not_depend_on_where_and_when(any_bank: CaseBank) -> None:
    texts = [f"{number} pieces of kind {number * 7}" for number in range(60)]
    any_bank.add([case(text) for text in texts])
    sides = {each.prompt_text: each.split for each in any_bank.cases("support")}
    assert sides["0 pieces of kind 0"] in ("train", "holdout")
    any_bank.delete(agent="support")
    any_bank.add([case(text) for text in reversed(texts)])
    assert {each.prompt_text: each.split for each in any_bank.cases("support")} == sides
    assert 3 <= list(sides.values()).count("holdout") <= 24


# -- feedback --------------------------------------------------------------------------------------------------------


def test_feedback_is_noted_with_its_source_and_time(any_bank: CaseBank) -> None:
    any_bank.add([case("a?", source="served", response_id="r0")])
    before = datetime.now(UTC)
    judged = any_bank.feedback("r0", 0.9, source="ann")
    assert (judged.reward, judged.reward_source, judged.corrected) == (0.9, "ann", False)
    assert judged.rewarded_at is not None and judged.rewarded_at >= before
    assert any_bank.get("r0") == judged


@pytest.mark.parametrize(
    ("told", "reward", "corrected", "target"),
    [
        ({"label": "fine"}, 1.0, False, "fine"),
        ({"label": "bad"}, 0.0, True, "bad"),
        ({"correction": "better"}, 0.0, True, "better"),
        ({"correction": "better", "reward": 0.6}, 0.6, True, "better"),
        ({"label": "bad", "correction": "better"}, 0.0, True, "better"),
    ],
)
def test_a_label_or_a_correction_is_what_is_learned(
    bank: CaseBank, told: dict[str, str | float], reward: float, corrected: bool, target: str
) -> None:
    bank.add([case("a?", response_id="r0")])
    judged = bank.feedback("r0", **told)  # type: ignore[arg-type]
    assert (judged.reward, judged.corrected, judged.target) == (reward, corrected, target)
    assert bank.count_eligible("support") == 1


def test_feedback_that_says_nothing_or_too_much_is_refused(bank: CaseBank) -> None:
    bank.add([case("a?", response_id="r0", owner="ann")])
    with pytest.raises(CaseInvalid):
        bank.feedback("r0")
    with pytest.raises(CaseInvalid, match="between 0 and 1"):
        bank.feedback("r0", 1.1)
    with pytest.raises(CaseNotFound):
        bank.feedback("r1", 1.0)
    with pytest.raises(CaseNotFound):
        bank.feedback("r0", 1.0, owner="bob")
    assert bank.feedback("r0", 1.0, owner="ann").reward == 1.0


# -- counting --------------------------------------------------------------------------------------------------------


def test_cases_are_eligible_by_reward_or_correction_from_then_on(any_bank: CaseBank) -> None:
    any_bank.add([case("a?", reward=0.8), case("b?", reward=0.5), case("c?"), case("d?", None, reward=1.0)])
    assert any_bank.count_eligible("support") == 1
    assert any_bank.count_eligible("support", 0.4) == 2
    moment = datetime.now(UTC)
    assert any_bank.count_eligible("support", since=moment) == 0
    any_bank.feedback(any_bank.list()[1].id, correction="so")
    assert any_bank.count_eligible("support", since=moment) == 1
    assert any_bank.count_eligible("nobody") == 0


def test_statistics_by_agent_and_version(any_bank: CaseBank) -> None:
    for number in range(4):
        any_bank.add([
            case(f"{number}?", source="served", adapter="v1" if number % 2 else None, reward=number / 4)
        ])  # fmt: skip
    any_bank.add([case("z?", agent="zoo", reward=1.0), case("none?", agent=None)])
    support, zoo, nobody = any_bank.stats()
    assert (support.agent, zoo.agent, nobody.agent) == ("support", "zoo", None)
    assert (support.cases, support.rewarded, support.eligible, support.corrected) == (4, 4, 1, 0)
    assert (support.mean_reward, support.win_rate, zoo.win_rate) == (0.375, 0.25, None)
    assert any_bank.stats("zoo")[0].last.tzinfo is UTC
    base, version = any_bank.version_stats("support")
    assert (base.adapter, base.rewarded, version.adapter, version.mean_reward, version.win_rate) == (
        None, 2, "v1", 0.5, 0.5,
    )  # fmt: skip
    assert any_bank.version_stats("support", since=datetime.now(UTC)) == []
    assert any_bank.agents() == ["support", "zoo"]


# -- deletion --------------------------------------------------------------------------------------------------------


def test_deletion_is_for_good(any_bank: CaseBank) -> None:
    any_bank.add([case(f"{n} of many", user=f"u{n % 2}", session=f"s{n % 3}") for n in range(12)])
    assert any_bank.delete(user="u1", session="s0") == 2
    assert any_bank.delete(user="u1") == 4
    assert {each.user for each in any_bank.list()} == {"u0"}
    assert any_bank.delete(ids=[any_bank.list()[0].id, "nobody"]) == 1
    assert any_bank.delete(agent="support") == 5
    assert any_bank.database.scalar(sa.select(sa.func.count()).select_from(BandRow)) == 0
    with pytest.raises(CaseInvalid):
        any_bank.delete()


def test_old_cases_expire(any_bank: CaseBank) -> None:
    now = datetime.now(UTC)
    any_bank.add([case(f"{days} days", created_at=now - timedelta(days=days)) for days in (1, 10, 100)])
    assert any_bank.expire(None) == 0
    assert any_bank.expire(30) == 1
    assert any_bank.delete(older_than=timedelta(days=5)) == 1
    assert [each.prompt_text for each in any_bank.list()] == ["1 days"]


# -- several writers -------------------------------------------------------------------------------------------------


def test_writers_at_once_agree_on_heads_clusters_and_sides(any_bank: CaseBank, another: CaseBank) -> None:
    def write(bank: CaseBank, start: int) -> None:
        for number in range(start, start + 8):
            bank.add([case(f"{LONG} about order {number % 8}"), case("the same", source="served")])

    threads = [threading.Thread(target=write, args=(bank, 8 * n)) for n, bank in enumerate((any_bank, another))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(any_bank.cases("support", repeats=True))
    assert len(found) == 8 + 16
    assert len([each for each in found if each.answer and each.prompt_text == "the same" and not each.repeat_of]) == 1
    assert len({(each.cluster, each.split) for each in found if each.prompt_text != "the same"}) == 1
