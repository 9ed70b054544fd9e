"""`loradock train dataset`: what an agent's adapter would learn from, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.settings import Settings, SettingsError
from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, settings_of
from serving.cli.output import BAD, FAINT, Output, cell

if TYPE_CHECKING:
    from training.casebank import Case
    from training.dataset import Dataset

STYLES = {"error": BAD, "warning": "yellow", "info": FAINT}
SHOWN_LABELS = 20


def add_commands(group: typer.Typer) -> None:
    """Add `dataset`."""
    group.command("dataset")(dataset)


def dataset(
    ctx: typer.Context,
    agent: Annotated[str, typer.Option("--agent", metavar="AGENT", help="Agent whose cases are learned from.")],
    *,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FOLDER", help="Model folder whose tokenizer counts the tokens."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Leave out longer rows; needs --tokenizer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build the dataset of AGENT's cases as they are now; show its figures and what is wrong with the cases.

    The same cases give the same dataset, by name. Nothing that is held out, nor a near duplicate of it, is learned.
    """
    if max_tokens is not None and tokenizer is None:
        raise Misuse("--max-tokens needs --tokenizer")
    out = Output(as_json)
    count_tokens = None if tokenizer is None else _counter(tokenizer)
    with out.working("reading the cases"):
        built = _build(settings_of(ctx).settings, agent, max_tokens, count_tokens)
    out.json(_document(built))
    _show(out, built)


def _build(
    settings: Settings, agent: str, max_tokens: int | None, count_tokens: Callable[[Case], int] | None
) -> Dataset:
    from adapters_registry import RegistryError, open_database
    from configs.agents import load_presets
    from configs.training import TrainingPreset
    from router import resolve_agent
    from training.casebank import CaseBank
    from training.dataset import DatasetConfig, build_dataset

    try:
        presets = load_presets(settings.agents_dir)
    except SettingsError as error:
        raise Misuse(str(error)) from None
    known = resolve_agent(agent, presets)
    preset = presets[known].training if known else TrainingPreset()
    config = DatasetConfig.of(settings.training, preset).model_copy(update={"max_tokens": max_tokens})
    try:
        database = open_database(settings.database)
        try:
            return build_dataset(database, CaseBank(database), agent, config, settings.home, count_tokens=count_tokens)
        finally:
            database.close()
    except RegistryError as error:
        raise CliError(error.message) from None
    except OSError as error:
        raise CliError(f"the dataset cannot be written: {error}") from None


def _counter(folder: Path) -> Callable[[Case], int]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise CliError("--tokenizer needs loradock[train]") from None
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise Misuse(f"--tokenizer: {file} does not exist")
    loaded = Tokenizer.from_file(str(file))

    def count(case: Case) -> int:
        return len(loaded.encode(f"{case.prompt_text}\n{case.target or ''}").ids)

    return count


def _document(built: Dataset) -> dict[str, Any]:
    return {
        "dataset": built.name,
        "agent": built.agent,
        "folder": str(built.folder),
        "config": built.config.model_dump(),
        **built.report,
    }


def _show(out: Output, built: Dataset) -> None:
    figures = built.report["statistics"]
    out.fields(
        [
            ("dataset", built.name),
            ("folder", built.folder),
            ("rows", ", ".join(f"{count} {part}" for part, count in figures["rows"].items())),
            ("characters of a prompt", _spread(figures["characters"]["prompt"])),
            ("characters of an answer", _spread(figures["characters"]["answer"])),
            ("tokens of a row", _spread(figures["tokens"]) if figures["tokens"] else None),
            ("mean reward", figures["rewards"].get("mean")),
            ("corrected", f"{figures['corrections_share']:.1%}"),
            ("task types", ", ".join(f"{name} {count}" for name, count in figures["task_types"].items())),
        ]
    )
    _show_labels(out, figures["labels"])
    if built.report["quality"]:
        out.gap()
        out.table(("severity", ">cases", "finding", "what it means", "for example"), _findings(built))


def _show_labels(out: Output, labels: Mapping[str, Mapping[str, int]]) -> None:
    if not labels:
        return
    out.gap()
    often = sorted(labels, key=lambda label: (-sum(labels[label].values()), label))
    rows = [(label, *labels[label].values()) for label in often[:SHOWN_LABELS]]
    title = None if len(often) <= SHOWN_LABELS else f"the {SHOWN_LABELS} most frequent of {len(often)} labels"
    out.table(("label", ">train", ">validation", ">holdout"), rows, title=title)


def _findings(built: Dataset) -> list[tuple[Any, ...]]:
    rows = []
    for finding in built.report["quality"]:
        severity = cell(finding["severity"])
        severity.stylize(STYLES[finding["severity"]])
        example = (finding["names"] or finding["cases"])[:2]
        rows.append((severity, finding["count"], finding["code"], finding["message"], example))
    return rows


def _spread(figures: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())
