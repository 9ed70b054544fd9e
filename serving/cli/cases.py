"""`loradock cases`: bring cases in, look at them, judge them, take them out. Needs no server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, settings_of
from serving.cli.output import Output, cell

if TYPE_CHECKING:
    from training.casebank import Case, CaseBank

SHOWN_PROBLEMS = 20
_EXCERPT = 60

AgentName = Annotated[str, typer.Option("--agent", metavar="AGENT", help="Agent that the cases belong to.")]
SomeAgent = Annotated[str | None, typer.Option("--agent", metavar="AGENT", help="Only this agent's.")]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="messages, sharegpt, alpaca, chatml, prompt-completion, chat, instruction, classification or "
        "summarization. [dim](default: by the columns)[/dim]",
    ),
]


def build() -> typer.Typer:
    """The group."""
    group = typer.Typer(no_args_is_help=True, help="Import, export, inspect and judge the cases to learn from.")
    group.command("import")(import_cases)
    group.command("export")(export)
    group.command("list")(list_cases)
    group.command("stats")(stats)
    group.command("label")(label)
    group.command("delete")(delete)
    return group


def import_cases(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, a JSON array, CSV or TSV; plain or gzip.")],
    *,
    agent: AgentName,
    form: FormatName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and store nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import the rows of FILE as cases of an agent, all or (when it breaks off) none.

    Bad rows are reported with their lines and left out; what is known already is counted and left out. Besides what
    its format asks for, a row may tell `reward` (0 to 1; without one it counts as 1), `split` (train or test),
    `session`, `user_id`, `task_type` and `correction`. Exit code 1 when no case came of it.
    """
    out = Output(as_json)
    with opened(ctx) as bank, _progress(out, file.name) as on_progress:
        report = bank.import_file(file, form, _agent(agent), dry_run=dry_run, on_progress=on_progress)
    out.json(report.to_dict())
    for problem in report.problems[:SHOWN_PROBLEMS]:
        out.line(f"line {problem.line}: {problem.reason}", "red")
    if report.bad > SHOWN_PROBLEMS:
        out.line(f"and {report.bad - SHOWN_PROBLEMS} more bad rows; --json tells the first 1000", "red")
    would = "would be " if dry_run else ""
    out.line(
        f"{report.rows} rows as {report.format}: {report.added} cases {would}added to {report.agent}, "
        f"{report.duplicates} known already, {report.bad} bad rows ({report.seconds:.1f} s)"
    )
    if not report.added and not report.duplicates:
        raise typer.Exit(1)


