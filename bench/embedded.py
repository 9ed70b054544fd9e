"""What the demo adapters are worth: held-out cases through the running endpoint, adapter beside base.

    python -m bench.embedded [--limit N] [--out bench/results/embedded.json]

The text is the user message, the answer greedy, right if it is the label. No template of these cases was seen in
training.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import random
import tempfile
from pathlib import Path
from typing import Any

import httpx

from bench.report import Bar, publish, result
from bench.server import served
from configs.embedded import ADAPTER_AGENTS, BASE_NAME, holdout

CONCURRENCY = 16
TOKENS = 12
"""more than any label has"""
LEAST_RIGHT = 0.9
LEAST_GAIN = 0.4


def cases(agent: str, limit: int | None) -> list[tuple[str, str]]:
    """Texts and labels of an agent; a fixed sample of `limit` rows."""
    with holdout(agent).open(newline="", encoding="utf-8") as stream:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(stream)]
    return random.Random(0).sample(rows, min(limit, len(rows))) if limit else rows


async def score(client: httpx.AsyncClient, model: str, rows: list[tuple[str, str]], adapter: str) -> float:
    """Share of `rows` that `model` labels rightly. Every answer must come from `adapter` (a name, or `none`)."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def right(text: str, label: str) -> bool:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": TOKENS}
        async with gate:
            answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status()
        assert answer.headers["x-loradock-adapter"].partition("@")[0] == adapter, answer.headers
        return bool((answer.json()["choices"][0]["message"]["content"] or "").strip() == label)

    return sum(await asyncio.gather(*(right(text, label) for text, label in rows))) / len(rows)


async def score_agents(client: httpx.AsyncClient, limit: int | None) -> list[dict[str, Any]]:
    """One record an agent."""
    records = []
    for name, agent in ADAPTER_AGENTS.items():
        rows = cases(agent, limit)
        records.append(
            {
                "agent": name,
                "rows": len(rows),
                "labels": len({label for _, label in rows}),
                "accuracy": round(await score(client, name, rows, name), 4),
                "base_accuracy": round(await score(client, BASE_NAME, rows, "none"), 4),
            }
        )
    return records


def bars(records: list[dict[str, Any]]) -> list[Bar]:
    """What each adapter has to reach."""
    made = []
    for record in records:
        gain = record["accuracy"] - record["base_accuracy"]
        made.append(Bar(f"{record['agent']}: right", record["accuracy"], LEAST_RIGHT, "", "at least"))
        made.append(Bar(f"{record['agent']}: above the base", round(gain, 4), LEAST_GAIN, "", "at least"))
    return made


async def measure(limit: int | None) -> list[dict[str, Any]]:
    """Start a server and score."""
    with tempfile.TemporaryDirectory(prefix="loradock-embedded-") as folder:
        async with served(Path(folder), {"COLD_POLICY": "wait"}) as client:
            return await score_agents(client, limit)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="held-out accuracy of the demo adapters through the endpoint")
    parser.add_argument("--limit", type=int, help="rows an agent; default: all")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    records = asyncio.run(measure(arguments.limit))
    publish(result("embedded", {"limit": arguments.limit}, {"agents": records}, bars(records)), [], arguments.out)


if __name__ == "__main__":
    main()
