"""`loradock adapters export`: an adapter for others, as a PEFT folder, a merged model or a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs import embedded
from configs.settings import Settings
from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, settings_of
from serving.cli.output import Output, megabytes

if TYPE_CHECKING:
    from adapters_registry import AdapterRegistry, AdapterVersion
    from adapters_registry.database import Database
    from training.export import CaseSet, ExportReport

LEAST_CASES = 20
"""with fewer held-out cases of the agent's own, one answer more or less would decide"""
NOT_WEIGHTS = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "original/*"]


class Format(StrEnum):
    """What to write."""

    PEFT = "peft"
    MERGED = "merged"
    GGUF_Q8_0 = "gguf-q8_0"
    GGUF_F16 = "gguf-f16"


class Dtype(StrEnum):
    """Numbers of a merged model."""

    BF16 = "bf16"
    FP16 = "fp16"


Name = Annotated[str, typer.Argument(metavar="NAME", help="Adapter: NAME or NAME@VERSION.")]


def export(
    ctx: typer.Context,
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to write.")],
    *,
    kind: Annotated[
        Format, typer.Option("--format", metavar="peft|merged|gguf-q8_0|gguf-f16", help="What to write.")
    ] = Format.PEFT,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", metavar="bf16|fp16", help="Numbers of a merged model.")
    ] = Dtype.BF16,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="FOLDER|HUB_ID", help="16-bit base. [dim](default: the one in the settings)[/dim]"
        ),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            "--cases",
            metavar="FILE",
            help="CSV (text, label) or JSONL (messages, completion) to check on. [dim](default: the agent's held-out "
            "cases, else the general set)[/dim]",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Check on so many cases, drawn with a fixed seed.")
    ] = 200,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Measure what the export lost.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Keep what lost too much.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    license_name: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence in the card. [dim](default: the base's)[/dim]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter for others: a PEFT folder, the model merged in 16 bits, or a GGUF file.

    A merged model or a GGUF file is compared with the adapter in peft on its unmerged base; when more than 5 % of right
    answers or perplexity is lost, nothing is written and the exit code is 1. Reads the home on this machine; needs no
    server.
    """
    out = Output(as_json)
    settings = settings_of(ctx).settings
    with _registry(settings) as (registry, database):
        from training.export import ExportOrder
        from training.export import export as write

        version = registry.resolve(name)
        merges = kind is not Format.PEFT
        with _told(folder), _progress(out) as progress:
            order = ExportOrder(
                ref=version.engine_name,
                destination=folder,
                format=kind.value,
                base=base_folder(settings, version, base) if merges else None,
                dtype=dtype.value,
                cases=_cases(database, version, cases).sample(limit) if merges and check else None,
                force=force,
                keep=keep,
                license=license_name,
                figures=_figures(database, version),
            )
            report = write(registry, order, progress)
    out.json({"name": name} | report.to_dict())
    _print(out, report)


def base_folder(settings: Settings, version: AdapterVersion, wanted: str | None) -> Path:
    """The folder of the version's base: the `wanted` one, else that of the engine that serves it. Raises CliError."""
    if wanted is not None:
        return _fetched(wanted)
    if version.base == embedded.BASE_NAME:
        return embedded.BASE
    from serving.engine.model import BaseModel

    for engine in settings.resolved_engines:
        if engine.kind == "vllm" and engine.base_name == version.base:
            return _fetched(BaseModel.of(engine).argument)
    raise CliError(f"no engine in the settings serves {version.base} from files: name its folder with --base")


def _fetched(model: str) -> Path:
    """A folder, or a hub id brought into the hub's cache."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.is_absolute() or model.startswith((".", "~")):
        raise Misuse(f"the base model's folder {model} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, ignore_patterns=NOT_WEIGHTS))
    except HFValidationError:
        raise Misuse(f"{model!r} is neither a folder nor a hub id") from None
    except (HfHubHTTPError, OSError) as error:
        raise CliError(f"cannot fetch the base model {model}: {error}") from None


def _cases(database: Database, version: AdapterVersion, file: Path | None) -> CaseSet:
    """What to check on: `file`, else the agent's held-out cases in the CaseBank, else the demo's, else general ones."""
    from training.casebank import CaseBank
    from training.export import conversation_cases, demo_cases, general_cases, read_cases

    if file is not None:
        return read_cases(file)
    held_out = CaseBank(database).cases(version.agent, split="holdout", rewarded=True)
    own = conversation_cases(
        ((case.messages, case.target or "") for case in held_out), f"held-out cases of {version.agent}"
    )
    if len(own.cases) >= LEAST_CASES:
        return own
    demo = demo_cases(version.agent) if version.base == embedded.BASE_NAME else None
    return demo or general_cases()


def _figures(database: Database, version: AdapterVersion) -> dict[str, dict[str, Any]]:
    """What training and gate said of the version; nothing for one that came from elsewhere."""
    from training.export import job_figures
    from training.jobs import JobStore
    from training.jobs.describe import job_document

    documents = map(job_document, JobStore(database).list(agent=version.agent))
    made = next((each for each in documents if each["adapter"] == version.engine_name), None)
    return job_figures(made["measures"], made["gate"]) if made else {}


@contextmanager
def _registry(settings: Settings) -> Iterator[tuple[AdapterRegistry, Database]]:
    from adapters_registry import AdapterRegistry, RegistryError, open_database

    if not (settings.home / "adapters").is_dir():
        raise CliError(f"there are no adapters in {settings.home}: set LORADOCK_HOME to the server's home")
    database = open_database(settings.database)
    try:
        yield AdapterRegistry(database, settings.home, bases={}), database
    except RegistryError as error:
        raise CliError(error.message) from None
    finally:
        database.close()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Errors of the export as lines for a person."""
    from training.export import ExportError

    try:
        yield
    except ExportError as error:
        raise CliError(error.message) from None
    except ImportError as error:
        raise CliError(f"this needs the training extra (pip install 'loradock[train]'): {error}") from None
    except OSError as error:
        raise CliError(f"{folder}: {error.strerror or error}") from None


@contextmanager
def _progress(out: Output) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal."""
    if not out.aside.is_terminal:
        yield lambda _step, _done, _total: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out.aside, transient=True) as bar:
        task = bar.add_task("exporting", total=None)
        yield lambda step, done, total: bar.update(task, description=step, completed=done, total=total or None)


def _print(out: Output, report: ExportReport) -> None:
    out.line(f"wrote {report.folder} ({megabytes(report.size_bytes)})")
    loss = report.loss
    if loss is None:
        return
    rows: list[tuple[Any, ...]] = [
        ("adapter", loss.reference_accuracy, loss.reference_nll, loss.reference_way),
        (report.format, loss.exported_accuracy, loss.exported_nll, loss.way),
    ]
    out.table(("model", ">right", ">nll/token", "run by"), rows)
    out.line(f"lost {loss.lost:.2%} of at most {loss.limit:.0%}, on {loss.cases} cases ({loss.source})")
