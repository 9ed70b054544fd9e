"""Why a training run ended early. Each message is one line that tells the user the reason.

TrainerError
├── TrainingRefused     configuration, base and dataset do not go together; trying again is vain
├── OutOfMemory         nothing is left that would save memory
├── TrainingDiverged    the loss stayed bad after every rollback
└── DiskFull            no room for a checkpoint, even after the older ones were deleted
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all that the trainer reports. `exit_code` is that of the process."""

    exit_code = 1


class TrainingRefused(TrainerError):
    """What is asked for cannot be trained, or not be served afterwards."""

    exit_code = 2


class OutOfMemory(TrainerError):
    """The model does not fit, with every way of saving memory in use."""


class TrainingDiverged(TrainerError):
    """The loss is not a number, or far above the best, again and again."""


class DiskFull(TrainerError):
    """The last good checkpoint is kept; training goes on from it once there is room."""
