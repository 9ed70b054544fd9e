"""Cold adapters beside warm streams, many adapters in few slots, churn: our engine and stock vLLM in the same run.

    python -m bench.residency [--loads beside,zipf,churn] [--model embedded] [--out bench/results/residency.json]

Makes random adapters for the model (a folder, or only its shape with `--shape 7b`), starts our engine and stock vLLM on
it, and lets each load run in turn for all, `--rounds` times. `--smoke` is a minute of it on the embedded base,
`--thousand` Zipf arrivals over 1,000 adapters in 32 slots.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from adapters_registry.model import AdapterVersion
from bench.contestants import Contestant, Ours, Setup, ours, stock
from bench.random_adapters import make_adapters
from bench.report import Bar, publish, result, say
from bench.residency_churn import churn
from bench.residency_loads import Arrivals, Beside, Interference
from bench.residency_plot import draw
from bench.shapes import SHAPES, write_shape
from configs.profiles import AUTO, load_profile
from configs.settings import EMBEDDED
from serving.engine.hardware import resolve_profile

LOADS = ("beside", "zipf", "churn")
TIERS = ("disk", "page-cache", "host")
FIRST_MS = {"disk": 100, "page-cache": 30, "host": 30}
"""that a cold adapter's first token may come after a warm one's, up to `FIRST_RANK`"""
FIRST_RANK = 16
"""the largest rank whose first tokens have a bar"""
ROW_SHARE = 1.02
"""bytes of an adapter's row in host memory by those of its file, at most"""
STAGED_PER_S = 0.5e9
"""bytes that a slow disk gives: so long adapters get to reach host memory"""
SATURATION_SHARE = 0.7
STOCK_FLAGS = {"profile": "stock", "own": "stock as it comes"}
"""contestants by whose flags stock vLLM has: the profile's, as ours has, or its own defaults"""
PROBED = ("control", "cold")
"""what is probed beside streams unless told otherwise: the bars compare these"""
PAIRED = "paired"
"""control and cold in turn, in one round: for a host that others use as well"""
ALL_PROBED = ("streaming", *PROBED, PAIRED)
CHURNING = 8
"""versions for each slot in churn"""
THOUSAND = {"loads": ("zipf",), "adapters": 1000, "slots": 32}
SMOKE = {
    "rounds": 1, "slots": 3, "streams": 2, "tokens": 150, "probes": 4, "adapters": 12, "prompt": 32, "clients": 4,
    "seconds": 4.0, "requests": 60, "rank": 8, "max_rank": 8, "host_adapters": 3,
}  # fmt: skip


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every load for every contestant; figures by load, contestant and round."""
    model = str(write_shape(args.shape, folder / "shape")) if args.shape else args.model
    profile = load_profile(resolve_profile(args.profile, os.environ))
    if args.batch_invariant:
        profile = profile.model_copy(update={"env": profile.env | {"VLLM_BATCH_INVARIANT": "1"}})
    setup = Setup(model, profile, args.slots, args.max_rank, engine_arguments(args), args.host_adapters)
    began = time.monotonic()
    beside_count = args.slots + len(args.tiers) * args.rounds * args.probes if "beside" in args.loads else 0
    pool = make_adapters(setup.base, folder / "adapters", beside_count, args.rank)
    zipf_count = args.adapters if "zipf" in args.loads else 0
    many = make_adapters(setup.base, folder / "adapters", zipf_count, args.rank, first=len(pool))
    # not prepared: it registers them itself
    churned_count = CHURNING * args.slots if "churn" in args.loads else 0
    churned = make_adapters(setup.base, folder / "churned", churned_count, args.rank, first=len(pool) + len(many))
    vocabulary = json.loads((setup.base / "config.json").read_text())["vocab_size"]
    figures: dict[str, Any] = {}
    say(f"{len(pool) + len(many) + len(churned)} adapters made after {time.monotonic() - began:.0f} s")
    async with AsyncExitStack() as stack:
        made = [*pool, *many, *churned]
        host_bytes = int(ROW_SHARE * args.host_adapters * max(adapter.size_bytes for adapter in made))
        starting: list[AbstractAsyncContextManager[Contestant]] = [ours(setup, folder / "ours", host_bytes)]
        for flags in () if args.alone else args.stock_flags:
            theirs = setup if flags == "profile" else setup.as_it_comes()
            starting.append(stock(theirs, folder, folder / "adapters", name=STOCK_FLAGS[flags]))
        async with asyncio.TaskGroup() as group:
            entering = [group.create_task(stack.enter_async_context(contestant)) for contestant in starting]
        contestants = [task.result() for task in entering]
        say(f"engines ready after {time.monotonic() - began:.0f} s")
        await prepare(contestants, [*pool, *many])
        say(f"adapters prepared after {time.monotonic() - began:.0f} s")
        if "beside" in args.loads:
            figures["beside"] = await beside(args, contestants, pool, vocabulary)
        if "zipf" in args.loads:
            figures["zipf"] = await zipf(args, contestants, many, vocabulary)
        if "churn" in args.loads:
            mine = contestants[0]
            assert isinstance(mine, Ours)
            figures["churn"] = (await churn(mine, churned, args.requests, seed=args.seed)).figures()
            figures["longest_load_wait_s"] = round(mine.residency.longest_wait_s, 3)
    return figures


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """VLLM's arguments of this run: the user's, and no weights where there is only a shape."""
    given: dict[str, Any] = json.loads(args.args)
    return {"load_format": "dummy"} | given if args.shape else given


async def prepare(contestants: Sequence[Contestant], adapters: Sequence[AdapterVersion]) -> None:
    """What our registry does when adapters are registered."""
    mine = next(contestant for contestant in contestants if isinstance(contestant, Ours))
    for adapter in adapters:
        await mine.engine.prepare(adapter)
    deadline = time.monotonic() + 60 + 3 * len(adapters)
    while mine.prepared() < len(adapters) and time.monotonic() < deadline:  # noqa: ASYNC110 - the engine does not tell
        await asyncio.sleep(0.2)


async def beside(
    args: argparse.Namespace, contestants: Sequence[Contestant], pool: Sequence[AdapterVersion], vocabulary: int
) -> dict[str, Any]:
    """Streams on half of the slots; beside them, in turn, probes on adapters that stream, on resident ones, on cold.

    The resident ones are the control: a step then has as many adapters to compute as with cold ones. Figures by tier,
    contestant and what was probed, one for each round.
    """
    cold = iter(pool[args.slots :])
    busy = max(1, args.slots // 2)
    streaming, resident = pool[:busy], pool[busy : args.slots]
    load = Interference(streaming, args.streams, args.tokens, args.every, args.prompt, vocabulary)
    figures: dict[str, Any] = {tier: {contestant.name: {} for contestant in contestants} for tier in args.tiers}
    for tier, number in itertools.product(args.tiers, range(args.rounds)):
        chosen = list(itertools.islice(cold, args.probes))
        others = [adapter for adapter in pool if adapter not in chosen][-args.host_adapters :]
        for contestant in contestants:
            await arrange(tier, contestant, chosen, others)
            for way in args.probed:
                felt = await probe(way, load, contestant, resident or streaming, chosen, seed=args.seed + number)
                for probed, what in felt.items():
                    figures[tier][contestant.name].setdefault(probed, []).append(what.figures())
                    say(f"{contestant.name}, {tier}, {probed}: {what.figures()}")
    return figures


async def probe(
    way: str,
    load: Interference,
    contestant: Contestant,
    resident: Sequence[AdapterVersion],
    cold: Sequence[AdapterVersion],
    *,
    seed: int,
) -> dict[str, Beside]:
    """One round of one of `ALL_PROBED`, as many probes as there are cold ones; what was felt, by what was probed."""
    if way == "streaming":
        return {way: await load.run(contestant, as_many(load.warm, cold), seed)}
    if way == "cold":
        return {way: await load.run(contestant, iter(cold), seed)}
    await load.touch(contestant, resident)
    if way == "control":
        return {way: await load.run(contestant, as_many(resident, cold), seed)}
    # one alone stays resident: the cold ones have the other slots
    control, chilled = await load.paired(contestant, itertools.repeat(resident[-1]), iter(cold), seed)
    return {"control": control, "cold": chilled}


def as_many(warm: Sequence[AdapterVersion], cold: Sequence[AdapterVersion]) -> Iterator[AdapterVersion]:
    """As many warm probes as there are cold ones."""
    return itertools.islice(itertools.cycle(warm), len(cold))


async def arrange(
    tier: str, contestant: Contestant, adapters: Sequence[AdapterVersion], others: Sequence[AdapterVersion]
) -> None:
    """Let `adapters` be no nearer and no farther than `tier`; `others` fill host memory."""
    if isinstance(contestant, Ours):
        nearest = adapters if tier == "host" else others
        for adapter in nearest:
            await contestant.engine.stage(adapter)
        await asyncio.sleep(1.0 + sum(adapter.size_bytes for adapter in nearest) / STAGED_PER_S)
        if tier == "host":
            return
    files = [file for adapter in adapters for file in adapter.path.iterdir()]
    if isinstance(contestant, Ours):
        files += [file for adapter in adapters for file in contestant.prepared_files(adapter)]
    if tier == "disk":
        drop_from_page_cache(files)
    else:  # an earlier tier may have dropped them
        for file in files:
            file.read_bytes()


def drop_from_page_cache(files: Sequence[Path]) -> None:
    """Let the next reader of `files` wait for the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


