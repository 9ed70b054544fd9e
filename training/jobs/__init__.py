"""The queue of training jobs, and what carries them out.

Lifecycle: anybody submits a `JobRequest` to the `JobStore`; a `Worker` claims it (`claims`), takes it through the
steps (`pipeline`, whose parts `join` brings together), and leaves a verdict; `triggers` submit by themselves. The job
table is the truth: whatever dies, the next worker goes on from there.
"""

from training.jobs.errors import BudgetExceeded, JobConflict, JobError, JobNotFound, JobRefused
from training.jobs.model import Job, JobEvent, JobRequest, JobState, Priority
from training.jobs.store import JobStore

__all__ = [
    "BudgetExceeded",
    "Job",
    "JobConflict",
    "JobError",
    "JobEvent",
    "JobNotFound",
    "JobRefused",
    "JobRequest",
    "JobState",
    "JobStore",
    "Priority",
]
