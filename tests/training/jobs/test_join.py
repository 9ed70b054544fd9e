"""The real parts, where they decide something."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adapters_registry.errors import AdapterNotFound
from adapters_registry.model import AdapterVersion
from bench.random_adapters import make_adapters
from configs import embedded
from configs.training import TrainingPreset
from tests.training.jobs.conftest import wish
from training.jobs import JobStore
from training.jobs.errors import Hopeless
from training.jobs.join import ProcessTrainers, spare_threads
from training.jobs.parts import Base, DatasetView


@pytest.mark.parametrize(("cores", "processes", "threads"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 3), (2, 4, 1)])
def test_a_core_is_left_to_what_serves_and_the_others_are_shared(
    cores: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert spare_threads(processes) == threads


def test_training_starts_from_an_adapter_of_its_base_and_of_no_other(store: JobStore, tmp_path: Path) -> None:
    [start] = make_adapters(embedded.BASE, tmp_path / "adapters", 1, 8)

    def adapter_of(name: str) -> AdapterVersion:
        if name != start.engine_name:
            raise AdapterNotFound(f"there is no {name}")
        return start

    trainers = ProcessTrainers(lambda _: TrainingPreset(), adapter_of, lambda: False)
    dataset = DatasetView("ds-1", tmp_path, 10, 0, 0)

    def configure(agent: str, continue_from: str, base: str) -> None:
        job = store.submit(wish(agent, overrides={"continue_from": continue_from}))
        trainers.configure(job, Base(base, str(embedded.BASE), 16, "w", "t"), dataset, tmp_path)

    configure("legal", start.engine_name, embedded.BASE_NAME)
    assert json.loads((tmp_path / "config.json").read_text())["continue_from"] == str(start.path)
    with pytest.raises(Hopeless, match=f"made for the base {embedded.BASE_NAME}, and this job trains on other"):
        configure("security", start.engine_name, "other")
    with pytest.raises(Hopeless, match="cannot continue from nobody"):
        configure("support", "nobody", embedded.BASE_NAME)
