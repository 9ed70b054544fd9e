"""The loads of `bench.residency`, for any contestant: streams with probes beside them, Zipf arrivals, churn."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters_registry.model import AdapterVersion
from bench.contestants import HTTP_OK, Contestant
from serving.errors import ServingError

LONG_GAP_S = 0.05
PATIENCE_S = 30.0
"""after a load's last request, what has no answer yet counts as an error"""
SOON_S = 0.03
"""after a probe's first token, gaps that its prefill has opened have ended"""
EVENT = b"data: "
DONE = b"data: [DONE]"


@dataclass(slots=True)
class Trace:
    """One streamed answer: times of `perf_counter`, one for each event with a token."""

    asked: float
    tokens: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def first_s(self) -> float | None:
        """Time to the first token."""
        return self.tokens[0] - self.asked if self.tokens else None

    def waited_s(self, end: float) -> float:
        """Time to the first token; without one, as if it had waited to the `end`."""
        return end - self.asked if self.first_s is None else self.first_s

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between tokens, of those that ended between the two times."""
        return [
            after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False) if begin <= after <= end
        ]


def body(prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    """A streamed greedy completion of exactly `tokens` tokens."""
    return {"prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}


async def ask(contestant: Contestant, adapter: AdapterVersion | None, content: dict[str, Any], trace: Trace) -> None:
    """Fill `trace` with the answer as it comes. An error of any kind stands in the trace."""
    try:
        async with contestant.opening(adapter, content) as response:
            if response.status != HTTP_OK:
                trace.error = f"status {response.status}"
                return
            async for chunk in response.chunks():
                count = chunk.count(EVENT) - chunk.count(DONE)
                trace.tokens += [time.perf_counter()] * count
    except ServingError as error:
        trace.error = type(error).__name__


def prompts(seed: int, length: int, vocabulary: int) -> Iterator[list[int]]:
    """Endless random prompts of `length` tokens, no two with a common beginning."""
    chance = random.Random(seed)
    while True:
        yield [chance.randrange(10, vocabulary) for _ in range(length)]


@dataclass(frozen=True, slots=True)
class Beside:
    """What streams felt of probes, and what the probes felt. Times in ms."""

    gaps_ms: list[float]
    first_ms: list[float]
    errors: int
    opened_ms: list[float]
    """for each probe, the longest gap in any stream from its question to soon after its first token"""

    def figures(self) -> dict[str, float]:
        """The figures of one round."""
        long = sum(gap > LONG_GAP_S * 1e3 for gap in self.gaps_ms)
        return {
            "tokens": len(self.gaps_ms),
            "gap_p50_ms": at(self.gaps_ms, 0.5),
            "gap_p99_ms": at(self.gaps_ms, 0.99),
            "gap_max_ms": at(self.gaps_ms, 1.0),
            "long_gaps_per_10k": round(1e4 * long / max(1, len(self.gaps_ms)), 1),
            "probes": len(self.first_ms),
            "probe_first_p50_ms": at(self.first_ms, 0.5),
            "probe_first_p95_ms": at(self.first_ms, 0.95),
            "probe_gap_p50_ms": at(self.opened_ms, 0.5),
            "probe_gap_p95_ms": at(self.opened_ms, 0.95),
            "errors": self.errors,
        }


@dataclass(frozen=True, slots=True)
class Interference:
    """Streams of `tokens` tokens on `warm`, while a probe comes each `every_s` seconds."""

    warm: Sequence[AdapterVersion]
    streams: int
    tokens: int
    every_s: float
    prompt: int
    vocabulary: int

    async def touch(self, contestant: Contestant, adapters: Sequence[AdapterVersion]) -> None:
        """Let `adapters` be resident."""
        for adapter in adapters:
            await ask(contestant, adapter, body(next(prompts(0, self.prompt, self.vocabulary)), 1), Trace(0.0))

    async def run(self, contestant: Contestant, probes: Iterator[AdapterVersion | None], seed: int) -> Beside:
        """One round; each probe asks the next of `probes`, which ends the round if it ends before the streams do."""
        [felt] = await self._round(contestant, probes, seed, kinds=1)
        return felt

    async def paired(
        self,
        contestant: Contestant,
        ones: Iterator[AdapterVersion | None],
        others: Iterator[AdapterVersion | None],
        seed: int,
    ) -> tuple[Beside, Beside]:
        """One round in which the two kinds of probes take turns: what else the machine does disturbs both alike.

        Each waits until the one before has its first token, so that what a late one opens is not felt in the other's.
        """
        turns = itertools.chain.from_iterable(zip(ones, others, strict=False))
        one, other = await self._round(contestant, turns, seed, kinds=2)
        return one, other

    async def _round(
        self, contestant: Contestant, probes: Iterator[AdapterVersion | None], seed: int, *, kinds: int
    ) -> list[Beside]:
        """What was felt from each probe to the next, by its kind: the first, second, ... of every `kinds` probes."""
        source = prompts(seed, self.prompt, self.vocabulary)
        traces = [Trace(time.perf_counter()) for _ in range(self.streams)]
        tasks = [
            asyncio.create_task(ask(contestant, adapter, body(next(source), self.tokens), trace))
            for adapter, trace in zip(itertools.cycle(self.warm), traces, strict=False)
        ]
        while not all(trace.tokens or trace.error for trace in traces):  # noqa: ASYNC110 - a trace has no event
            await asyncio.sleep(0.01)
        begin = time.perf_counter()
        probed, asking = [], []
        for adapter in probes:
            if any(task.done() for task in tasks):
                break
            trace = Trace(time.perf_counter())
            probed.append(trace)
            asking.append(asyncio.create_task(ask(contestant, adapter, body(next(source), 8), trace)))
            await asyncio.sleep(self.every_s)
            if kinds > 1:
                await begun(asking[-1], trace)
        await finished(asking, probed)
        end = time.perf_counter()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        times = [begin, *(probe.asked for probe in probed[1:]), end]
        spans = list(itertools.pairwise(times))
        return [felt_in(traces, probed[kind::kinds], spans[kind::kinds], end) for kind in range(kinds)]


def felt_in(
    streams: Sequence[Trace], probes: Sequence[Trace], spans: Sequence[tuple[float, float]], end: float
) -> Beside:
    """What `streams` felt in `spans`, and `probes` until `end`."""
    return Beside(
        [1e3 * gap for trace in streams for span in spans for gap in trace.gaps(*span)],
        [1e3 * trace.waited_s(end) for trace in probes],
        sum(trace.error is not None for trace in (*streams, *probes)),
        [1e3 * opened_by(probe, streams) for probe in probes if probe.tokens],
    )


async def begun(task: asyncio.Task[None], trace: Trace) -> None:
    """Return when the first token of `trace` has come and what it opened is over, or after PATIENCE_S without one."""
    latest = trace.asked + PATIENCE_S
    while not (trace.tokens or task.done() or time.perf_counter() > latest):  # noqa: ASYNC110 - a trace has no event
        await asyncio.sleep(0.005)
    if trace.tokens:
        await asyncio.sleep(max(0.0, trace.tokens[0] + SOON_S - time.perf_counter()))


async def finished(tasks: Sequence[asyncio.Task[None]], traces: Sequence[Trace]) -> None:
    """Return when all `tasks` have ended, or PATIENCE_S later: those that have not are cut off, as their traces say."""
    if not tasks:
        return
    done, late = await asyncio.wait(tasks, timeout=PATIENCE_S)
    for task, trace in zip(tasks, traces, strict=True):
        if task in late:
            task.cancel()
            trace.error = "no answer in time"
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()  # an error that `ask` does not know is the bench's


def opened_by(probe: Trace, traces: Sequence[Trace]) -> float:
    """The longest gap, in seconds, in `traces` that ended from `probe`'s question to SOON_S after its first token."""
    begin, end = probe.asked, probe.tokens[0] + SOON_S
    return max((gap for trace in traces for gap in trace.gaps(begin, end)), default=0.0)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests by Zipf over `adapters`, at `rate` a second in Poisson's manner, or `clients` at once without a rate."""

    adapters: Sequence[AdapterVersion]
    prompt: int
    tokens: int
    vocabulary: int
    exponent: float = 1.1

    async def closed(self, contestant: Contestant, clients: int, seconds: float, seed: int) -> float:
        """Requests a second that `clients` get through, each asking again as soon as it has its answer."""
        end = time.perf_counter() + seconds
        chooser, source = self._chooser(seed), prompts(seed, self.prompt, self.vocabulary)
        traces: list[Trace] = []

        async def client() -> None:
            while time.perf_counter() < end:
                trace = Trace(time.perf_counter())
                await ask(contestant, next(chooser), body(next(source), self.tokens), trace)
                traces.append(trace)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        done = sum(trace.error is None for trace in traces)
        if not done:
            raise RuntimeError(f"{contestant.name} answers nothing: {traces[0].error}")
        return done / (time.perf_counter() - began)

    async def open(self, contestant: Contestant, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        """Figures of an open loop: what was completed within its time, and how long first tokens took."""
        chance, chooser = random.Random(seed), self._chooser(seed)
        source = prompts(seed, self.prompt, self.vocabulary)
        began = time.perf_counter()
        traces, tasks, due = [], [], 0.0
        while due < seconds:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            trace = Trace(began + due)
            traces.append(trace)
            tasks.append(asyncio.create_task(ask(contestant, next(chooser), body(next(source), self.tokens), trace)))
            due += chance.expovariate(rate)
        completed = sum(task.done() for task in tasks)
        await finished(tasks, traces)
        took = time.perf_counter() - began
        firsts = [1e3 * trace.waited_s(began + took) for trace in traces]
        return {
            "offered_per_s": round(rate, 2),
            "requests": len(traces),
            "completed_in_time": completed,
            "completed_per_s": round(sum(trace.error is None for trace in traces) / took, 2),
            "errors": sum(trace.error is not None for trace in traces),
            "first_p50_ms": at(firsts, 0.5),
            "first_p99_ms": at(firsts, 0.99),
            "first_max_ms": at(firsts, 1.0),
        }

    def _chooser(self, seed: int) -> Iterator[AdapterVersion]:
        chance = random.Random(seed)
        weights = [1 / rank**self.exponent for rank in range(1, len(self.adapters) + 1)]
        while True:
            yield from chance.choices(self.adapters, weights, k=1000)


def at(values: Sequence[float], share: float) -> float:
    """A percentile by the nearest rank, to three digits behind the point; 0 of nothing."""
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3) if ordered else 0.0
