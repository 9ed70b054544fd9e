from __future__ import annotations

import os

import pytest

from training.jobs.join import spare_threads


@pytest.mark.parametrize(("cores", "processes", "threads"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 3), (2, 4, 1)])
def test_a_core_is_left_to_what_serves_and_the_others_are_shared(
    cores: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert spare_threads(processes) == threads
