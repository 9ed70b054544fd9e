"""The trainer as its users start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapters_registry import AdapterRegistry, BaseModelSpec, open_database
from configs import embedded
from tests.training.trainer.conftest import write_dataset
from training.demo.corpus import load_domain, training_cases
from training.trainer import TrainingConfig, read_status


def trainer(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.trainer", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)


def test_a_wrong_call_is_one_line_and_status_2(tmp_path: Path) -> None:
    called = trainer()
    assert (called.returncode, called.stderr) == (2, "usage: python -m training.trainer JOB_FOLDER\n")
    (tmp_path / "config.json").write_text(json.dumps({"base": "b", "dataset": "d", "method": "prefix"}))
    refused = trainer(tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: method: prefix tuning cannot be served")
    assert refused.stderr.count("\n") == 1
    status = read_status(tmp_path)
    assert status is not None
    assert status.error == refused.stderr.removeprefix("error: ").strip()


@pytest.mark.slow
def test_it_trains_the_embedded_base_and_the_registry_takes_the_adapter(tmp_path: Path) -> None:
    cases = list(training_cases(load_domain("support"), 200, 7))
    rows = [
        {"messages": [{"role": "user", "content": case.text}], "completion": case.label, "task_type": "classification"}
        for case in cases
    ]
    data = write_dataset(tmp_path / "data", rows[20:], rows[:20])
    job = tmp_path / "job"
    config = TrainingConfig(
        base=str(embedded.BASE), base_name=embedded.BASE_NAME, dataset=data, output=job, max_steps=10, report_to=()
    )
    config.save()
    ended = trainer(job)
    assert ended.returncode == 0, ended.stderr
    spec = BaseModelSpec.from_folder(embedded.BASE, embedded.BASE_NAME, max_lora_rank=32)
    database = open_database(f"sqlite:///{tmp_path / 'registry.db'}")
    try:
        registry = AdapterRegistry(database, tmp_path / "home", bases={spec.name: spec})
        version = registry.register("support-agent", str(job / "adapter"), agent="support")
    finally:
        database.close()
    assert version.rank == 16
