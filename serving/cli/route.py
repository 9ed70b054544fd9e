"""`loradock route`: which adapter or base would answer, and why."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from serving.cli.client import header, server_of
from serving.cli.errors import Misuse
from serving.cli.options import Agent, AsJson, Url
from serving.cli.output import FAINT, GOOD, Output


def route(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task; '-' reads it from standard input.")],
    *,
    agent: Agent = None,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="As in a request.")] = "auto",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show the router's decision for TASK without running it."""
    text = sys.stdin.read() if task == "-" else task
    if not text.strip():
        raise Misuse("TASK is empty")
    out = Output(as_json)
    headers = {"x-agent": header("--agent", agent)} if agent else None
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    with server_of(ctx, url) as server:
        decision = server.post("/v1/route", body, headers)
    out.json(decision)
    _print(out, decision)


def _print(out: Output, decision: dict[str, Any]) -> None:
    chosen = decision["adapter"] or decision["base"]
    agent = decision["agent"] and f"{decision['agent']} (confidence {decision['confidence']:.2f})"
    pairs: list[tuple[str, Any]] = [
        ("answers", Text(chosen, style=f"bold {GOOD}")),
        ("reason", f"{decision['reason']}: {decision['reason_text']}"),
        ("agent", agent),
        ("difficulty", _gauge(decision["difficulty"])),
        ("base", f"{decision['base']} (engine {decision['tier']})"),
        ("router", "the rules" if decision["router"] == "rules" else f"version {decision['router']}"),
    ]
    if decision["terms"]:
        pairs.append(("utility", _formula(decision["terms"])))
    if decision["share"]:
        pairs.append(("strong share", _share(decision["share"])))
    out.fields(pairs)
    if decision["candidates"]:
        rows = [
            (
                _mark(each, decision),
                each["adapter"] or each["base"],
                each["tier"],
                each["probability"],
                each["cases"] or None,
                f"{each['cost']:.3f}",
                f"{each['cost_usd']:.6f}",
                f"{each['wait_s']:.2f}",
                f"{each['utility']:.3f}",
            )
            for each in sorted(decision["candidates"], key=lambda each: -each["utility"])
        ]
        out.gap()
        out.table(("", "candidate", "engine", ">P(success)", ">cases", ">price", ">USD", ">wait s", ">utility"), rows)
    present = [f"{name} {value:g}" for name, value in decision["features"].items() if value]
    out.line(f"features: {', '.join(present) or 'none'}", FAINT)


def _formula(terms: dict[str, Any]) -> str:
    budget = "" if terms["max_cost"] is None else f"; at most {terms['max_cost']:g} USD"
    return f"{terms['quality']}: P - {terms['cost_weight']:g} price - {terms['wait_weight']:g} wait{budget}"


def _share(share: dict[str, Any]) -> str:
    than = "over" if share["gain"] > share["threshold"] else "not over"
    return f"{share['target']:.0%} wanted: gain {share['gain']:.3f}, {than} the threshold {share['threshold']:.3f}"


def _mark(candidate: dict[str, Any], decision: dict[str, Any]) -> Text:
    chosen = (candidate["adapter"], candidate["base"]) == (decision["adapter"], decision["base"])
    return Text("*" if chosen else " ", style=GOOD)


def _gauge(share: float, width: int = 20) -> Text:
    full = round(share * width)
    return Text.assemble(f"{share:.3f} ", ("█" * full, "cyan"), ("░" * (width - full), FAINT))
