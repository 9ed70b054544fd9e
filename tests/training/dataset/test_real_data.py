"""Public data with official train and test parts; skipped where the files are not there."""

from __future__ import annotations

import csv
import gzip
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.training.dataset.make import asked
from training.casebank import Case
from training.dataset import DatasetConfig, check_leakage
from training.dataset.plan import plan_dataset

DATA = Path(os.environ.get("LORADOCK_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")
TRAIN, TEST = DATA / "support_banking77_train.csv.gz", DATA / "support_banking77_test.csv.gz"


def read(file: Path, split: str) -> list[Case]:
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        return [
            asked(row["text"], id=f"{split}-{n:05}", label=row["label"], task_type="classification", split=split)
            for n, row in enumerate(csv.DictReader(lines))
        ]


@pytest.mark.slow
@pytest.mark.skipif(not TRAIN.exists(), reason=f"{TRAIN} is not there; LORADOCK_TEST_DATA names another folder")
def test_official_test_rows_are_never_learned() -> None:
    cases = [*read(TRAIN, "train")[::3], *read(TEST, "holdout")]
    started = time.process_time()
    plan = plan_dataset(lambda: cases, "support", DatasetConfig(holdout_max=5000))
    seconds = time.process_time() - started
    parts = Counter(plan.parts.values())
    assert parts["train"] + parts["validation"] > 3_000
    assert parts["holdout"] > 3_000
    assert 40 < plan.notes.count("near_holdout") < 120
    assert not plan.notes.count("template_suspected")
    assert seconds < 30
    check_leakage(
        (case for case in cases if plan.parts.get(case.id) in {"train", "validation"}),
        (case for case in cases if case.split == "holdout"),
    )
