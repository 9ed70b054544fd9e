"""The training worker beside the server: exactly one, replaced when it dies, gone when the server has gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters_registry import open_database
from bench import mock_upstream
from bench.processes import started_with
from tests.serving.served import served
from tests.serving.waiting import until
from training.jobs import JobStore
from training.jobs.model import WorkerView
from training.jobs.processes import start_time

LIMIT_S = 60.0


class Table:
    """The workers that a home knows of."""

    def __init__(self, home: Path) -> None:
        self._store = JobStore(open_database(f"sqlite:///{home / 'loradock.db'}"))

    async def one(self, *, other_than: int = 0) -> WorkerView:
        """The only worker that runs, once it does."""
        await until(lambda: [each.pid for each in self.running()] not in ([], [other_than]), LIMIT_S)
        (found,) = self.running()
        return found

    def running(self) -> list[WorkerView]:
        return [each for each in self._store.workers() if start_time(each.pid) is not None]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_one_worker_runs_beside_the_server_and_is_replaced_when_it_dies(
    tmp_path: Path, home: Callable[[str], Path], workers: str
) -> None:
    folder = home(mock_upstream.BASE)
    async with mock_upstream.serving(mock_upstream.Upstream()) as url:
        with served(folder, url, tmp_path / "tmp", workers=workers, training__worker="true") as server:
            await server.ready(LIMIT_S)
            table = Table(folder)
            first = await table.one()
            assert (os.getpriority(os.PRIO_PROCESS, first.pid), first.endpoint) == (10, server.url)
            os.kill(first.pid, signal.SIGKILL)
            second = await table.one(other_than=first.pid)
            os.kill(server.process.pid, signal.SIGTERM)
            assert await server.ended(LIMIT_S) == 0
            await until(lambda: start_time(second.pid) is None and not started_with(str(server.folder)))
            assert table.running() == []


async def test_no_worker_outlives_a_server_that_is_killed(tmp_path: Path, home: Callable[[str], Path]) -> None:
    folder = home(mock_upstream.BASE)
    async with mock_upstream.serving(mock_upstream.Upstream()) as url:
        with served(folder, url, tmp_path / "tmp", training__worker="true") as server:
            await server.ready(LIMIT_S)
            worker = await Table(folder).one()
            os.kill(server.process.pid, signal.SIGKILL)
            await until(lambda: start_time(worker.pid) is None, LIMIT_S)
