"""Output tokens a second with no adapter, one and many, by vLLM's flags; and what of them comes through the gateway.

    python -m bench.throughput [--variants VARIANTS.json] [--shape 7b] [--out bench/results/throughput.json]

A variant is a name and further arguments of vLLM; each gets an engine of its own, one after the other, and `--out` is
written after each. Beside long answers to short prompts it carries a mixed load: long prompts that come while others
are answered. Of the first variant the gateway's share is measured too: the same streams straight to the engine and
through `loradock serve`, in turn. With `--paced 8850` there is no engine but a stand-in that gives so many tokens a
second, as a card would: what the gateway makes of that rate can be seen on any machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.table import Table

from adapters_registry.model import AdapterVersion
from bench.contestants import Contestant, Endpoint, Setup, stock
from bench.environment import ROOT
from bench.processes import Child, free_port
from bench.random_adapters import make_adapters
from bench.report import Bar, publish, result, save, say
from bench.residency_loads import Trace, ask, at, body, prompts
from bench.server import command_of, until_ready
from bench.shapes import SHAPES, write_shape
from configs.embedded import BASE
from configs.profiles import AUTO, KERNELS, EngineProfile, load_profile
from configs.settings import EMBEDDED
from serving.engine.command import TUNED_KERNELS
from serving.engine.hardware import resolve_profile
from serving.engine.transport import Transport

SHARE = 0.98
SMOKE = {
    "rounds": 1, "streams": 4, "tokens": 40, "adapters": 3, "prompt": 16, "rank": 8, "turns": 2, "mixed_prompt": 64,
    "mixed_tokens": 8,
}  # fmt: skip


async def at_once(
    contestant: Contestant, adapters: Sequence[AdapterVersion | None], args: argparse.Namespace, vocabulary: int
) -> Sequence[Trace]:
    """`--streams` whole answers at once, spread evenly over `adapters`."""
    source = prompts(args.seed, args.prompt, vocabulary)
    traces = [Trace(time.perf_counter()) for _ in range(args.streams)]
    await asyncio.gather(
        *(
            ask(contestant, adapters[number % len(adapters)], body(next(source), args.tokens), trace)
            for number, trace in enumerate(traces)
        )
    )
    return whole(traces)


def tokens_per_s(traces: Sequence[Trace]) -> float:
    """Output tokens a second, from the first of all to the last."""
    return rate_of(traces, min(trace.tokens[0] for trace in traces))


def apart_ms(traces: Sequence[Trace]) -> float:
    """How far first tokens lie apart, which is part of the time that `tokens_per_s` counts."""
    firsts = [trace.tokens[0] for trace in traces]
    return 1e3 * (max(firsts) - min(firsts))


def whole(traces: Sequence[Trace]) -> Sequence[Trace]:
    """`traces`. Raises RuntimeError unless each is a whole answer."""
    failed = [trace.error for trace in traces if trace.error or len(trace.tokens) < 2]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(traces)} answers failed: {failed[0]}")
    return traces


def rate_of(traces: Sequence[Trace], begin: float) -> float:
    """Tokens a second from `begin` to the last one."""
    return sum(len(trace.tokens) for trace in traces) / (max(trace.tokens[-1] for trace in traces) - begin)


async def mixed(
    contestant: Contestant, adapters: Sequence[AdapterVersion], args: argparse.Namespace, source: Iterator[list[int]]
) -> dict[str, float]:
    """`--streams` clients, spread over `adapters`, that each ask `--turns` times, prompts and answers of `--mixed-...`.

    What comes of it: output tokens a second from the first question on, and times in ms, first tokens of the first turn
    left out, as all clients ask at once there.
    """
    turns: list[list[Trace]] = [[] for _ in range(args.turns)]

    async def client(adapter: AdapterVersion) -> None:
        for turn in turns:
            trace = Trace(time.perf_counter())
            turn.append(trace)
            await ask(contestant, adapter, body(next(source), args.mixed_tokens), trace)

    began = time.perf_counter()
    await asyncio.gather(*(client(adapters[number % len(adapters)]) for number in range(args.streams)))
    traces = whole(list(itertools.chain.from_iterable(turns)))
    gaps = [1e3 * gap for trace in traces for gap in trace.gaps(began, trace.tokens[-1])]
    firsts = [1e3 * (trace.tokens[0] - trace.asked) for turn in turns[1:] for trace in turn]
    return {
        "tokens_per_s": round(rate_of(traces, began), 1),
        "gap_p50_ms": at(gaps, 0.5),
        "gap_p99_ms": at(gaps, 0.99),
        "first_p50_ms": at(firsts, 0.5),
        "first_p95_ms": at(firsts, 0.95),
    }


async def by_adapters(
    contestant: Contestant, adapters: Sequence[AdapterVersion], args: argparse.Namespace, vocabulary: int
) -> dict[str, list[float]]:
    """Rounds with the base, one adapter and all of them, in turn, after one of each that does not count."""
    loads: dict[str, Sequence[AdapterVersion | None]] = {
        "base": [None], "one adapter": adapters[:1], f"{len(adapters)} adapters": adapters,
    }  # fmt: skip
    figures: dict[str, list[float]] = {name: [] for name in loads}
    for number in range(args.rounds + 1):
        for name, chosen in loads.items():
            rate = tokens_per_s(await at_once(contestant, chosen, args, vocabulary))
            if number:
                figures[name].append(round(rate, 1))
    return figures


async def through_gateway(
    direct: Endpoint, port: int, adapters: Sequence[AdapterVersion], args: argparse.Namespace, folder: Path
) -> dict[str, list[float]]:
    """Rounds through a gateway before the engine on `port` and straight to the engine, in turn.

    Both ask for the adapters that the gateway loads in the first round, which does not count, so that the engine keeps
    them in its slots throughout. `gateway_cores` says how many the gateway took, `..._apart_ms` how far the first
    tokens of a round's answers lie apart.
    """
    own = free_port()
    recorded = json.loads((adapters[0].path / "adapter_config.json").read_text())["base_model_name_or_path"]
    engine = {
        "name": "base",
        "kind": "vllm-remote",
        "url": f"http://127.0.0.1:{port}",
        "slots": len(adapters),
        "base_aliases": [recorded],  # a stand-in does not tell where its model lies
    }
    command, env = command_of(folder, own, {"ENGINES": json.dumps([engine]), "COLD_POLICY": "wait", "DEMO": "false"})
    transport = Transport("gateway", f"http://127.0.0.1:{own}", request_timeout_s=300)
    vocabulary = args.vocabulary
    with Child(command, folder / "gateway.log", env=env, cwd=ROOT) as child:
        try:
            await until_ready(transport, child)
            registered = [await _register(transport, adapter) for adapter in adapters]
            gateway = Endpoint("gateway", transport, child)
            figures: dict[str, list[float]] = {}
            for number in range(args.rounds + 1):
                began, used = time.monotonic(), child.cpu_seconds() or 0.0
                through = await at_once(gateway, registered, args, vocabulary)
                cores = ((child.cpu_seconds() or 0.0) - used) / (time.monotonic() - began)
                straight = await at_once(direct, registered, args, vocabulary)
                measured = {
                    "gateway": tokens_per_s(through), "direct": tokens_per_s(straight), "gateway_cores": cores,
                    "gateway_apart_ms": apart_ms(through), "direct_apart_ms": apart_ms(straight),
                }  # fmt: skip
                if number:
                    for name, figure in measured.items():
                        figures.setdefault(name, []).append(round(figure, 2))
            return figures
        finally:
            await transport.close()


async def paced(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The gateway's share of a stand-in's answers, whose streams give `--paced` tokens a second together."""
    args.vocabulary = json.loads((BASE / "config.json").read_text())["vocab_size"]
    adapters = make_adapters(BASE, folder / "adapters", args.adapters, args.rank)
    delay_ms = 1e3 * args.streams / args.paced
    command = [sys.executable, "-m", "bench.mock_upstream", f"--chunk-delay-ms={delay_ms}", f"--tokens={args.tokens}"]
    with Child(command, folder / "stand-in.log", announces=True) as child:
        url = child.first_line()
        transport = Transport("direct", url, request_timeout_s=300)
        try:
            port = urlsplit(url).port
            assert port is not None
            direct = Endpoint("direct", transport, child)
            shares = await through_gateway(direct, port, adapters, args, folder)
        finally:
            await transport.close()
    return {"variants": {}, "gateway": shares}


