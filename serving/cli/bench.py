"""`loradock bench`: a quick load test of the running endpoint."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from serving.cli.client import Server, server_of
from serving.cli.completions import Answer, ask_all, asking, chat_body
from serving.cli.errors import CliError
from serving.cli.figures import percentile
from serving.cli.options import AsJson, Concurrency, Url
from serving.cli.output import Output

PROMPT = "A customer writes: my card was charged twice for one order. What should the support team do first?"
PERCENTILES = (50, 90, 95, 99)


def bench(
    ctx: typer.Context,
    *,
    requests: Annotated[int, typer.Option("--requests", "-n", min=1, help="Requests in all.")] = 64,
    concurrency: Concurrency = 8,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Stream the answers.")] = True,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="As in a request.")] = "auto",
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What every request asks.")] = PROMPT,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 32,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Load the running endpoint and report latencies and rates.

    The client shares the machine with whatever else runs on it. Exit code 1 when a request fails.
    """
    import asyncio

    out = Output(as_json)
    body = chat_body(model, [{"role": "user", "content": prompt}], stream=stream, max_tokens=max_tokens, temperature=0)
    with server_of(ctx, url) as server:
        server.get("/health")
        began = time.perf_counter()
        results = asyncio.run(load(server, [body] * requests, concurrency, out, "requests"))
        seconds = time.perf_counter() - began
    report = {"model": model, "concurrency": concurrency, "stream": stream, **summarise(results, seconds)}
    out.json(report)
    _print(out, report)
    if report["errors"]:
        raise typer.Exit(1)


async def load(
    server: Server, bodies: Sequence[dict[str, Any]], concurrency: int, out: Output, what: str
) -> list[Answer | CliError]:
    """The answers to `bodies`, with a progress bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = out.aside.is_terminal and not out.as_json
    with Progress(*columns, console=out.aside, transient=True, disable=not shown) as progress:
        bar = progress.add_task(what, total=len(bodies))
        async with asking(server, concurrency) as ask:
            return await ask_all(ask, bodies, concurrency, lambda: progress.advance(bar))


def summarise(results: Sequence[Answer | CliError], seconds: float) -> dict[str, Any]:
    """Figures of a run that took `seconds`. Latencies are in ms, over the requests that were answered."""
    answers = [result for result in results if isinstance(result, Answer)]
    errors = Counter(result.message for result in results if isinstance(result, CliError))
    tokens = sum(answer.tokens for answer in answers)
    return {
        "requests": len(results),
        "errors": len(results) - len(answers),
        "error_messages": dict(errors.most_common(3)),
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(answers) / seconds, 2),
        "tokens": tokens,
        "tok_s": round(tokens / seconds, 2),
        "latency_ms": _spread([answer.seconds for answer in answers]),
        "ttft_ms": _spread([answer.ttft_s for answer in answers if answer.ttft_s is not None]),
        "overhead_ms": _spread(
            [float(answer.routed["overhead-ms"]) / 1e3 for answer in answers if "overhead-ms" in answer.routed]
        ),
        "answered_by": dict(Counter(who_answered(answer) for answer in answers).most_common()),
    }


def who_answered(answer: Answer) -> str:
    """The adapter, or the base where none did."""
    adapter = answer.routed.get("adapter", "none")
    return adapter if adapter != "none" else answer.routed.get("model", "unknown")


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    spread = {f"p{percent}": 1e3 * (percentile(seconds, percent) or 0.0) for percent in PERCENTILES}
    return {name: round(value, 3) for name, value in (spread | {"max": 1e3 * max(seconds)}).items()}


def _print(out: Output, report: dict[str, Any]) -> None:
    out.fields(
        (
            ("requests", f"{report['requests']} at concurrency {report['concurrency']} in {report['seconds']:.1f} s"),
            ("errors", report["errors"]),
            ("requests/s", f"{report['requests_per_s']:.1f}"),
            ("tokens/s", f"{report['tok_s']:.0f}" if report["tokens"] else None),
            ("answered by", ", ".join(f"{name} ({count})" for name, count in report["answered_by"].items())),
        )
    )
    kinds = (("latency", "latency_ms"), ("first token", "ttft_ms"), ("gateway overhead", "overhead_ms"))
    rows = [(name, *(f"{value:.1f}" for value in report[key].values())) for name, key in kinds if report[key]]
    if rows:
        out.gap()
        out.table(("ms", *(f">p{percent}" for percent in PERCENTILES), ">max"), rows)
    for message, count in report["error_messages"].items():
        out.line(f"{count} x {message}", "red")