async def zipf(
    args: argparse.Namespace, contestants: Sequence[Contestant], many: Sequence[AdapterVersion], vocabulary: int
) -> dict[str, Any]:
    """Arrivals over all adapters at a share of what the last contestant gets through with as many as it has slots."""
    few = Arrivals(many[: args.slots], args.prompt, args.answer, vocabulary)
    saturation = await few.closed(contestants[-1], args.clients, args.seconds, args.seed)
    load = Arrivals(many, args.prompt, args.answer, vocabulary)
    figures: dict[str, Any] = {"saturation_per_s": round(saturation, 2), "saturation_of": contestants[-1].name}
    for contestant in contestants:
        figures[contestant.name] = []
    for number in range(args.rounds):
        for contestant in contestants:
            got = await load.open(contestant, SATURATION_SHARE * saturation, args.seconds, args.seed + number)
            figures[contestant.name].append(got)
            say(f"{contestant.name}, Zipf: {got}")
    return figures


def median(rounds: Sequence[dict[str, float]], figure: str) -> float:
    """Of one figure over rounds."""
    return statistics.median(one[figure] for one in rounds)


def bars_beside(
    tier: str, rank: int, control: Sequence[dict[str, float]], cold: Sequence[dict[str, float]]
) -> list[Bar]:
    """The bars of cold adapters from `tier` beside streams, from the rounds of both."""
    ratio = statistics.median(two["gap_p99_ms"] / one["gap_p99_ms"] for one, two in zip(control, cold, strict=True))
    more, later = (
        median(cold, figure) - median(control, figure) for figure in ("long_gaps_per_10k", "probe_first_p95_ms")
    )
    bars = [
        Bar(f"{tier}: p99 between tokens, cold / control", round(ratio, 3), 1.05, "x", "at most"),
        Bar(f"{tier}: gap that a warm probe opens", median(control, "probe_gap_p50_ms"), 25, "ms", "at most"),
        Bar(f"{tier}: gaps over 50 ms per 10,000 tokens, cold - control", round(more, 1), 0, "gaps", "at most"),
    ]
    if rank <= FIRST_RANK:
        bars.append(Bar(f"{tier}: first token p95, cold - warm", round(later, 1), FIRST_MS[tier], "ms", "at most"))
    return bars


