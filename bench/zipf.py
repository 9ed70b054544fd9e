"""Many adapters in few slots, with changes all the while: whether every answer is the right adapter's.

    python -m bench.zipf [--requests 1000] [--adapters 20] [--slots 4] [--out bench/results/zipf.json]

Starts the server on the embedded base, registers variants of a demo adapter, records each one's fingerprint (its greedy
answer to a fixed prompt, asked for alone), sends 100 requests at once to one cold adapter, and then requests spread
by Zipf over all adapters while others are registered, replaced and retired. Exact versions are asked for, so a wrong
answer cannot hide behind the base model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.report import Bar, publish, result
from bench.server import served
from configs.embedded import ADAPTERS
from training.demo.variants import make_variant

PROMPT = "My card was charged twice and the parcel never came. What now?"
TOKENS = 16
SOURCE = "support-agent"
HERD = 100
GONE = 404


@dataclass
class Tally:
    """What came back. `wrong` holds adapter, expected and actual answer of each mismatch."""

    statuses: Counter[int] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)
    answered: int = 0
    changes: int = 0
    seconds: float = 0.0

    @property
    def server_errors(self) -> int:
        """Answers of 500 and above."""
        return sum(count for status, count in self.statuses.items() if status >= 500)


class Endpoint:
    """The few calls that the bench makes."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def ask(self, model: str) -> httpx.Response:
        """The fingerprint prompt, greedy."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": PROMPT}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "ignore_eos": True,
        }
        return await self.client.post("/v1/chat/completions", json=body)

    async def register(self, name: str, folder: Path) -> str:
        """Register without an alias; returns `name@version`."""
        body = {"name": name, "source": str(folder), "agent": name, "alias": "none"}
        answer = (await self.client.post("/v1/adapters", json=body)).raise_for_status().json()
        return f"{name}@{answer['version']}"

    async def fingerprint(self, model: str) -> str:
        """The answer of `model`, which must come from it."""
        answer = (await self.ask(model)).raise_for_status()
        assert answer.headers["x-loradock-adapter"] == model, answer.headers
        return text_of(answer)


def text_of(answer: httpx.Response) -> str:
    """The completion."""
    return str(answer.json()["choices"][0]["message"]["content"])


async def herd(endpoint: Endpoint, model: str) -> dict[str, int]:
    """Send 100 requests at once to a cold adapter: how many loads they caused, and how many answers were good."""
    before = (await endpoint.client.get(f"/v1/adapters/{model}")).raise_for_status().json()["residency"]
    assert before["state"] == "absent", before
    answers = await asyncio.gather(*(endpoint.ask(model) for _ in range(HERD)))
    after = (await endpoint.client.get(f"/v1/adapters/{model}")).json()["residency"]
    good = sum(answer.status_code == httpx.codes.OK for answer in answers)
    return {"loads": after["loads"] - before.get("loads", 0), "good": good}


async def zipf(
    endpoint: Endpoint, models: dict[str, str], churn: Sequence[tuple[str, Path, str, str]], requests: int, seed: int
) -> Tally:
    """Spread `requests` over `models` (name to fingerprint) by Zipf 1.1, 16 at a time, while `churn` goes on."""
    chance = random.Random(seed)
    names = list(models)
    weights = [1 / (rank + 1) ** 1.1 for rank in range(len(names))]
    expected = dict(models) | {model: fingerprint for _, _, model, fingerprint in churn}
    todo = chance.choices(names, weights, k=requests)
    for _ in range(requests // 20):  # some for adapters that come and go
        todo[chance.randrange(requests)] = chance.choice(churn)[2]
    tally, changing = Tally(), {model for _, _, model, _ in churn}
    queue = iter(todo)

    async def client() -> None:
        for model in queue:
            answer = await endpoint.ask(model)
            tally.statuses[answer.status_code] += 1
            if answer.status_code == GONE and model in changing:
                continue
            tally.states[answer.headers.get("x-loradock-adapter-state", "none")] += 1
            text = text_of(answer) if answer.status_code == httpx.codes.OK else f"status {answer.status_code}"
            if text != expected[model]:
                tally.wrong.append((model, expected[model], text))
            tally.answered += 1

    began = time.perf_counter()
    changer = asyncio.create_task(_change(endpoint, churn, tally))
    await asyncio.gather(*(client() for _ in range(16)))
    changer.cancel()
    tally.seconds = time.perf_counter() - began
    return tally


async def _change(endpoint: Endpoint, churn: Sequence[tuple[str, Path, str, str]], tally: Tally) -> None:
    """Register, replace and retire in turn until cancelled."""
    while True:
        for name, folder, model, _ in churn:
            assert await endpoint.register(name, folder) == model
            tally.changes += 1
            await asyncio.sleep(0.1)
        for name in dict.fromkeys(name for name, *_ in churn):
            (await endpoint.client.delete(f"/v1/adapters/{name}")).raise_for_status()
            tally.changes += 1
            await asyncio.sleep(0.1)


async def prepare(
    endpoint: Endpoint, folder: Path, adapters: int
) -> tuple[dict[str, str], list[tuple[str, Path, str, str]]]:
    """Register the adapters with their fingerprints, and those that will come and go: two versions of each name."""
    models = {}
    for number in range(adapters):
        model = await endpoint.register(f"a{number:02}", make_variant(ADAPTERS / SOURCE, folder / f"a{number}", number))
        models[model] = await endpoint.fingerprint(model)
    churn = []
    for number in range(6):
        name, made = f"c{number // 2}", make_variant(ADAPTERS / SOURCE, folder / f"c{number}", 1000 + number)
        model = await endpoint.register(name, made)
        churn.append((name, made, model, await endpoint.fingerprint(model)))
    for name in dict.fromkeys(name for name, *_ in churn):
        (await endpoint.client.delete(f"/v1/adapters/{name}")).raise_for_status()
    return models, churn


async def measure(requests: int, adapters: int, slots: int, seed: int) -> tuple[dict[str, Any], list[Bar]]:
    """The whole bench."""
    with tempfile.TemporaryDirectory(prefix="loradock-zipf-") as temporary:
        folder = Path(temporary)
        settings = {"ENGINES": json.dumps([{"name": "base", "slots": slots}]), "COLD_POLICY": "wait", "DEMO": "false"}
        async with served(folder, settings) as client:
            endpoint = Endpoint(client)
            models, churn = await prepare(endpoint, folder, adapters)
            crowd = await herd(endpoint, next(iter(models)))
            tally = await zipf(endpoint, models, churn, requests, seed)
            engines = (await endpoint.client.get("/ready")).json()["engines"]
    restarts = sum(engine["restarts"] for engine in engines)
    figures = {
        "herd": crowd,
        "distinct_fingerprints": len(set(models.values())),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "adapter_states": dict(tally.states),
        "answered": tally.answered,
        "wrong": tally.wrong[:10],
        "registry_changes": tally.changes,
        "seconds": round(tally.seconds, 2),
        "requests_per_s": round(sum(tally.statuses.values()) / tally.seconds, 1),
    }
    bars = [
        Bar("loads caused by 100 requests for one cold adapter", crowd["loads"], 1, "loads", "at most"),
        Bar("good answers among them", crowd["good"], HERD, "answers", "at least"),
        Bar("answers that are not the adapter's fingerprint", len(tally.wrong), 0, "answers", "at most"),
        Bar("answers of 5xx", tally.server_errors, 0, "answers", "at most"),
        Bar("engine restarts", restarts, 0, "restarts", "at most"),
        Bar("distinct fingerprints", len(set(models.values())), 0.9 * adapters, "fingerprints", "at least"),
        Bar("registry changes meanwhile", tally.changes, 10, "changes", "at least"),
    ]
    return figures, bars


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    figures, bars = asyncio.run(measure(args.requests, args.adapters, args.slots, args.seed))
    settings = {"requests": args.requests, "adapters": args.adapters, "slots": args.slots, "seed": args.seed}
    publish(result("zipf", settings, figures, bars), [], args.out)


if __name__ == "__main__":
    main()
