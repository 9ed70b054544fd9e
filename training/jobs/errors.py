"""Everything the queue refuses, and how a job may end badly. Each message is one line that tells the reason.

JobError
├── JobRefused      the request cannot be served as it is
├── BudgetExceeded  the agent has spent what it may
├── JobNotFound     no such job or file
└── JobConflict     the state of the job does not allow this

StepFailed          a step of a running job failed; trying again may help
└── Hopeless        it will not
Interrupted         work on a job stops here, which is no failure
├── Cancelled       because somebody asked for it
└── Stopping        because the worker ends, or no longer holds the job
"""

from __future__ import annotations

from adapters_registry.errors import LifecycleError, RegistryError, ResourceNotFound


class JobError(RegistryError):
    """Base of what the queue refuses; shares the registry's tree, so that HTTP maps it in the same table."""

    code = "job_error"


class JobRefused(JobError):
    """The request names something that is not there, or asks for what cannot be."""

    code = "invalid_job"


class BudgetExceeded(JobError):
    """The agent's jobs of the last 30 days have cost what they may."""

    code = "budget_exceeded"


class JobNotFound(JobError, ResourceNotFound):
    """No such job or file."""

    code = "not_found"


class JobConflict(JobError, LifecycleError):
    """The job has ended, or is not where this is possible."""

    code = "job_conflict"


class StepFailed(Exception):
    """A step failed; the job is tried again, a few times."""

    def __init__(self, message: str, code: str = "step_failed") -> None:
        super().__init__(" ".join(message.split()))
        self.message = " ".join(message.split())
        self.code = code


class Hopeless(StepFailed):
    """A step failed, and would fail again."""


class Interrupted(Exception):
    """Work stops here, to be taken up later or never."""


class Cancelled(Interrupted):
    """The job is to be cancelled."""


class Stopping(Interrupted):
    """The worker ends, or has lost its hold; the job goes on elsewhere."""
