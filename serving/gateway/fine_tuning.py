"""`/v1/fine_tuning/jobs` as OpenAI's API has it, and `/v1/training/status`.

`training_file` is an uploaded file's id, or `casebank:AGENT` for the cases of an agent; `model` is a base, an agent or
an adapter. A job's `fine_tuned_model` is the version that it promoted, `name@version`; none if the gate refused it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.errors import AdapterNotFound
from router import resolve_agent
from serving.auth import Caller
from serving.errors import NotFound, Unprocessable
from serving.gateway.callers import admin
from serving.gateway.files import page, seconds
from serving.gateway.state import Gateway
from serving.services import Document, TrainingJobs

CASEBANK = "casebank:"
STATUS = {"queued": "queued", "succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled"}
"""OpenAI's word for a state; whatever is not here is `running`"""
PRIORITIES = ("critical", "high", "normal", "low")
METADATA_KEYS = 16
FILTERED = 1000
"""jobs that are looked at where a list is filtered by metadata"""
METRICS = {"loss": "train_loss", "validation_loss": "valid_loss", "step": "step"}
"""OpenAI's names for our metrics"""


class Hyperparameters(BaseModel):
    """How to train; `auto` leaves it to the preset, the base and the cases."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: Literal["auto"] | int = "auto"
    batch_size: Literal["auto"] | int = "auto"
    learning_rate_multiplier: Literal["auto"] | float = "auto"


class Supervised(BaseModel):
    """The one method there is."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(BaseModel):
    """How the job learns."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class JobCreation(BaseModel):
    """Body of `POST /v1/fine_tuning/jobs`."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, description="a base model, an agent or an adapter; a version is trained on")
    training_file: str = Field(min_length=1, description="`casebank:AGENT`, or an uploaded file's id")
    validation_file: str | None = Field(None, description="not taken: the held-out cases are drawn by hash")
    hyperparameters: Hyperparameters | None = Field(None, description="as in `method`; kept for older clients")
    method: Method | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64, description="agent of an uploaded file")
    seed: int | None = Field(None, ge=0)
    integrations: list[Any] | None = Field(None, description="not taken: trackers are set in the agent's preset")
    metadata: dict[str, str] | None = Field(
        None, max_length=METADATA_KEYS, description="`agent`: agent of an uploaded file; `priority`: critical to low"
    )

    @property
    def chosen(self) -> Hyperparameters:
        """From `method`, else from the older field."""
        return self.method.supervised.hyperparameters if self.method else self.hyperparameters or Hyperparameters()


def fine_tuning_router(gateway: Gateway, jobs: TrainingJobs) -> APIRouter:
    """The routes, in front of `jobs`; models are those that `gateway` knows."""
    router = APIRouter(prefix="/v1", tags=["fine-tuning"])
    _add_jobs(router, gateway, jobs)
    _add_details(router, jobs)

    @router.get("/training/status")
    async def status() -> dict[str, Any]:
        """The run in progress, or the latest one, with the queue, the workers and what the triggers decided."""
        return await asyncio.to_thread(jobs.status)

    return router


