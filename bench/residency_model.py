"""Zipf arrivals over many adapters without a GPU: the real residency on a clock that jumps, above a model of the card.

    python -m bench.residency_model [--adapters 1000 --slots 32 --rate 21.4 --loads 4 --disk-ms 160]

`Residency`, its loader and the engine's `Adapters` are those that serve; modelled are an engine's steps, what is asked
of it between them, and how long a row takes from disk to host memory and into a slot. Half a minute of arrivals takes a
second. It tells how policies compare, not what a card does: the defaults are step times of a 7B on one H200,
but for `--eager-ms`, which Zipf arrivals there were fitted with.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import statistics
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from rich.table import Table

from adapters_registry.model import AdapterVersion, State
from bench.report import publish, result
from bench.residency_loads import at
from serving.engine.base import Engine, EngineState, EngineStatus
from serving.engine.worker.adapters import Adapters
from serving.residency import Patience, Residency

PATIENCE = Patience(None, 3600.0)
EXPONENT = 1.1
HERE = Path(__file__).parent
CALL_S = 0.001
"""one question to the engine's process, without what waits for a step"""


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time is what it waits for: nothing that sleeps takes time."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def time(self) -> float:
        """Seconds since it was made."""
        return self._now

    def _run_once(self) -> None:
        inside: Any = self  # asyncio offers no other way to see what comes next
        if not inside._ready and inside._scheduled:
            self._now = max(self._now, inside._scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


def on_clock(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What `work` returns, run on a clock of its own."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(work())


class Answer:
    """One request in the engine."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self.first = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Card:
    """The steps of an engine: all that runs gets a token in each, and questions are answered between two."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._coming: deque[Answer] = deque()
        self._questions: deque[asyncio.Future[None]] = deque()
        self._work = asyncio.Event()
        self.running: list[Answer] = []

    def submit(self, answer: Answer) -> None:
        """Let a request come in with the next step."""
        self._coming.append(answer)
        self._work.set()

    async def between_steps(self) -> None:
        """Return between two steps."""
        asked = asyncio.get_running_loop().create_future()
        self._questions.append(asked)
        self._work.set()
        await asked

    async def run(self) -> None:
        """Step after step, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            while self._questions:
                self._questions.popleft().set_result(None)
            await asyncio.sleep(CALL_S / 4)
            if not self._coming and not self.running:
                self._work.clear()
                if not self._questions:
                    await self._work.wait()
                continue
            new = [self._coming.popleft() for _ in range(min(len(self._coming), self._args.step_prompts))]
            await asyncio.sleep(self._lasts_s(len(new)))
            self.running += new
            for answer in new:
                answer.first = loop.time()
            for answer in self.running:
                answer.left -= 1
                if not answer.left:
                    answer.done.set_result(None)
            self.running = [answer for answer in self.running if answer.left]

    def _lasts_s(self, prompts: int) -> float:
        args = self._args
        ms = args.step_ms + args.stream_ms * len(self.running) + args.prompt_ms * prompts
        return float(max(ms, args.eager_ms if prompts > args.graph_prompts else 0.0) / 1e3)


class Insides:
    """What `Adapters` needs of an engine's process; see `serving.engine.worker.adapters.Slots`."""

    dead = False

    def __init__(self, card: Card, args: argparse.Namespace) -> None:
        self.slots = args.slots
        self.spare = args.spare
        self._card = card
        self._args = args
        self._near: OrderedDict[str, None] = OrderedDict()
        self._threads = asyncio.Semaphore(args.loads)
        self._prefetching = asyncio.Lock()
        self._copying = asyncio.Lock()
        self._named: dict[str, int] = {}
        self.requests: Counter[str | None] = Counter()

    def adapters(self) -> dict[str, int]:
        """See `Slots`."""
        return self._named

    def running(self) -> Counter[str | None]:
        """See `Slots`."""
        return self.requests

    async def add(self, name: str, engine_id: int, path: str, digest: str) -> None:
        """Reserve a slot between two steps, read the row if it is on disk, copy it."""
        await self._card.between_steps()
        async with self._threads:
            await self._read(name)
            async with self._copying:
                await asyncio.sleep(self._args.copy_ms / 1e3)

    async def prefetch(self, name: str) -> None:
        """Read the row, one at a time."""
        async with self._prefetching:
            await self._read(name)

    async def _read(self, name: str) -> None:
        if name not in self._near:
            await asyncio.sleep(self._args.disk_ms / 1e3)
            self._near[name] = None
            while len(self._near) > max(1, self._args.host_adapters):
                self._near.popitem(last=False)
        if name in self._near:
            self._near.move_to_end(name)

    async def remove(self, engine_id: int) -> None:
        """See `Slots`."""
        await self._card.between_steps()

    def publish(self, name: str, engine_id: int, path: str) -> None:
        """See `Slots`."""
        self._named[name] = engine_id

    def withdraw(self, name: str) -> None:
        """See `Slots`."""
        self._named.pop(name, None)


class ModelledEngine:
    """The part of `serving.engine.base.Engine` that residency needs."""

    name = "modelled"
    staging = True

    def __init__(self, insides: Insides, loads: int) -> None:
        self.slots = insides.slots
        self.loads_at_once = loads
        self.status = EngineStatus(EngineState.READY, 1, 0, "")
        self._insides = insides
        self._adapters = Adapters(insides)
        self._prefetching: set[asyncio.Task[None]] = set()

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None:
        """Nothing changes."""

    async def prepare(self, adapter: AdapterVersion) -> None:
        """All are prepared."""

    async def stage(self, adapter: AdapterVersion) -> None:
        """Have the adapter read, by and by."""
        await asyncio.sleep(CALL_S)
        task = asyncio.get_running_loop().create_task(self._insides.prefetch(adapter.engine_name))
        self._prefetching.add(task)
        task.add_done_callback(self._prefetching.discard)

    async def load(self, adapter: AdapterVersion) -> None:
        """See `Engine`."""
        await asyncio.sleep(CALL_S)
        await self._adapters.load(adapter.engine_name, adapter.engine_id, str(HERE), adapter.digest)
        await asyncio.sleep(CALL_S)

    async def unload(self, engine_name: str, engine_id: int) -> None:
        """See `Engine`."""
        await asyncio.sleep(CALL_S)
        await self._adapters.unload(engine_name, engine_id)
        await asyncio.sleep(CALL_S)


class Model:
    """Residency above a card, with adapters."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._loop = asyncio.get_running_loop()
        self._card = Card(args)
        self._insides = Insides(self._card, args)
        self._residency = Residency(
            cast("Engine", ModelledEngine(self._insides, args.loads)), clock=asyncio.get_running_loop().time
        )
        self._adapters = [_adapter(number) for number in range(args.adapters)]

    async def run(self) -> list[dict[str, float]]:
        """The figures of each round."""
        stepping = self._loop.create_task(self._card.run())
        self._residency.start()
        figures = [await self._round(self._args.seed + number) for number in range(self._args.rounds)]
        await self._residency.stop()
        stepping.cancel()
        return figures

    async def _round(self, seed: int) -> dict[str, float]:
        """`--seconds` of arrivals, until the last is answered. Times are in ms."""
        chance = random.Random(seed)
        weights = [1 / rank**EXPONENT for rank in range(1, len(self._adapters) + 1)]
        firsts: list[float] = []
        tasks, busy = [], []
        began, due = self._loop.time(), 0.0
        while due < self._args.seconds:
            await asyncio.sleep(max(0.0, began + due - self._loop.time()))
            [adapter] = chance.choices(self._adapters, weights)
            tokens = self._args.long_answer if chance.random() < self._args.long_share else self._args.answer
            tasks.append(self._loop.create_task(self._request(adapter, tokens, began + due, firsts)))
            busy.append(sum(entry.in_flight > 0 for entry in self._residency.slots.values()))
            due += chance.expovariate(self._args.rate)
        await asyncio.gather(*tasks)
        return {
            "requests": len(tasks),
            "completed_per_s": round(len(tasks) / (self._loop.time() - began), 2),
            "first_p50_ms": at(firsts, 0.5),
            "first_p99_ms": at(firsts, 0.99),
            "first_max_ms": at(firsts, 1.0),
            "busy_slots": round(statistics.mean(busy), 2),
        }

    async def _request(self, adapter: AdapterVersion, tokens: int, due: float, firsts: list[float]) -> None:
        async with self._residency.hold(adapter, PATIENCE):
            answer = Answer(tokens)
            self._insides.requests[adapter.engine_name] += 1
            self._card.submit(answer)
            await answer.done
            self._insides.requests[adapter.engine_name] -= 1
        firsts.append(1e3 * (answer.first - due))


async def modelled(args: argparse.Namespace) -> list[dict[str, float]]:
    """Figures of each round, named as those of `bench.residency_loads.Arrivals.open`."""
    return await Model(args).run()


def _adapter(number: int) -> AdapterVersion:
    name = f"m{number:04}"
    digest = hashlib.sha256(name.encode()).hexdigest()
    now = datetime.now(UTC)
    return AdapterVersion(name, digest, "bench", "base", 16, HERE, 0, State.VALIDATED, now, "modelled")


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--adapters", type=int, default=256)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--spare", type=int, default=1, help="slots beyond these")
    parser.add_argument("--loads", type=int, default=4, help="at once")
    parser.add_argument("--rate", type=float, default=39.6, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=3, help="host memory is empty before the first")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--long-answer", type=int, default=1024, help="tokens of those that are longer")
    parser.add_argument("--long-share", type=float, default=0.0, help="of the requests")
    parser.add_argument("--host-adapters", type=int, default=200, help="that host memory holds")
    parser.add_argument("--disk-ms", type=float, default=54.0, help="to read a row into host memory")
    parser.add_argument("--copy-ms", type=float, default=4.0, help="to copy it into a slot")
    parser.add_argument("--step-ms", type=float, default=6.1, help="of a step")
    parser.add_argument("--stream-ms", type=float, default=0.023, help="more of a step for each request in it")
    parser.add_argument("--prompt-ms", type=float, default=9.0, help="more of a step for each new prompt")
    parser.add_argument("--step-prompts", type=int, default=8, help="most new prompts of a step")
    parser.add_argument("--graph-prompts", type=int, default=8, help="most new prompts of a step that has a graph")
    parser.add_argument("--eager-ms", type=float, default=85.0, help="at least, of a step without a graph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(given)


def main() -> None:
    """Run and print."""
    args = parse()
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    rounds = on_clock(lambda: modelled(args))
    publish(result("residency_model", settings, {"rounds": rounds}, []), [_table(rounds)], args.out)


def _table(rounds: list[dict[str, float]]) -> Table:
    table = Table(title="rounds, and their medians", title_justify="left")
    for name in rounds[0]:
        table.add_column(name, justify="right")
    for figures in rounds:
        table.add_row(*(f"{figure:,}" for figure in figures.values()))
    table.add_section()
    table.add_row(*(f"{statistics.median(figures[name] for figures in rounds):,.5g}" for name in rounds[0]))
    return table


if __name__ == "__main__":
    main()
