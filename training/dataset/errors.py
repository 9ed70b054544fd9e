"""What the datasets refuse, as types. Each message is one line.

RegistryError
├── ResourceNotFound
│   └── DatasetNotFound no dataset has this name
└── DatasetError
    ├── DatasetEmpty    there is nothing to learn from
    ├── DatasetCorrupt  the files are not what the name says
    ├── DatasetGone     cases that it held were deleted, so it cannot be made again
    └── Leakage         a case of the holdout, or a near duplicate of one, is in the training part
"""

from __future__ import annotations

from adapters_registry.errors import RegistryError, ResourceNotFound


class DatasetNotFound(ResourceNotFound):
    """No such dataset."""

    code = "dataset_not_found"


class DatasetError(RegistryError):
    """Base of what is wrong with datasets."""

    code = "dataset_error"


class DatasetEmpty(DatasetError):
    """No case is left to learn from."""

    code = "dataset_empty"


class DatasetCorrupt(DatasetError):
    """Files are missing, or hold something else."""

    code = "dataset_corrupt"


class DatasetGone(DatasetError):
    """It held cases that no longer exist."""

    code = "dataset_gone"


class Leakage(DatasetError):
    """Training would see what the gate asks."""

    code = "dataset_leakage"