def bars_of(figures: dict[str, Any], rank: int) -> list[Bar]:
    """The bars of what was measured with adapters of `rank`."""
    bars = []
    for tier, contestants in figures.get("beside", {}).items():
        mine = contestants["ours"]
        if {"control", "cold"} <= mine.keys():
            bars += bars_beside(tier, rank, mine["control"], mine["cold"])
    arrived = figures.get("zipf", {})
    for name in STOCK_FLAGS.values():
        if name not in arrived:
            continue
        mine, theirs = arrived["ours"], arrived[name]
        rate = median(mine, "completed_per_s") / max(1e-9, median(theirs, "completed_per_s"))
        first = median(mine, "first_p99_ms") / max(1e-9, median(theirs, "first_p99_ms"))
        bars += [
            Bar(f"Zipf: completed a second, ours / {name}", round(rate, 3), 1.3, "x", "at least"),
            Bar(f"Zipf: first token p99, ours / {name}", round(first, 3), 0.5, "x", "at most"),
        ]
    if churned := figures.get("churn"):
        bars += [
            Bar("churn: answers that are not the adapter's fingerprint", churned["wrong"], 0, "answers", "at most"),
            Bar("churn: of these, more like another adapter's", churned["of_another"], 0, "answers", "at most"),
            Bar("churn: adapters that answer as another does", churned["alike"], 0, "adapters", "at most"),
            Bar("churn: errors", churned["errors"], 0, "errors", "at most"),
            Bar("churn: engine restarts", churned["engine_restarts"], 0, "restarts", "at most"),
            Bar("churn: growth of memory", churned["memory_growth_percent"], 2, "%", "at most"),
        ]
    return bars


