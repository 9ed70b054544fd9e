"""`loradock adapters bench`: how well an adapter answers labelled texts, through the running endpoint."""

from __future__ import annotations

import csv
import gzip
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli.bench import load, summarise
from serving.cli.client import Server, segment, server_of
from serving.cli.completions import Answer, chat_body
from serving.cli.errors import ApiError, CliError, Misuse
from serving.cli.figures import accuracy, macro_f1
from serving.cli.options import AsJson, Concurrency, Limit, Url
from serving.cli.output import Output

SAMPLE_SEED = 0
LEAST_TOKENS, MOST_TOKENS = 16, 256
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_FIELD = 1 << 24
"""longest text in a CSV, in characters"""

Name = Annotated[str, typer.Argument(metavar="NAME", help="Agent, or adapter: NAME or NAME@VERSION.")]


@dataclass(frozen=True)
class Row:
    """One case."""

    text: str
    label: str


def add_commands(group: typer.Typer) -> None:
    """Add `bench` to the group."""
    group.command("bench")(bench)


def bench(
    ctx: typer.Context,
    name: Name,
    *,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="FILE", help="CSV, plain or gzip: text, label, and split where there is one."),
    ],
    limit: Limit = None,
    concurrency: Concurrency = 8,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer. [dim](default: by the labels)[/dim]")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Score an adapter on labelled texts, and its base on the same rows.

    Each text is the user's message; the greedy answer, stripped, must equal the label. Where the file has a column
    `split`, the rows with `test` count. An agent's name means its champion, an adapter's its champion or newest
    version; no request becomes a case. Exit code 1 when a request fails.
    """
    import asyncio

    out = Output(as_json)
    rows = read_rows(data, limit)
    longest = max_tokens or _longest_answer(rows)
    with server_of(ctx, url) as server:
        adapter = find(server, name)
        exact = f"{adapter['name']}@{adapter['version']}"
        scored = asyncio.run(_score(server, exact, rows, concurrency=concurrency, max_tokens=longest, out=out))
        base = asyncio.run(_score(server, adapter["base"], rows, concurrency=concurrency, max_tokens=longest, out=out))
    report = _report(exact, adapter, rows, scored, base) | {"concurrency": concurrency}
    out.json(report)
    _print_bench(out, report)
    if report["errors"]:
        raise typer.Exit(1)


def find(server: Server, name: str) -> dict[str, Any]:
    """The version that `name` means: what serves the agent of that name, else the adapter.

    It is asked for by its digest, so that neither a canary nor the base answers for it.
    """
    if "@" not in name:
        try:
            champion: dict[str, Any] = server.get(f"/v1/adapters/{segment(name)}@champion")
        except ApiError as error:
            if error.status != 404:
                raise
        else:
            if name in (champion["agent"], champion["name"]):
                return champion
    adapter: dict[str, Any] = server.get(f"/v1/adapters/{segment(name)}")
    return adapter


def _longest_answer(rows: Sequence[Row]) -> int:
    """Tokens that are enough for every label: no text has more of them than bytes, and one ends the answer."""
    return min(max(LEAST_TOKENS, 1 + max(len(row.label.encode()) for row in rows)), MOST_TOKENS)


def read_rows(path: Path, limit: int | None) -> list[Row]:
    """The cases of `path`; with `limit`, so many of them, drawn with a fixed seed. Raises Misuse."""
    csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
        read = gzip.open if zipped else open
        with read(path, "rt", encoding="utf-8", newline="") as stream:
            rows = _parse(csv.DictReader(stream), path)
    except (OSError, EOFError) as error:
        raise Misuse(f"--data: {path}: {getattr(error, 'strerror', None) or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise Misuse(f"--data: {path} is no CSV in UTF-8: {error}") from None
    if not rows:
        raise Misuse(f"--data: {path} holds no rows to score")
    # files are often sorted by label, so the first rows would be no sample
    return random.Random(SAMPLE_SEED).sample(rows, limit) if limit and limit < len(rows) else rows  # noqa: S311 - a sample


def _parse(reader: csv.DictReader[str], path: Path) -> list[Row]:
    columns = reader.fieldnames or ()
    if missing := {"text", "label"} - set(columns):
        raise Misuse(f"--data: {path} has no column {' and no column '.join(sorted(missing))}")
    kept = [
        row for row in reader if row["text"] and row["label"] and ("split" not in columns or row["split"] == "test")
    ]
    return [Row(row["text"], row["label"].strip()) for row in kept]


@dataclass(frozen=True)
class _Scored:
    """What one model answered to all rows."""

    results: list[Answer | CliError]
    seconds: float

    @property
    def said(self) -> list[str | None]:
        return [result.text.strip() if isinstance(result, Answer) else None for result in self.results]


async def _score(
    server: Server, model: str, rows: Sequence[Row], *, concurrency: int, max_tokens: int, out: Output
) -> _Scored:
    bodies = [
        chat_body(model, [{"role": "user", "content": row.text}], stream=True, max_tokens=max_tokens, temperature=0)
        for row in rows
    ]
    began = time.perf_counter()
    results = await load(server, bodies, concurrency, out, model)
    if not any(isinstance(result, Answer) for result in results):
        raise next(result for result in results if isinstance(result, CliError))
    return _Scored(results, time.perf_counter() - began)


def _report(exact: str, adapter: dict[str, Any], rows: Sequence[Row], scored: _Scored, base: _Scored) -> dict[str, Any]:
    truth = [row.label for row in rows]
    figures = summarise(scored.results, scored.seconds)
    ttft = figures["ttft_ms"] or {}
    return {
        "adapter": exact,
        "agent": adapter["agent"],
        "base": adapter["base"],
        "rows": len(rows),
        "labels": len(set(truth)),
        "accuracy": round(accuracy(truth, scored.said), 4),
        "macro_f1": round(macro_f1(truth, scored.said), 4),
        "base_accuracy": round(accuracy(truth, base.said), 4),
        "base_macro_f1": round(macro_f1(truth, base.said), 4),
        "ttft_p50_ms": ttft.get("p50"),
        "ttft_p99_ms": ttft.get("p99"),
        "tok_s": figures["tok_s"],
        "requests_per_s": figures["requests_per_s"],
        "errors": figures["errors"] + sum(isinstance(result, CliError) for result in base.results),
        "error_messages": figures["error_messages"],
        "answered_by": figures["answered_by"],
    }


def _print_bench(out: Output, report: dict[str, Any]) -> None:
    out.table(
        (f"{report['rows']} rows, {report['labels']} labels", ">accuracy", ">macro F1"),
        [
            (report["adapter"], f"{report['accuracy']:.1%}", report["macro_f1"]),
            (report["base"], f"{report['base_accuracy']:.1%}", report["base_macro_f1"]),
        ],
    )
    first = f"first token {report['ttft_p50_ms']:.0f} ms (p50), " if report["ttft_p50_ms"] is not None else ""
    out.line(
        f"{first}{report['tok_s']:.0f} tokens/s, {report['requests_per_s']:.1f} requests/s, {report['errors']} errors"
    )
    for message, count in report["error_messages"].items():
        out.line(f"{count} x {message}", "red")
