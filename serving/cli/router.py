"""`loradock router`: fit the router's estimators, and see what they are worth. Needs no server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson
from serving.cli.output import FAINT, Output

if TYPE_CHECKING:
    from router.evaluation import Comparison, Split
    from router.learned import OutcomeEstimator, RouteRow

ROWS = "CSV of the columns prompt, weak_correct and strong_correct (0 to 1); .gz is unpacked."
Data = Annotated[Path, typer.Option("--data", metavar="FILE", help=ROWS)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of folds, draws and fits.")]
Group = Annotated[
    str | None, typer.Option("--group", metavar="COLUMN", help="Column of a row's kind, held out kind by kind.")
]


def build() -> typer.Typer:
    """The group."""
    from serving.cli import router_versions

    group = typer.Typer(no_args_is_help=True, help="Fit the router's estimators, measure them, choose the version.")
    group.command("fit")(fit)
    group.command("eval")(evaluate)
    group.command("eval-agents")(evaluate_agents)
    router_versions.add_commands(group)
    return group


def fit(
    *,
    data: Annotated[Path | None, typer.Option("--data", metavar="FILE", help=ROWS)] = None,
    agents: Annotated[
        Path | None, typer.Option("--agents", metavar="FILE", help="CSV of the columns text and agent.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the model goes.")],
    group: Group = None,
    estimator: Annotated[
        str, typer.Option("--estimator", metavar="NAME", help="auto, tfidf, blend, neighbours, or daao (needs torch).")
    ] = "auto",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit what predicts the tiers' outcomes (--data) and what recognises agents (--agents), and write it to FOLDER."""
    from router.evaluation import read_routes
    from router.learned import RouterModel, fit_recogniser

    if data is None and agents is None:
        raise Misuse("give --data, --agents or both")
    out = Output(as_json)
    with _one_line(), out.working("fitting"):
        rows = read_routes(data, group) if data else []
        texts, owners = _own_tasks(agents) if agents else ([], [])
        outcomes = _outcomes(rows, estimator, seed) if rows else None
        model = RouterModel.of(outcomes, fit_recogniser(texts, owners, seed=seed) if texts else None)
        model.save(folder)
    out.json({"version": model.version, "folder": str(folder), "rows": len(rows), "texts": len(texts)})
    out.line(f"wrote router {model.version} to {folder}: {len(rows)} rows, {len(texts)} texts of agents")


def evaluate(
    *,
    data: Data,
    folds: Annotated[int, typer.Option("--cv", min=2, max=20, help="Folds, each held out once.")] = 5,
    seed: Seed = 0,
    group: Group = None,
    train_rows: Annotated[
        int | None, typer.Option("--train-rows", metavar="N", min=75, help="Learn from only so many rows.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", metavar="FILE", help="Fit on --data and score this, with no folds.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FOLDER", help="Also write pictures and a page.")
    ] = None,
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Also the estimator that looks up near cases; takes twice the time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare all estimators on held-out rows: APGR, CPT, calibration and time, beside the oracle's."""
    from router.evaluation import compare, contenders, read_routes, summary, write_report

    if report and find_spec("matplotlib") is None:
        raise Misuse("--report needs matplotlib: pip install 'loradock[train]'")
    out = Output(as_json)
    with _one_line(), _progress(out) as on_progress:
        rows = read_routes(data, group)
        tested = read_routes(test, group) if test else []
        parts = _parts(rows, tested, folds, train_rows, seed)
        everybody = contenders(_daao(), neighbours=neighbours)
        comparison = compare([*rows, *tested], parts, everybody, seed=seed, progress=on_progress)
        page = write_report(comparison, report, seed=seed) if report else None
    out.json(summary(comparison))
    _print(out, comparison)
    if page:
        out.line(f"report: {page}", FAINT)


def evaluate_agents(
    *,
    train: Annotated[Path, typer.Option("--train", metavar="FILE", help="CSV of the columns text and agent.")],
    test: Annotated[
        Path, typer.Option("--test", metavar="FILE", help="The same; the agent 'oos' marks tasks of none.")
    ],
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Learn to recognise agents from one file, and measure it on the other."""
    from router.evaluation import judge_recogniser, read_agents
    from router.learned import fit_recogniser

    out = Output(as_json)
    with _one_line(), out.working("fitting and judging"):
        recogniser = fit_recogniser(*_own_tasks(train), seed=seed)
        texts, owners = read_agents(test)
        figures = judge_recogniser(recogniser, texts, owners)
    found = {name: None if value is None else round(value, 4) for name, value in figures._asdict().items()}
    out.json(found)
    out.fields(list(found.items()))


def _own_tasks(path: Path) -> tuple[list[str], list[str]]:
    """Texts and agents of a file, without the tasks of none."""
    from router.evaluation import OUT_OF_SCOPE, read_agents

    own = [pair for pair in zip(*read_agents(path), strict=True) if pair[1] != OUT_OF_SCOPE]
    return [text for text, _ in own], [agent for _, agent in own]


def _parts(
    rows: Sequence[RouteRow], tested: Sequence[RouteRow], folds: int, train_rows: int | None, seed: int
) -> list[Split]:
    """Folds of `rows`, or one split with all that is `tested` behind them."""
    import numpy as np

    from router.evaluation import Split, draw, splits

    if not tested:
        return list(splits(rows, folds, seed=seed, train_rows=train_rows))
    train = draw(np.arange(len(rows)), train_rows, seed)
    return [Split(train, np.arange(len(rows), len(rows) + len(tested)))]


def _outcomes(rows: Sequence[RouteRow], estimator: str, seed: int) -> OutcomeEstimator:
    """The estimator of that name, fitted."""
    from router.learned import fit_outcomes

    if estimator != "daao":
        return fit_outcomes(rows, seed=seed, estimator=estimator)
    fit_daao = _daao()
    if fit_daao is None:
        raise Misuse("--estimator daao needs torch: pip install 'loradock[train]'")
    return fit_daao(rows, seed)


def _daao() -> Callable[[Sequence[RouteRow], int], OutcomeEstimator] | None:
    """DAAO's fit, where torch is installed."""
    if find_spec("torch") is None:
        return None
    from training.routing.daao import fit_daao

    return fit_daao


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what is wrong with files and rows into one line."""
    from router.evaluation import UnreadableTable

    try:
        yield
    except UnreadableTable as error:
        raise Misuse(str(error)) from None
    except ValueError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"{error.filename}: {error.strerror or error}") from None


@contextmanager
def _progress(out: Output) -> Iterator[Callable[[str], None]]:
    """A line that tells what is being done, on a terminal."""
    if not out.aside.is_terminal:
        yield lambda _: None
        return
    with out.aside.status("reading") as status:
        yield status.update


def _print(out: Output, comparison: Comparison) -> None:
    rows = []
    for name, figures in comparison.figures.items():
        over = figures.over_reference
        rows.append(
            (
                f"{name} *" if name == comparison.chosen else name,
                figures.apgr,
                f"{figures.apgr_ci.low:.3f} to {figures.apgr_ci.high:.3f}",
                f"{over.low:+.3f} to {over.high:+.3f}" if over else None,
                f"{figures.cpt50:.1%}",
                f"{figures.cpt80:.1%}",
                figures.ece,
                figures.p50_ms,
                figures.p99_ms,
            )
        )
    columns = ("estimator", ">APGR", ">95 %", ">over tfidf", ">CPT 50", ">CPT 80", ">ECE", ">p50 ms", ">p99 ms")
    out.table(columns, rows)
    out.line(f"* chosen on training rows; {len(comparison.rows)} held-out rows scored", FAINT)
