"""The trainer: a process that turns a dataset's folder into an adapter, and survives what may happen on the way.

`python -m training.trainer JOB_FOLDER` reads `config.json` (`TrainingConfig`), makes tokens of the dataset exactly as
the serving engine would (`rows`), chooses what the configuration leaves open (`resolve`), loads the model (`model`),
and walks through the steps (`loop`), whose rows are fixed by the seed (`batches`). It says how far it is
(`training-status.json`), writes checkpoints that are whole or not there (`checkpoints`), saves memory when it runs out
(`memory`), goes back when the loss runs away (`watch`), and leaves `adapter/` or `model/`, and `result.json`. Killed at
any moment and started again, it goes on from the last good checkpoint as if nothing had happened; SIGTERM lets it
write one first. What is imported here needs no torch.
"""

from training.trainer.config import Launcher, TrainingConfig, load_config
from training.trainer.errors import DiskFull, OutOfMemory, TrainerError, TrainingDiverged, TrainingRefused
from training.trainer.resolve import BaseFacts, DataFacts, adaptive_rank, resolve
from training.trainer.status import TrainingStatus, read_status

__all__ = [
    "BaseFacts",
    "DataFacts",
    "DiskFull",
    "Launcher",
    "OutOfMemory",
    "TrainerError",
    "TrainingConfig",
    "TrainingDiverged",
    "TrainingRefused",
    "TrainingStatus",
    "adaptive_rank",
    "load_config",
    "read_status",
    "resolve",
]
