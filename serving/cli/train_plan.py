"""`loradock train plan`: what a training run takes, before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from configs.training import Method
from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson
from serving.cli.output import BAD, FAINT, GOOD, Output

if TYPE_CHECKING:
    from training.planner import Card, Plan, Recipe

GIB = 2**30


def add_commands(group: typer.Typer) -> None:
    """Add `plan`."""
    group.command("plan")(plan)


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a config.json, or a shape by name: 7b, 9b, embedded, ...")
    ],
    *,
    card: Annotated[
        str | None, typer.Option("--card", metavar="CARD", help="RTX3060, A100-80, cpu, ... [dim](default: H200)[/dim]")
    ] = None,
    memory_gib: Annotated[
        float | None, typer.Option("--memory-gib", metavar="GIB", help="Memory of a card that is not in the table.")
    ] = None,
    method: Annotated[Method, typer.Option("--method", help="How to train.")] = "qlora",
    rank: Annotated[int, typer.Option("--rank", min=1, help="LoRA rank.")] = 16,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows on the card at once.")] = 2,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Batches of one optimiser step.")] = 1,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens of a row.")] = 2048,
    dropout: Annotated[float, typer.Option("--dropout", min=0, help="LoRA dropout.")] = 0.0,
    labelled: Annotated[float, typer.Option("--labelled", help="Share of the tokens that are learned.")] = 1.0,
    checkpoint_layers: Annotated[
        int | None,
        typer.Option("--checkpoint-layers", min=0, help="Recompute these many layers, 0: none; default: all."),
    ] = None,
    kernels: Annotated[
        str, typer.Option("--kernels", metavar="NAME", help="auto, fast, plain, trl, liger or unsloth.")
    ] = "auto",
    optimiser: Annotated[str, typer.Option("--optimiser", help="adamw or paged_adamw_8bit.")] = "adamw",
    cases: Annotated[int, typer.Option("--cases", min=1, help="Cases to learn from.")] = 1000,
    case_tokens: Annotated[int, typer.Option("--case-tokens", min=1, help="Tokens of a case, on average.")] = 400,
    epochs: Annotated[float, typer.Option("--epochs", min=0.01, help="Passes over the cases.")] = 3.0,
    usd_per_hour: Annotated[float, typer.Option("--usd-per-hour", min=0, help="Price of an hour of the card.")] = 0.5,
    table: Annotated[
        bool, typer.Option("--table", help="Set MODEL beside the figures often claimed for a 9B model, and stop.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FOLDER", help="Write the plan as config.json and train.sh.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", metavar="FOLDER", help="Dataset that the written run learns from.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict memory, time, cost and storage of training MODEL, from its config alone.

    Exit code 1 where no fallback (smaller batches, checkpointing, 4-bit, offload) makes it fit the card.
    """
    from training.planner import PlannerError, Recipe, Work, load_shape
    from training.planner import plan as make_plan

    if write and not dataset:
        raise Misuse("--write needs --dataset, the folder to learn from")
    out = Output(as_json)
    try:
        shape = load_shape(model)
        asked = Recipe(
            method=method,
            rank=rank,
            batch=batch,
            length=length,
            accumulate=accumulate,
            checkpointed_layers=checkpoint_layers,
            dropout=dropout,
            labelled=labelled,
            kernels=kernels,
            optimiser=_optimiser(optimiser),
        )
        if table:
            return _print_claims(out, shape, asked)
        device = _card(card, memory_gib)
        made = make_plan(shape, _on(asked, device), device, Work(cases, case_tokens, epochs, usd_per_hour))
    except PlannerError as error:
        raise Misuse(error.message) from None
    files = _write(made, model, dataset, write) if write and dataset and made.fits else ()
    out.json(made.to_dict() | ({"files": [str(file) for file in files]} if write else {}))
    _print(out, made)
    for file in files:
        out.line(f"wrote {file}")
    if not made.fits:
        raise typer.Exit(1)
    return None


def _optimiser(name: str) -> Any:
    if name not in {"adamw", "paged_adamw_8bit"}:
        raise Misuse(f"--optimiser: '{name}' is neither adamw nor paged_adamw_8bit")
    return name


