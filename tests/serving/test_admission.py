import asyncio

import pytest

from serving.admission import Admission
from serving.errors import Overloaded


async def hold(admission: Admission, release: asyncio.Event, log: list[int], number: int) -> None:
    async with admission:
        log.append(number)
        await release.wait()


async def test_requests_over_the_limit_wait_in_order_and_then_run() -> None:
    admission, release, log = Admission(2, 10, 5), asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(hold(admission, release, log, number)) for number in range(5)]
    await asyncio.sleep(0.01)
    assert log == [0, 1]
    assert (admission.running, admission.queued) == (2, 3)
    release.set()
    await asyncio.gather(*tasks)
    assert log == [0, 1, 2, 3, 4]
    assert (admission.running, admission.queued) == (0, 0)


async def test_a_full_queue_refuses_at_once_with_retry_after() -> None:
    admission, release = Admission(1, 0, 5), asyncio.Event()
    running = asyncio.create_task(hold(admission, release, [], 0))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await admission.__aenter__()
    assert refused.value.headers["retry-after"] == "1"
    release.set()
    await running


async def test_a_turn_that_does_not_come_in_time_is_refused_and_leaves_the_queue() -> None:
    admission, release = Admission(1, 5, 0.02), asyncio.Event()
    running = asyncio.create_task(hold(admission, release, [], 0))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="no turn within"):
        await admission.__aenter__()
    assert admission.queued == 0
    release.set()
    await running


async def test_a_cancelled_waiter_gives_its_turn_to_the_next() -> None:
    admission, release, log = Admission(1, 5, 5), asyncio.Event(), list[int]()
    running = asyncio.create_task(hold(admission, release, log, 0))
    await asyncio.sleep(0)
    gone = asyncio.create_task(hold(admission, release, log, 1))
    last = asyncio.create_task(hold(admission, release, log, 2))
    await asyncio.sleep(0)
    release.set()
    gone.cancel()
    await asyncio.gather(running, last)
    assert log == [0, 2]
    async with admission:  # the place is free again
        assert admission.running == 1