def _add_jobs(router: APIRouter, gateway: Gateway, jobs: TrainingJobs) -> None:
    @router.post("/fine_tuning/jobs")
    async def create(body: JobCreation, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Queue a job, or join the live one of the same agent and dataset."""
        _refuse_what_is_not_taken(body)
        agent, base = _target(gateway, body)
        hyper = body.chosen
        overrides = {
            "epochs": hyper.n_epochs,
            "batch_size": hyper.batch_size,
            "seed": body.seed,
            "continue_from": body.model if "@" in body.model else None,
        }
        multiplier = hyper.learning_rate_multiplier
        job = await asyncio.to_thread(
            jobs.submit,
            agent=agent,
            source=body.training_file,
            model=body.model,
            base=base,
            overrides={name: value for name, value in overrides.items() if value not in (None, "auto")},
            learning_rate_multiplier=None if multiplier == "auto" else float(multiplier),
            metadata=body.metadata or {},
            actor=caller.name,
        )
        return job_object(job)

    @router.get("/fine_tuning/jobs")
    async def list_jobs(
        request: Request,
        after: str | None = None,
        limit: int = Query(20, ge=1, le=100),
        caller: Caller = Depends(admin),
    ) -> dict[str, Any]:
        """Jobs, the newest first; `metadata[key]=value` keeps those that have it."""
        wanted = {
            key.removeprefix("metadata[").removesuffix("]"): value
            for key, value in request.query_params.items()
            if key.startswith("metadata[")
        }
        found = await asyncio.to_thread(jobs.jobs, after=after, limit=FILTERED if wanted else limit + 1)
        kept = [job for job in found if wanted.items() <= job["metadata"].items()]
        return page([job_object(job) for job in kept], limit)

    @router.get("/fine_tuning/jobs/{job_id}")
    async def retrieve(job_id: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """One job."""
        return job_object(await asyncio.to_thread(jobs.job, job_id))

    @router.post("/fine_tuning/jobs/{job_id}/cancel")
    async def cancel(job_id: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """End a job; a running one ends as soon as its worker has stopped it."""
        return job_object(await asyncio.to_thread(jobs.cancel, job_id, actor=caller.name))


def _add_details(router: APIRouter, jobs: TrainingJobs) -> None:
    @router.get("/fine_tuning/jobs/{job_id}/events")
    async def events(
        job_id: str,
        after: str | None = None,
        limit: int = Query(20, ge=1, le=10_000),
        caller: Caller = Depends(admin),
    ) -> dict[str, Any]:
        """What happened, the newest first."""
        found = await asyncio.to_thread(jobs.events, job_id)
        return page(_behind([event_object(event) for event in found], after), limit)

    @router.get("/fine_tuning/jobs/{job_id}/checkpoints")
    async def checkpoints(
        job_id: str,
        after: str | None = None,
        limit: int = Query(10, ge=1, le=1000),
        caller: Caller = Depends(admin),
    ) -> dict[str, Any]:
        """Checkpoints that a run would go on from, the newest first. They are not served."""
        found = await asyncio.to_thread(jobs.checkpoints, job_id)
        return page(_behind([checkpoint_object(checkpoint) for checkpoint in found], after), limit)


def job_object(job: Document) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job`."""
    overrides, measures = job["overrides"], job["measures"] or {}
    hyperparameters = {
        "n_epochs": overrides.get("epochs", "auto"),
        "batch_size": overrides.get("batch_size", "auto"),
        "learning_rate_multiplier": job["learning_rate_multiplier"] or "auto",
    }
    error = job["error"]
    return {
        "id": job["id"],
        "object": "fine_tuning.job",
        "created_at": seconds(job["created_at"]),
        "finished_at": seconds(job["finished_at"]),
        "estimated_finish": _estimate(job),
        "model": job["model"] or job["base"] or job["agent"],
        "fine_tuned_model": job["adapter"] if job["promoted"] else None,
        "organization_id": "loradock",
        "result_files": [],
        "status": STATUS.get(job["state"], "running"),
        "validation_file": None,
        "training_file": job["source"],
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "trained_tokens": measures.get("tokens"),
        "error": None if error is None else {"code": error["code"], "message": error["message"], "param": None},
        "integrations": [],
        "seed": int(overrides.get("seed", 0)),
        "metadata": job["metadata"],
    }


def event_object(event: Document) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.event`."""
    return {
        "id": f"ftevent-{event['id']}",
        "object": "fine_tuning.job.event",
        "created_at": seconds(event["at"]),
        "level": event["level"],
        "message": event["message"],
        "type": "metrics" if event["data"] else "message",
        "data": _renamed(event["data"]),
    }


def checkpoint_object(checkpoint: Document) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.checkpoint`."""
    return {
        "id": checkpoint["id"],
        "object": "fine_tuning.job.checkpoint",
        "created_at": seconds(checkpoint["created_at"]),
        "fine_tuned_model_checkpoint": f"{checkpoint['job']}:step-{checkpoint['step']}",
        "fine_tuning_job_id": checkpoint["job"],
        "step_number": checkpoint["step"],
        "metrics": {"step": checkpoint["step"]} | _renamed(checkpoint["metrics"]),
    }


def _renamed(metrics: Document) -> dict[str, Any]:
    return {METRICS.get(name, name): value for name, value in metrics.items()}


def _estimate(job: Document) -> int | None:
    eta = job["training"].get("eta_seconds")
    return round(time.time() + eta) if job["training"]["running"] and eta is not None else None


def _behind(found: list[dict[str, Any]], after: str | None) -> list[dict[str, Any]]:
    """What follows the entry `after`; all of it where there is no such entry."""
    ids = [entry["id"] for entry in found]
    return found[ids.index(after) + 1 :] if after in ids else found


def _refuse_what_is_not_taken(body: JobCreation) -> None:
    if body.validation_file is not None:
        raise Unprocessable(
            "validation_file is not taken: cases are held out by their hash, so that no one can train on them",
            param="validation_file",
        )
    if body.integrations:
        raise Unprocessable(
            "integrations are not taken: set `training.report_to` in the agent's preset", param="integrations"
        )
    priority = (body.metadata or {}).get("priority", "normal")
    if priority.lower() not in PRIORITIES:
        raise Unprocessable(f"metadata.priority must be one of {', '.join(PRIORITIES)}", param="metadata")


def _target(gateway: Gateway, body: JobCreation) -> tuple[str, str | None]:
    """The agent that is trained, and the base if the model says one. Raises NotFound, Unprocessable."""
    if body.training_file == CASEBANK:
        raise Unprocessable("training_file must name an agent: casebank:AGENT", param="training_file")
    told = (body.metadata or {}).get("agent")
    of_cases = body.training_file.removeprefix(CASEBANK) if body.training_file.startswith(CASEBANK) else None
    agent, base = _meaning(gateway, body.model, of_cases)
    if of_cases is not None:
        for name, where in ((told, "metadata.agent"), (agent, "model"), (body.suffix, "suffix")):
            if name not in (None, of_cases):
                raise Unprocessable(
                    f"{where} means agent {name!r}, and training_file holds the cases of {of_cases!r}", param=where
                )
        return of_cases, base
    chosen = told or body.suffix or agent
    if chosen is None:
        raise Unprocessable("say which agent the file is for: in metadata.agent, suffix or model", param="metadata")
    return chosen, base


def _meaning(gateway: Gateway, model: str, of_cases: str | None) -> tuple[str | None, str | None]:
    """Agent and base that `model` names, None for what it leaves open."""
    for engine in gateway.fleet.engines:
        if engine.base_name == model:
            if not engine.slots:
                raise Unprocessable(f"the engine of {model} takes no adapters", param="model")
            return None, model
    registered = gateway.registered
    if model in registered.agents or model == of_cases or resolve_agent(model, gateway.presets) is not None:
        return model, None
    try:
        version = gateway.registry.resolve(model)
    except AdapterNotFound:
        near = gateway.registry.nearest(model)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise NotFound(f"The model `{model}` does not exist{hint}", param="model", code="model_not_found") from None
    return version.agent, version.base