def export(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write: .csv, .tsv, else JSON lines; .gz zips.")],
    *,
    agent: AgentName,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="As for import.")] = "messages",
    split: Annotated[str | None, typer.Option("--split", metavar="SPLIT", help="Only train, or only holdout.")] = None,
    min_reward: Annotated[
        float | None, typer.Option("--min-reward", min=0, max=1, help="Only cases with at least this reward.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an agent's cases to FILE, such that importing it gives them back. One of several with the same content."""
    if split not in (None, "train", "holdout"):
        raise Misuse(f"--split: '{split}' is neither train nor holdout")
    out = Output(as_json)
    with opened(ctx) as bank, out.working(f"writing {file}"):
        report = bank.export_file(file, form, _agent(agent), split=split, min_reward=min_reward)  # type: ignore[arg-type]
    out.json(report.to_dict())
    left = f", {report.left_out} that format {report.format} has no place for left out" if report.left_out else ""
    out.line(f"wrote {report.written} cases to {report.file}{left}")


def list_cases(
    ctx: typer.Context,
    *,
    agent: SomeAgent = None,
    session: Annotated[str | None, typer.Option("--session", metavar="SESSION", help="Only this session's.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="USER", help="Only this user's.")] = None,
    rewarded: Annotated[
        bool | None, typer.Option("--rewarded/--unrewarded", help="Only those with a reward, or without.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")] = 20,
    after: Annotated[str | None, typer.Option("--after", metavar="ID", help="Begin behind this case.")] = None,
    as_json: AsJson = False,
) -> None:
    """List cases, the newest first."""
    from training.casebank.service import document

    out = Output(as_json)
    with opened(ctx) as bank:
        found = bank.list(agent=agent, session=session, user=user, rewarded=rewarded, limit=limit, after=after)
    out.json([document(case) for case in found])
    out.table(("id", "agent", "adapter", ">reward", "split", "task", "answer to learn"), [_row(case) for case in found])


def stats(
    ctx: typer.Context,
    *,
    agent: SomeAgent = None,
    as_json: AsJson = False,
) -> None:
    """Show how many cases each agent has, how many of them can be learned, and how they were rewarded."""
    out = Output(as_json)
    with opened(ctx) as bank:
        found = bank.stats(agent, settings_of(ctx).settings.training.reward_threshold)
    out.json([each.to_dict() for each in found])
    counts = (">cases", ">rewarded", ">eligible", ">corrected", ">holdout")
    out.table(
        ("agent", *counts, ">mean reward", ">win rate", "last"),
        [
            (
                each.agent,
                each.cases,
                each.rewarded,
                each.eligible,
                each.corrected,
                each.holdout,
                each.mean_reward,
                each.win_rate,
                f"{each.last:%Y-%m-%d %H:%M}",
            )
            for each in found
        ],
    )


def label(
    ctx: typer.Context,
    case_id: Annotated[str, typer.Argument(metavar="ID", help="Case, or response (`x-request-id`, or the body's id).")],
    *,
    reward: Annotated[float | None, typer.Option("--reward", min=0, max=1, help="What the answer was worth.")] = None,
    right: Annotated[str | None, typer.Option("--label", metavar="LABEL", help="The right class.")] = None,
    correction: Annotated[
        str | None, typer.Option("--correction", metavar="TEXT", help="What the answer should have been.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what an answer was worth, or what it should have been."""
    from training.casebank.service import document

    if reward is None and right is None and correction is None:
        raise Misuse("give --reward, --label or --correction")
    out = Output(as_json)
    with opened(ctx) as bank:
        case = bank.feedback(case_id, reward, right, correction, source="cli")
    out.json(document(case))
    out.line(f"{case.id}: reward {cell(case.reward)}, answer to learn: {_short(case.target)}")


def delete(
    ctx: typer.Context,
    *,
    user: Annotated[str | None, typer.Option("--user", metavar="USER", help="All of this user.")] = None,
    session: Annotated[str | None, typer.Option("--session", metavar="SESSION", help="All of this session.")] = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="All that are older, in days.")
    ] = None,
    agent: SomeAgent = None,
    as_json: AsJson = False,
) -> None:
    """Delete cases for good: those that fulfil all that is given. Datasets that held them go too."""
    from training.dataset import purge

    if user is None and session is None and older_than is None:
        raise Misuse("say which: --user, --session or --older-than")
    out = Output(as_json)
    age = None if older_than is None else timedelta(days=older_than)
    with opened(ctx) as bank:
        deleted = bank.delete(user=user, session=session, agent=agent, older_than=age)
        purged = purge(bank.database, settings_of(ctx).settings.home) if deleted else []
    out.json({"deleted": deleted, "datasets": purged})
    out.line(f"deleted {deleted} cases" + (f", and {len(purged)} datasets that held them" if purged else ""))


@contextmanager
def opened(ctx: typer.Context) -> Iterator[CaseBank]:
    """The CaseBank of the settings; its refusals are lines for a person."""
    from adapters_registry import open_database
    from adapters_registry.errors import RegistryError
    from training.casebank import CaseBank

    settings = settings_of(ctx).settings
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        database = open_database(settings.database)
        try:
            yield CaseBank.from_settings(database, settings.training)
        finally:
            database.close()
    except RegistryError as error:
        raise (Misuse if error.param == "format" else CliError)(error.message) from None
    except OSError as error:
        raise CliError(f"{settings.home}: {error.strerror or error}") from None


@contextmanager
def _progress(out: Output, what: str) -> Iterator[Callable[[str, float], None] | None]:
    if not out.aside.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out.aside, transient=True) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda stage, share: progress.update(task, description=f"{stage} {what}", completed=share)


def _agent(name: str) -> str:
    if not name.strip():
        raise Misuse("--agent is empty")
    return name.strip()


def _row(case: Case) -> tuple[Any, ...]:
    target = _short(case.target)
    return (case.id, case.agent, case.adapter, case.reward, case.split, _short(case.prompt_text), target)


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"
