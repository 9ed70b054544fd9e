"""`python -m training.demo`: make the embedded model, all of it or a step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from configs import embedded
from training.demo import evaluate, report
from training.demo.adapters import make_adapter
from training.demo.corpus import Case, Domain, holdout_cases, load_domain, training_cases
from training.demo.pretrain import load_base, make_base, settle
from training.demo.reading import documents, general_set
from training.demo.recipe import AGENTS, Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make the embedded base model and its adapters.")
console = Console()

Out = Annotated[Path, typer.Option(help="folder to write to")]
Seed = Annotated[int, typer.Option(help="seed of text and weights")]
Scale = Annotated[float, typer.Option(min=0.001, max=10, help="share of the recipe's steps; below 1 for a quick look")]
Agent = Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(AGENTS)}; repeatable; default: all")]


def _recipe(seed: int, scale: float) -> Recipe:
    return Recipe(seed=seed).scaled(scale) if scale != 1 else Recipe(seed=seed)


def _agents(chosen: list[str] | None) -> tuple[str, ...]:
    for agent in chosen or ():
        if agent not in AGENTS:
            raise typer.BadParameter(f"unknown agent '{agent}', choose from {', '.join(AGENTS)}")
    return tuple(chosen or AGENTS)


@app.command()
def text(out: Out = embedded.ROOT, seed: Seed = Recipe.seed, show: int = 3) -> None:
    """Write held-out cases and general set, and show some of the training text."""
    recipe = Recipe(seed=seed)
    for agent in AGENTS:
        domain = load_domain(agent)
        cases = holdout_cases(domain, recipe.holdout_per_label, seed)
        evaluate.write_cases(_holdout(out, agent), cases)
        console.print(f"{agent}: {len(domain.labels)} labels, {len(cases)} held-out cases")
        _show(domain, show, seed)
    evaluate.write_general_set(out / embedded.GENERAL_SET.name, general_set())
    for document in documents(show, seed):
        console.print(document, markup=False, highlight=False)


def _show(domain: Domain, count: int, seed: int) -> None:
    for case in training_cases(domain, count, seed):
        console.print(f"  {case.label}: {case.text}", markup=False, highlight=False)


@app.command()
def base(out: Out = embedded.ROOT, seed: Seed = Recipe.seed, scale: Scale = 1.0) -> None:
    """Train tokenizer and base model."""
    recipe = _recipe(seed, scale)
    folder = out / "base"
    shutil.rmtree(folder, ignore_errors=True)
    run = make_base(folder, recipe, console)
    report.record_run(out, embedded.BASE_NAME, run, recipe)


@app.command()
def adapters(out: Out = embedded.ROOT, seed: Seed = Recipe.seed, scale: Scale = 1.0, agent: Agent = None) -> None:
    """Train the adapters on the base in `out`."""
    recipe = _recipe(seed, scale)
    for chosen in _agents(agent):
        name = f"{chosen}-agent"
        folder = out / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        run = make_adapter(out / "base", folder, chosen, recipe, console)
        report.record_run(out, name, run, recipe)


@app.command(name="evaluate")
def evaluate_all(out: Out = embedded.ROOT, mistakes: int = 0, agent: Agent = None) -> None:
    """Measure base and adapters on the held-out cases; with MISTAKES, show that many wrong answers of each adapter."""
    from peft import PeftModel

    device = settle(Recipe())
    table = Table("agent", "cases", "adapter", "base")
    for chosen in _agents(agent):
        cases = evaluate.read_cases(_holdout(out, chosen))
        model, tokenizer = load_base(out / "base", device)
        alone = evaluate.label_accuracy(_label_answers(model, tokenizer, cases), cases)
        lora = PeftModel.from_pretrained(model, out / "adapters" / f"{chosen}-agent")
        given = _label_answers(lora, tokenizer, cases)
        right = evaluate.label_accuracy(given, cases)
        labels = len({case.label for case in cases})
        result = {"cases": len(cases), "labels": labels, "adapter": round(right, 4), "base": round(alone, 4)}
        report.record(out, "holdout", {chosen: result})
        table.add_row(chosen, str(len(cases)), f"{right:.1%}", f"{alone:.1%}")
        pairs = zip(cases, given, strict=True)
        wrong = [(case, answer) for case, answer in pairs if evaluate.first_line(answer) != case.label]
        for case, answer in wrong[:mistakes]:
            console.print(f"{case.label} | {answer!r} | {case.text}", markup=False, highlight=False)
    console.print(table)
    _evaluate_general(out, device)


def _label_answers(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, cases: list[Case]) -> list[str]:
    return evaluate.answers(model, tokenizer, [case.text for case in cases], evaluate.LABEL_TOKENS)


def _evaluate_general(out: Path, device: str) -> None:
    questions = evaluate.read_general_set(out / embedded.GENERAL_SET.name)
    model, tokenizer = load_base(out / "base", device)
    given = evaluate.answers(model, tokenizer, [item.question for item in questions], evaluate.SENTENCE_TOKENS)
    share = evaluate.general_accuracy(given, questions)
    report.record(out, "general", {"questions": len(questions), "base": round(share, 4)})
    console.print(f"general set: {share:.1%} of {len(questions)}")


@app.command()
def card(out: Out = embedded.ROOT) -> None:
    """Write the model card and the picture of the loss curves from what was measured."""
    report.record_sizes(out)
    report.draw_curves(out)
    report.write_card(out)


@app.command(name="all")
def everything(out: Out = embedded.ROOT, seed: Seed = Recipe.seed, scale: Scale = 1.0) -> None:
    """All steps in order."""
    text(out, seed, show=0)
    base(out, seed, scale)
    adapters(out, seed, scale, None)
    evaluate_all(out, 0, None)
    card(out)


def _holdout(out: Path, agent: str) -> Path:
    return out / "holdout" / embedded.holdout(agent).name


if __name__ == "__main__":
    app()
