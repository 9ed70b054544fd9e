"""Outcomes reach the sink in batches, or are counted, and no request ever waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from serving.recorder import BATCH, Outcome, Recorder
from tests.serving.waiting import until


def outcome(number: int = 0) -> Outcome:
    return Outcome(
        str(number), "/v1/completions", "local", None, None, None, "base", "explicit", 0.5, 200, b"{}", b"{}", False,
        1, 1, 0.0, 0.0, {},
    )  # fmt: skip


class Sink:
    """Keeps what it is given; `gate` holds a write back, `error` fails the next ones."""

    def __init__(self) -> None:
        self.kept: list[Outcome] = []
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.writing = threading.Event()
        self.error: Exception | None = None

    def write(self, outcomes: Sequence[Outcome]) -> None:
        self.writing.set()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.sizes.append(len(outcomes))
        self.kept.extend(outcomes)


async def test_what_is_queued_is_written_in_order_and_in_batches_before_the_end() -> None:
    sink, drops = Sink(), list[int]()
    recorder = Recorder(sink, on_drop=drops.append)
    recorder.start()
    for number in range(2 * BATCH + 3):
        recorder.record(outcome(number))
    await recorder.stop()
    assert [int(each.request_id) for each in sink.kept] == list(range(2 * BATCH + 3))
    assert sink.sizes == [BATCH, BATCH, 3]
    assert sum(drops) == 0


async def test_a_full_queue_drops_counts_and_never_waits() -> None:
    sink, drops = Sink(), list[int]()
    sink.gate.clear()
    recorder = Recorder(sink, capacity=10, on_drop=drops.append)
    recorder.start()
    recorder.record(outcome())
    assert await asyncio.to_thread(sink.writing.wait, 5)
    began = time.perf_counter()
    for _ in range(10_000):
        recorder.record(outcome())
    assert time.perf_counter() - began < 0.5
    assert sum(drops) == 10_000 - 10
    sink.gate.set()
    await recorder.stop()
    assert len(sink.kept) == 11


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("a sink's own mistake")])
async def test_a_failing_sink_costs_its_batch_and_nothing_else(error: Exception) -> None:
    sink, drops = Sink(), list[int]()
    sink.error = error
    recorder = Recorder(sink, on_drop=drops.append)
    recorder.start()
    for _ in range(3):
        recorder.record(outcome())
    await until(lambda: drops)
    assert drops == [3]
    sink.error = None
    recorder.record(outcome())
    await recorder.stop()
    assert len(sink.kept) == 1


async def test_a_sink_that_hangs_holds_the_end_up_no_longer_than_its_grace() -> None:
    sink, drops = Sink(), list[int]()
    sink.gate.clear()
    recorder = Recorder(sink, on_drop=drops.append)
    recorder.start()
    recorder.record(outcome())
    assert await asyncio.to_thread(sink.writing.wait, 5)
    recorder.record(outcome())
    await recorder.stop(grace_s=0.05)
    assert sum(drops) == 2, "the one in hand and the one in the queue"
    sink.gate.set()


async def test_without_a_sink_nothing_is_kept() -> None:
    recorder = Recorder(None, on_drop=lambda count: pytest.fail("nothing to drop"))
    recorder.start()
    recorder.record(outcome())
    assert not recorder.enabled
    await recorder.stop()


async def test_large_bodies_are_dropped_before_they_fill_the_memory() -> None:
    sink, drops = Sink(), list[int]()
    sink.gate.clear()
    recorder = Recorder(sink, max_bytes=10 * outcome().size, on_drop=drops.append)
    recorder.start()
    for number in range(15):
        recorder.record(outcome(number))
    assert sum(drops) == 5
    sink.gate.set()
    await until(lambda: len(sink.kept) == 10)
    await asyncio.sleep(0.05)
    recorder.record(outcome(15))
    await recorder.stop()
    assert (len(sink.kept), sum(drops)) == (11, 5)
