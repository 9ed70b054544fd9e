"""The model of the card: what it must get right to compare policies."""

from __future__ import annotations

import asyncio
import time

from bench.residency_model import modelled, on_clock, parse


def figures(*options: str) -> list[dict[str, float]]:
    args = parse(["--seconds", "10", "--rounds", "2", *options])
    rounds: list[dict[str, float]] = on_clock(lambda: modelled(args))
    return rounds


def test_time_is_what_is_waited_for() -> None:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(60))
        return loop.time()

    began = time.monotonic()
    assert 3600 <= on_clock(work) < 3601
    assert time.monotonic() - began < 5


def test_adapters_that_all_have_a_slot_wait_for_their_first_load_alone() -> None:
    first, second = figures("--adapters", "4", "--rate", "5", "--disk-ms", "500")
    assert first["first_max_ms"] > 500
    assert second["first_max_ms"] < 100
    assert second["requests"] / 10 - second["completed_per_s"] < 0.5


def test_it_is_the_same_each_time() -> None:
    assert figures("--adapters", "30") == figures("--adapters", "30")


def test_several_loads_at_once_help_where_the_disk_is_slow() -> None:
    many = ("--adapters", "400", "--slots", "32", "--rate", "20", "--disk-ms", "200", "--host-adapters", "50")
    [one, _], [four, _] = figures(*many, "--loads", "1"), figures(*many, "--loads", "4")
    assert four["first_p99_ms"] < one["first_p99_ms"] / 2


def test_no_adapter_waits_long_behind_a_long_answer() -> None:
    rounds = figures("--rate", "12", "--long-share", "0.02", "--long-answer", "4096", "--seconds", "20")
    answer_ms = 4096 * 7
    assert max(figure["first_max_ms"] for figure in rounds) < answer_ms / 5
