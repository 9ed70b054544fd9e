"""Datasets: what an agent's adapter learns from, and what it is judged on.

`build_dataset` divides the agent's cases: held-out ones for the gate, the others, if their answers were good or
corrected and they resemble nothing that is held out, for training, a part of them for validation. A dataset is named by
its content; `load_dataset` verifies it, `rebuild_dataset` makes it again from the CaseBank. When cases are deleted,
`purge` deletes the datasets that held them. Nothing here imports torch.
"""

from training.dataset.build import Bank, build_dataset, purge, rebuild_dataset
from training.dataset.config import DatasetConfig
from training.dataset.errors import (
    DatasetCorrupt,
    DatasetEmpty,
    DatasetError,
    DatasetGone,
    DatasetNotFound,
    Leakage,
)
from training.dataset.files import Dataset, load_dataset
from training.dataset.general import is_replayed
from training.dataset.leakage import check_leakage
from training.dataset.members import Known, list_datasets
from training.dataset.rows import Row, read_rows

__all__ = [
    "Bank",
    "Dataset",
    "DatasetConfig",
    "DatasetCorrupt",
    "DatasetEmpty",
    "DatasetError",
    "DatasetGone",
    "DatasetNotFound",
    "Known",
    "Leakage",
    "Row",
    "build_dataset",
    "check_leakage",
    "is_replayed",
    "list_datasets",
    "load_dataset",
    "purge",
    "read_rows",
    "rebuild_dataset",
]