def _card(name: str | None, memory_gib: float | None) -> Card:
    from training.planner import Card, find_card

    if memory_gib is None:
        return find_card(name or "H200")
    if name is None:
        return Card.of_memory(memory_gib)
    # a known card with another memory: its rate still tells the time
    return replace(find_card(name), memory=round(memory_gib * GIB))


def _on(recipe: Recipe, card: Card) -> Recipe:
    """On a processor the trainer computes in fp32, quantises nothing, and recomputes only where asked to."""
    if not card.cpu:
        return recipe
    return replace(
        recipe,
        compute="fp32",
        method="lora" if recipe.method == "qlora" else recipe.method,
        checkpointed_layers=recipe.checkpointed_layers or 0,
    )


def _write(made: Plan, model: str, dataset: Path, folder: Path) -> tuple[Path, ...]:
    from training.planner import PlannerError
    from training.planner.shape import base_of
    from training.planner.written import write_plan
    from training.trainer import TrainerError

    try:
        return write_plan(made, base_of(model), dataset, folder)
    except (PlannerError, TrainerError) as error:
        raise Misuse(str(error)) from None
    except OSError as error:
        raise CliError(f"{folder}: {error.strerror}") from None


def _print(out: Output, made: Plan) -> None:
    recipe, counts = made.recipe, made.shape.parameters
    how = recipe.how(made.shape).name
    out.fields(
        (
            ("model", f"{made.shape.name}, {counts.total:,} parameters"),
            ("card", f"{made.card.name}, {made.card.memory / GIB:.2f} GiB"),
            ("recipe", f"{recipe.method}, {_rank(made)}batch {recipe.batch} x {recipe.length}, kernels {how}"),
            ("verdict", Text(made.verdict, style=GOOD if made.fits else BAD)),
        )
    )
    out.gap()
    peak = made.memory.peak
    rows: list[tuple[str, str, str]] = [
        (part, _gib(held), _gib(made.memory.largest(part))) for part, held in peak.parts.items()
    ]
    rows.append(("peak", _gib(peak.total), ""))
    out.table((f"memory at the peak ({peak.name})", ">GiB", ">largest at any moment"), rows)
    if made.memory.host:
        out.line(f"in host memory: {_gib(made.memory.host)} GiB", FAINT)
    if not made.card.cpu:
        out.line("CUDA's own context (about 0.5 GiB) and 3 % for the allocator are kept free beside the peak", FAINT)
    _print_cost(out, made)


def _print_cost(out: Output, made: Plan) -> None:
    store, work, speed = made.storage, made.work, made.speed
    out.gap()
    out.fields(
        (
            (
                "work",
                f"{work.cases:,} cases of {work.case_tokens} tokens, {work.epochs:g} epochs: {made.steps:,} steps",
            ),
            ("speed", speed and f"{speed.tokens_per_s:,.0f} tokens/s (matrix limit {speed.limit:,.0f})"),
            ("time", None if made.seconds is None else _time(made.seconds)),
            ("cost", None if made.usd is None else f"${made.usd:.4f} at ${work.usd_per_hour:g} an hour"),
            ("adapter", _megabytes(store.adapter) if store.adapter else None),
            ("checkpoints", _megabytes(store.checkpoints)),
            ("merged, 16 bits", _megabytes(store.merged)),
            ("GGUF", f"{_megabytes(store.gguf_q8)} as Q8_0, {_megabytes(store.gguf_f16)} as f16"),
        )
    )


def _print_claims(out: Output, shape: Any, recipe: Recipe) -> None:
    from dataclasses import asdict

    from training.planner.claims import nine_billion

    claims = nine_billion(shape, recipe)
    out.json({"model": shape.name, "rows": [asdict(claim) for claim in claims]})
    out.table(
        (shape.name, "often claimed", "from the config", "why they differ"),
        [(claim.what, claim.claimed, claim.true, claim.why) for claim in claims],
    )


def _rank(made: Plan) -> str:
    return "" if made.recipe.method == "full" else f"rank {made.recipe.rank}, "


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
