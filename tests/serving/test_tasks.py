import asyncio
import logging

import pytest

from serving import tasks


async def test_work_that_fails_is_logged_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_AFTER_S", 0.0)
    runs = 0
    again = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("a defect")
        again.set()
        await asyncio.sleep(60)

    with caplog.at_level(logging.ERROR):
        task = tasks.keep_running("the work", work)
        async with asyncio.timeout(5):
            await again.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "the work failed" in caplog.text
    assert runs == 2