async def _register(transport: Transport, adapter: AdapterVersion) -> AdapterVersion:
    """Register `adapter`; the version that the gateway makes of it."""
    content = {"name": adapter.name, "source": str(adapter.path), "agent": adapter.name, "alias": "none"}
    status, answer = await transport.fetch("POST", "/v1/adapters", body=json.dumps(content).encode())
    if status != 201:
        raise RuntimeError(f"registering {adapter.name}: {answer.decode()}")
    return replace(adapter, digest=json.loads(answer)["version"])


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every variant."""
    model = str(write_shape(args.shape, folder / "shape")) if args.shape else args.model
    profile = load_profile(resolve_profile(args.profile, os.environ))
    figures: dict[str, Any] = {"variants": {}}
    for number, (name, arguments) in enumerate(variants_of(args).items()):
        setup = setup_of(model, profile, arguments, args)
        if number == 0:
            args.vocabulary = json.loads((setup.base / "config.json").read_text())["vocab_size"]
            adapters = make_adapters(setup.base, folder / "adapters", args.adapters, args.rank)
        variant: dict[str, Any] = {"arguments": arguments}
        figures["variants"][name] = variant
        port, began = free_port(), time.monotonic()
        try:
            async with stock(setup, folder, folder / "adapters", port) as engine:
                variant["start_s"] = round(time.monotonic() - began, 1)
                variant["tokens_per_s"] = await by_adapters(engine, adapters, args, args.vocabulary)
                source = prompts(args.seed + 1, args.mixed_prompt, args.vocabulary)
                variant["mixed"] = [await mixed(engine, adapters, args, source) for _ in range(args.rounds + 1)][1:]
                if number == 0 and not args.no_gateway:
                    figures["gateway"] = await through_gateway(engine, port, adapters, args, folder)
        except RuntimeError as error:  # the other variants are worth having
            if args.variants is None:
                raise
            variant["error"] = str(error)
        say(f"{name}: {variant}")
        if args.out is not None:
            save(outcome(args, figures), args.out)
    return figures


def setup_of(model: str, profile: EngineProfile, arguments: dict[str, Any], args: argparse.Namespace) -> Setup:
    """A variant's engine: the profile's, with tuned kernels as when it serves; in `env`, null takes a variable away."""
    given = ({"load_format": "dummy"} if args.shape else {}) | json.loads(args.args) | arguments
    slots, rank = int(given.pop("slots", args.adapters)), int(given.pop("rank", args.rank))
    env = {TUNED_KERNELS: str(KERNELS)} | profile.env | given.pop("env", {})
    kept = {name: value for name, value in env.items() if value is not None}
    return Setup(model, profile.model_copy(update={"env": kept}), slots, rank, given, slots)


def variants_of(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By name; the profile as it is where none are given."""
    if args.variants is None:
        return {"profile": {}}
    variants: dict[str, dict[str, Any]] = json.loads(args.variants.read_text(encoding="utf-8"))
    return variants


