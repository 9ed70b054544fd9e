"""What runs in processes that claim jobs, or die holding one."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

from adapters_registry import open_database
from training.jobs import JobStore
from training.jobs.claims import Claims
from training.jobs.gpus import Capacity, Needs


def claim_all(pipe: Connection, url: str) -> None:
    """Claim as long as there is anything; send the ids."""
    database = open_database(url)
    claims = Claims(JobStore(database))
    pipe.send("ready")
    pipe.recv()
    mine = []
    while (job := claims.claim(Capacity(cpu_jobs=100), lambda _: Needs())) is not None:
        mine.append(job.id)
    pipe.send(mine)
    database.close()


def claim_and_die(pipe: Connection, url: str) -> None:
    """Announce itself, claim one job, and be killed."""
    database = open_database(url)
    claims = Claims(JobStore(database))
    claims.announce()
    job = claims.claim(Capacity(), lambda _: Needs())
    assert job is not None
    pipe.send(job.id)
    os.kill(os.getpid(), signal.SIGKILL)
