"""Output tokens a second with no adapter, one and many, by vLLM's flags; and what of them comes through the gateway.

    python -m bench.throughput [--variants VARIANTS.json] [--shape 7b] [--out bench/results/throughput.json]

A variant is a name and further arguments of vLLM; each gets an engine of its own, one after the other. Of the first one
the gateway's share is measured too: the same streams straight to the engine and through `loradock serve`, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from adapters_registry.model import AdapterVersion
from bench.contestants import Contestant, Endpoint, Setup, stock
from bench.environment import ROOT
from bench.processes import Child, free_port
from bench.random_adapters import make_adapters
from bench.report import Bar, publish, result
from bench.residency_loads import Trace, ask, body, prompts
from bench.server import command_of, until_ready
from bench.shapes import SHAPES, write_shape
from configs.profiles import AUTO, load_profile
from configs.settings import EMBEDDED
from serving.engine.hardware import resolve_profile
from serving.engine.transport import Transport

SHARE = 0.98
SMOKE = {"rounds": 1, "streams": 4, "tokens": 40, "adapters": 3, "prompt": 16, "rank": 8}


async def tokens_per_s(
    contestant: Contestant, adapters: Sequence[AdapterVersion | None], args: argparse.Namespace, vocabulary: int
) -> float:
    """Output tokens a second, from first to last, of `--streams` answers at once, spread evenly over `adapters`."""
    source = prompts(args.seed, args.prompt, vocabulary)
    traces = [Trace(time.perf_counter()) for _ in range(args.streams)]
    await asyncio.gather(
        *(
            ask(contestant, adapters[number % len(adapters)], body(next(source), args.tokens), trace)
            for number, trace in enumerate(traces)
        )
    )
    failed = [trace.error for trace in traces if trace.error or len(trace.tokens) < 2]
    if failed:
        raise RuntimeError(f"{len(failed)} of {args.streams} streams failed: {failed[0]}")
    begin = min(trace.tokens[0] for trace in traces)
    return sum(len(trace.tokens) for trace in traces) / (max(trace.tokens[-1] for trace in traces) - begin)


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
            rate = await tokens_per_s(contestant, chosen, args, vocabulary)
            if number:
                figures[name].append(round(rate, 1))
    return figures


async def through_gateway(
    direct: Endpoint, port: int, adapters: Sequence[AdapterVersion], args: argparse.Namespace, folder: Path
) -> dict[str, list[float]]:
    """Rounds straight to the engine on `port` and through a gateway before it, in turn."""
    own = free_port()
    engine = {"name": "base", "kind": "vllm-remote", "url": f"http://127.0.0.1:{port}", "slots": len(adapters)}
    command, env = command_of(folder, own, {"ENGINES": json.dumps([engine]), "COLD_POLICY": "wait", "DEMO": "false"})
    transport = Transport("gateway", f"http://127.0.0.1:{own}", request_timeout_s=300)
    vocabulary = args.vocabulary
    with Child(command, folder / "gateway.log", env=env, cwd=ROOT) as child:
        try:
            await until_ready(transport, child)
            registered = [await _register(transport, adapter) for adapter in adapters]
            contestants: dict[str, tuple[Contestant, Sequence[AdapterVersion]]] = {
                "direct": (direct, adapters),
                "gateway": (Endpoint("gateway", transport, child), registered),
            }
            figures: dict[str, list[float]] = {name: [] for name in contestants}
            for number in range(args.rounds + 1):
                for name, (contestant, chosen) in contestants.items():
                    rate = await tokens_per_s(contestant, chosen, args, vocabulary)
                    if number:
                        figures[name].append(round(rate, 1))
            return figures
        finally:
            await transport.close()


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
        given = ({"load_format": "dummy"} if args.shape else {}) | arguments
        slots, rank = int(given.pop("slots", args.adapters)), int(given.pop("rank", args.rank))
        env = profile.env | given.pop("env", {})
        setup = Setup(model, profile.model_copy(update={"env": env}), slots, rank, given, slots)
        if number == 0:
            args.vocabulary = json.loads((setup.base / "config.json").read_text())["vocab_size"]
            adapters = make_adapters(setup.base, folder / "adapters", args.adapters, args.rank)
        port, began = free_port(), time.monotonic()
        async with stock(setup, folder, folder / "adapters", port) as engine:
            started = round(time.monotonic() - began, 1)
            rates = await by_adapters(engine, adapters, args, args.vocabulary)
            figures["variants"][name] = {"start_s": started, "arguments": arguments, "tokens_per_s": rates}
            if number == 0 and not args.no_gateway:
                figures["gateway"] = await through_gateway(engine, port, adapters, args, folder)
    return figures


def variants_of(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By name; the profile as it is where none are given."""
    if args.variants is None:
        return {"profile": {}}
    variants: dict[str, dict[str, Any]] = json.loads(args.variants.read_text(encoding="utf-8"))
    return variants


def table(figures: dict[str, Any]) -> Table:
    """A line for each variant."""
    drawn = Table(title="output tokens a second, medians", title_justify="left")
    drawn.add_column("variant")
    first = next(iter(figures["variants"].values()))["tokens_per_s"]
    for heading in (*first, "start"):
        drawn.add_column(heading, justify="right")
    for name, variant in figures["variants"].items():
        rates = [f"{statistics.median(rounds):,.0f}" for rounds in variant["tokens_per_s"].values()]
        drawn.add_row(name, *rates, f"{variant['start_s']:g} s")
    return drawn


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=EMBEDDED, help="a folder, or 'embedded'")
    parser.add_argument("--shape", choices=SHAPES, help="random weights in this shape instead")
    parser.add_argument("--profile", default=AUTO)
    parser.add_argument("--variants", type=Path, help="JSON: arguments of vLLM by name; also `slots`, `rank` and `env`")
    parser.add_argument("--no-gateway", action="store_true")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="of each answer")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.smoke:
        vars(args).update(SMOKE)
    settings = {name: value for name, value in vars(args).items() if name not in {"out", "variants"}}
    with tempfile.TemporaryDirectory(prefix="loradock-throughput-") as temporary:
        figures = asyncio.run(measure(args, Path(temporary)))
    bars = []
    if rates := figures.get("gateway"):
        shares = [through / direct for direct, through in zip(rates["direct"], rates["gateway"], strict=True)]
        bars.append(Bar("through the gateway / direct", round(statistics.median(shares), 4), SHARE, "x", "at least"))
    publish(result("throughput", settings, figures, bars), [table(figures)], args.out)


if __name__ == "__main__":
    main()