def table(figures: dict[str, Any]) -> Table:
    """A line for each variant."""
    drawn = Table(title="output tokens a second, medians; mixed: also ms between tokens", title_justify="left")
    drawn.add_column("variant")
    measured = {name: variant for name, variant in figures["variants"].items() if "mixed" in variant}
    loads = list(next(iter(measured.values()))["tokens_per_s"]) if measured else []
    for heading in (*loads, "mixed", "p50", "p99", "start"):
        drawn.add_column(heading, justify="right")
    for name, variant in figures["variants"].items():
        if name not in measured:
            drawn.add_row(name, *["failed"] * len(loads))
            continue
        rates = [f"{statistics.median(rounds):,.0f}" for rounds in variant["tokens_per_s"].values()]
        rate, p50, p99 = (
            statistics.median(one[figure] for one in variant["mixed"])
            for figure in ("tokens_per_s", "gap_p50_ms", "gap_p99_ms")
        )
        drawn.add_row(name, *rates, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{variant['start_s']:.0f} s")
    return drawn


def outcome(args: argparse.Namespace, figures: dict[str, Any]) -> dict[str, Any]:
    """The result so far."""
    settings = {name: value for name, value in vars(args).items() if name not in {"out", "variants"}}
    bars = []
    if rates := figures.get("gateway"):
        shares = [through / direct for direct, through in zip(rates["direct"], rates["gateway"], strict=True)]
        bars.append(Bar("through the gateway / direct", round(statistics.median(shares), 4), SHARE, "x", "at least"))
    return result("throughput", settings, figures, bars)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=EMBEDDED, help="a folder, or 'embedded'")
    parser.add_argument("--shape", choices=SHAPES, help="random weights in this shape instead")
    parser.add_argument("--profile", default=AUTO)
    parser.add_argument("--variants", type=Path, help="JSON: arguments of vLLM by name; also `slots`, `rank` and `env`")
    parser.add_argument("--args", default="{}", help="further arguments of vLLM for all variants, in JSON")
    parser.add_argument("--no-gateway", action="store_true")
    parser.add_argument("--paced", type=float, metavar="TOKENS_PER_S", help="no engine: a stand-in at this rate")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="of each answer")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--turns", type=int, default=3, help="of each client in the mixed load")
    parser.add_argument("--mixed-prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--mixed-tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.paced is not None and (args.paced <= 0 or args.variants or args.shape or args.no_gateway):
        parser.error("--paced takes a rate above 0, and no engine: neither --variants, --shape nor --no-gateway")
    if args.smoke:
        vars(args).update(SMOKE)
    with tempfile.TemporaryDirectory(prefix="loradock-throughput-") as temporary:
        figures = asyncio.run((paced if args.paced else measure)(args, Path(temporary)))
    publish(outcome(args, figures), [table(figures)] if figures["variants"] else [], args.out)


if __name__ == "__main__":
    main()