def parse() -> argparse.Namespace:
    """The command line; `--smoke` and `--thousand` replace the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--loads", type=lambda text: text.split(","), default=LOADS, help=",".join(LOADS))
    parser.add_argument("--alone", action="store_true", help="without stock vLLM")
    parser.add_argument(
        "--stock-flags",
        type=lambda text: text.split(","),
        default=("profile",),
        help=f"stock vLLM's: {','.join(STOCK_FLAGS)}; with both there are two of it",
    )
    parser.add_argument("--model", default=EMBEDDED, help="a folder, or 'embedded'")
    parser.add_argument("--shape", choices=SHAPES, help="random weights in this shape instead")
    parser.add_argument("--profile", default=AUTO)
    parser.add_argument("--args", default="{}", help="further arguments of vLLM for all, in JSON")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--max-rank", type=int, default=16, help="of the slots")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=256, help="for zipf")
    parser.add_argument("--host-adapters", type=int, default=32, help="that each may keep in host memory")
    parser.add_argument(
        "--tiers",
        type=lambda text: text.split(","),
        default=("page-cache",),
        help=f"where cold adapters are: {','.join(TIERS)}",
    )
    parser.add_argument("--probed", type=lambda text: text.split(","), default=PROBED, help=",".join(ALL_PROBED))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=3000, help="of each stream")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between probes")
    parser.add_argument("--probes", type=int, default=40, help="in a round")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer in zipf")
    parser.add_argument("--clients", type=int, default=64, help="at once, to find the saturation")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a zipf round")
    parser.add_argument(
        "--batch-invariant", action="store_true", help="vLLM's slower kernels; churn on a GPU needs them"
    )
    parser.add_argument("--requests", type=int, default=10_000, help="of churn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--thousand", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="a PNG of the gaps")
    args = parser.parse_args()
    for option, known in {"loads": LOADS, "stock-flags": STOCK_FLAGS, "tiers": TIERS, "probed": ALL_PROBED}.items():
        given = vars(args)[option.replace("-", "_")]
        if unknown := set(given) - set(known):
            parser.error(f"unknown in --{option}: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
        if len(set(given)) < len(given):
            parser.error(f"twice in --{option}: {', '.join(given)}")
    if args.smoke:
        vars(args).update(SMOKE)
    if args.thousand:
        vars(args).update(THOUSAND)
    spare = args.slots + (len(args.tiers) * args.rounds - 1) * args.probes
    if "beside" in args.loads and set(args.tiers) != {"host"} and spare < args.host_adapters:
        parser.error(
            f"{args.host_adapters} in --host-adapters leave nothing on disk: {spare} at most, or more --rounds"
        )
    return args


def main() -> None:
    """Run and print."""
    args = parse()
    with tempfile.TemporaryDirectory(prefix="loradock-residency-") as temporary:
        figures = asyncio.run(measure(args, Path(temporary)))
    settings = {name: value for name, value in vars(args).items() if name not in {"out", "plot"}}
    publish(result("residency", settings, figures, bars_of(figures, args.rank)), [], args.out)
    if args.plot is not None:
        draw(figures, args.plot)


if __name__ == "__main__":
    main()
