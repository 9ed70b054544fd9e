"""`loradock train`: plan, start and follow training jobs. They lie in the database; a worker carries them out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.settings import ALLOWED_RANKS, API_KEY_VARIABLE, SettingsError
from configs.training import Method
from serving.cli import train_dataset, train_plan
from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, Limit, Url, settings_of
from serving.cli.output import FAINT, GOOD, Output, safe

if TYPE_CHECKING:
    from training.jobs import Job
    from training.jobs.service import TrainingService

WHO_STARTS_ONE = (
    "'loradock serve' starts one once its engines have settled, unless training.worker is off; "
    "'loradock train worker' at once"
)
WORKER_WAIT_S = 20.0
"""how long a job that is waited for may find no worker: one may be starting"""
LOOK_S = 0.5


class PriorityName(StrEnum):
    """Who goes first."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


OneAgent = Annotated[str, typer.Option("--agent", metavar="AGENT", help="Agent whose cases are learned from.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]
MaybeJobId = Annotated[
    str | None, typer.Argument(metavar="[JOB]", help="Id of a job. [dim](default: the one in work)[/dim]")
]


def build() -> typer.Typer:
    """The group."""
    group = typer.Typer(no_args_is_help=True, help="Plan, run and follow training jobs.")
    train_plan.add_commands(group)
    train_dataset.add_commands(group)
    for command in (run, jobs, status, cancel, retry, watch, worker):
        group.command(command.__name__)(command)
    return group


def run(
    ctx: typer.Context,
    agent: OneAgent,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")] = False,
    priority: Annotated[PriorityName, typer.Option("--priority", help="Who goes first.")] = PriorityName.NORMAL,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="Base model. [dim](default: the agent's)[/dim]")
    ] = None,
    method: Annotated[
        Method | None, typer.Option("--method", help="How to train. [dim](default: the preset's)[/dim]")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="LoRA rank. [dim](default: by the cases)[/dim]")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0.01, help="Passes over the cases.")] = None,
    continue_from: Annotated[
        str | None,
        typer.Option("--continue-from", metavar="ADAPTER", help="Adapter or version of one to start from."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train AGENT's adapter from its cases: dataset, training, gate, promotion.

    The server's worker does it, or one of `loradock train worker`. A live job of the same agent is joined. With --wait,
    the exit code is 0 when the job is finished, promoted or not.
    """
    from training.jobs import JobRequest, JobState, Priority
    from training.jobs.describe import job_document, outcome_document

    if rank is not None and rank not in ALLOWED_RANKS:
        raise Misuse(f"--rank: {rank} is none of {', '.join(map(str, ALLOWED_RANKS))}")
    out = Output(as_json)
    overrides = {"method": method, "rank": rank, "epochs": epochs, "continue_from": continue_from}
    with _service(ctx) as service:
        request = JobRequest(
            agent,
            f"casebank:{agent}",
            Priority[priority.name],
            base=base,
            overrides={name: value for name, value in overrides.items() if value is not None},
        )
        _check_cases(ctx, service, agent)
        job = service.store.submit(request)
        if not wait:
            out.json(job_document(job, service.store.position(job.id)))
            out.line(f"{job.id} is {job.state.value}: loradock train watch {job.id}")
            if not service.store.workers():
                out.aside.print(f"no worker runs yet: {WHO_STARTS_ONE}")
            return
        job = _follow(service, job.id, out, needs_worker=True)
    if job.state is not JobState.SUCCEEDED:
        raise CliError(f"job {job.id} has {job.state.value}: {job.error or job.detail}")
    out.json(outcome_document(job))
    out.line(job.detail, GOOD if (job.result or {}).get("promoted") else "")
    out.fields(_fields(outcome_document(job)))


def jobs(
    ctx: typer.Context,
    *,
    agent: Annotated[str | None, typer.Option("--agent", metavar="AGENT", help="Jobs of this agent.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Only those that have not ended.")] = False,
    triggers: Annotated[bool, typer.Option("--triggers", help="What the triggers decided, instead.")] = False,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first, with their place in the queue."""
    from training.jobs.describe import job_document, trigger_document
    from training.jobs.model import LIVE
    from training.jobs.triggers import decisions

    out = Output(as_json)
    with _service(ctx) as service:
        store = service.store
        if triggers:
            decided = [trigger_document(view) for view in decisions(store, limit or 100)]
            out.json({"object": "list", "data": decided})
            columns = ("agent", "decision", "because", "detail", "job", "since")
            rows = [
                (each["agent"], each["action"], each["reason"], each["detail"], each["job"], each["first_at"])
                for each in decided
            ]
            out.table(columns, rows)
            return
        found = store.list(agent=agent, states=LIVE if live else (), limit=limit or 100)
        documents = [job_document(job, store.position(job.id)) for job in found]
    out.json({"object": "list", "data": documents})
    if not documents:
        out.line("no jobs")
        return
    shown = ("job", "agent", "state", "priority", ">place", "detail", ">seconds", ">usd")
    out.table(shown, [_row(document) for document in documents])


def status(ctx: typer.Context, job: MaybeJobId = None, as_json: AsJson = False) -> None:
    """Show how training stands, or one JOB with everything that happened to it."""
    out = Output(as_json)
    with _service(ctx) as service, _told():
        if job is None:
            document = service.status()
            out.json(document)
            _show_overview(out, document)
            return
        document = service.job(job)
        events = list(reversed(service.events(job)))
    out.json(document | {"events": events})
    out.fields(_fields({key: value for key, value in document.items() if not isinstance(value, dict)}))
    out.gap()
    out.table(("at", "level", "event"), [(each["at"], each["level"], each["message"]) for each in events])


def cancel(ctx: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """End a job: a running trainer writes a checkpoint first; a canary is retired."""
    from training.jobs.describe import job_document

    out = Output(as_json)
    with _service(ctx) as service, _told():
        ended = service.store.cancel(job, actor="cli")
    out.json(job_document(ended))
    out.line(f"{job} is {ended.state.value}" if not ended.cancelling else f"{job} is being cancelled")


def retry(ctx: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Queue a job that failed or was cancelled once more, from where it stopped."""
    from training.jobs.describe import job_document

    out = Output(as_json)
    with _service(ctx) as service, _told():
        again = service.store.retry(job, actor="cli")
        document = job_document(again, service.store.position(job))
    out.json(document)
    out.line(f"{job} is queued again")


def watch(ctx: typer.Context, job: MaybeJobId = None, as_json: AsJson = False) -> None:
    """Follow a job until it has ended."""
    from training.jobs.describe import job_document
    from training.jobs.model import LIVE

    out = Output(as_json)
    with _service(ctx) as service, _told():
        if job is None:
            live = service.store.list(states=LIVE, limit=1)
            if not live:
                raise CliError("no job is live")
            job = live[0].id
        ended = _follow(service, job, out, needs_worker=False)
    out.json(job_document(ended))
    out.line(f"{job} has {ended.state.value}: {ended.detail}")


def worker(ctx: typer.Context, url: Url = None) -> None:
    """Run a worker alone, until Ctrl-C: it carries out jobs, and judges through the endpoint.

    `loradock serve` has one already, unless `training.worker` is off.
    """
    import os

    from adapters_registry import RegistryError
    from serving.cli.client import address_of
    from serving.learning import Endpoint, run_worker
    from serving.server import log_to_file
    from serving.training_process import NICENESS

    os.nice(NICENESS)
    settings = settings_of(ctx).settings
    endpoint = address_of(settings, url)
    out = Output()
    log_to_file(settings)
    out.line(f"training worker on {settings.home}, endpoint {endpoint}; log in {settings.home / 'logs'}", FAINT)
    try:
        run_worker(settings, Endpoint(endpoint, os.environ.get(API_KEY_VARIABLE) or None))
    except (RegistryError, SettingsError) as error:
        raise CliError(str(error)) from None


# -- shared ------------------------------------------------------------------------------------------------------------


@contextmanager
def _service(ctx: typer.Context) -> Iterator[TrainingService]:
    """The queue that the settings lead to."""
    from adapters_registry import DatabaseError, open_database
    from serving.composition import compose_service
    from training.jobs import BudgetExceeded

    settings = settings_of(ctx).settings
    try:
        database = open_database(settings.database)
    except DatabaseError as error:
        raise CliError(error.message) from None
    try:
        yield compose_service(settings, database)
    except (DatabaseError, BudgetExceeded) as error:
        raise CliError(error.message) from None
    finally:
        database.close()


@contextmanager
def _told() -> Iterator[None]:
    """Refusals of the queue as lines for a person."""
    from training.jobs import JobError

    try:
        yield
    except JobError as error:
        raise CliError(error.message) from None


def _check_cases(ctx: typer.Context, service: TrainingService, agent: str) -> None:
    """Refuse an agent without cases before anything is queued."""
    from training.casebank import CaseBank

    bank = CaseBank(service.store.database)
    if bank.count_eligible(agent, settings_of(ctx).settings.training.reward_threshold):
        return
    others = ", ".join(bank.agents()) or "none has"
    raise CliError(f"agent '{safe(agent)}' has no cases to learn from (agents with cases: {others})")


def _follow(service: TrainingService, job_id: str, out: Output, *, needs_worker: bool) -> Job:
    """Show the job's progress until it has ended. Raises CliError if there is nobody to do it."""
    began = time.monotonic()
    with _shown(out) as show:
        while (job := service.store.get(job_id)).state.is_live:
            show(job, service.progress(job), service.store.position(job_id))
            if service.store.workers():
                began = time.monotonic()
            elif needs_worker and time.monotonic() - began > WORKER_WAIT_S:
                raise CliError(f"no worker runs, so {job_id} waits in the queue: {WHO_STARTS_ONE}")
            time.sleep(LOOK_S)
    return job


@contextmanager
def _shown(out: Output) -> Iterator[Any]:
    """What shows a job: a bar on a terminal, else a line for each change."""
    if not out.aside.is_terminal:
        said: list[str] = []

        def line(job: Job, _told: dict[str, Any], position: int | None) -> None:
            text = _detail(job, position)
            if said[-1:] != [text]:
                said.append(text)
                out.aside.print(safe(text))

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out.aside, transient=True) as progress:
        task = progress.add_task("", total=None)

        def bar(job: Job, told: dict[str, Any], position: int | None) -> None:
            training = told["running"] and told["total_steps"]
            progress.update(
                task,
                description=safe(_detail(job, position)),
                total=told["total_steps"] if training else None,
                completed=told["step"] or 0 if training else 0,
            )

        yield bar


def _detail(job: Job, position: int | None) -> str:
    place = f", place {position} in the queue" if position else ""
    return f"{job.agent}: {job.state.value}{place}: {job.detail}"


def _row(document: dict[str, Any]) -> Sequence[Any]:
    return (
        document["id"],
        document["agent"],
        document["state"],
        document["priority"].lower(),
        document["position"],
        document["detail"],
        f"{document['seconds']:.0f}",
        f"{document['cost_usd']:.2f}",
    )


def _fields(document: dict[str, Any]) -> list[tuple[str, Any]]:
    """Names and values, one level deep."""
    return [
        (key, ", ".join(f"{name} {each}" for name, each in value.items() if not isinstance(each, (dict, list))))
        if isinstance(value, dict)
        else (key, value)
        for key, value in document.items()
        if not isinstance(value, list)
    ]


def _show_overview(out: Output, document: dict[str, Any]) -> None:
    out.fields([(key, value) for key, value in document.items() if not isinstance(value, list)])
    out.fields([("workers", len(document["workers"]))])
    if document["triggers"]:
        out.gap()
        rows = [(each["agent"], each["action"], each["reason"], each["detail"]) for each in document["triggers"]]
        out.table(("agent", "trigger", "because", "detail"), rows)
