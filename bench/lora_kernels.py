"""Block sizes for vLLM's LoRA kernels on this GPU: what they cost by default, and the best of those that were tried.

    python -m bench.lora_kernels [--shape 7b] [--rank 16] [--seconds 120] [--out configs/kernels]

Writes the files that vLLM reads from VLLM_TUNED_CONFIG_FOLDER, one for each kernel. Every candidate's result is
compared with that of the default. Weights of all layers take turns, as in a model, so that none comes from a cache.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from bench.report import publish, result
from bench.shapes import SHAPES

Config = dict[str, Any]
TOKENS = (16, 64, 256, 512, 2048)
FEW_TOKENS = 256
"""with fewer than these, a step is all decoding: some tokens of each adapter"""
FEW_ROWS = 16
"""of a block, then: the fewest that the matrix units take"""
TOLERANCE = 1e-2
REPEATS = 5
KERNELS = 7
MOST_SLICES = 8


class Kernel(Protocol):
    """One of the two kernels on the weights of one linear layer, as often as the model has layers."""

    name: str
    slices: int
    inputs: int
    outputs: int

    def default(self, tokens: int) -> Config:
        """What vLLM takes where nothing is tuned."""
        ...

    def candidates(self) -> Iterator[Config]:
        """What may be better."""
        ...

    def bind(self, tokens: int, meta: Any) -> tuple[Callable[[], Any], Callable[[], None]]:
        """The result of the first layer, and a call of all of them."""
        ...


class Shrink:
    """From the hidden size to the rank."""

    name = "SHRINK"

    def __init__(self, slots: int, layers: int, rank: int, slices: int, inputs: int) -> None:
        import torch

        self.slices, self.inputs, self.outputs = slices, inputs, rank
        shape = (slots, 1, rank, inputs)
        self._weights = [[_random(torch, shape) for _ in range(slices)] for _ in range(layers)]

    def default(self, tokens: int) -> Config:
        """See `Kernel.default`."""
        return _default("shrink", tokens, self.inputs, self.outputs, self.slices)

    def candidates(self) -> Iterator[Config]:
        """See `Kernel.candidates`."""
        widths = sorted({16, min(self.outputs, 64)})
        for m, n, k, split, warps, stages in itertools.product(
            (16, 32), widths, (128, 256), (4, 8, 16, 32), (4, 8), (2, 3)
        ):
            if k * split <= 2 * self.inputs:
                yield _config(
                    block_m=m,
                    block_n=n,
                    block_k=k,
                    split_k=split,
                    num_warps=warps,
                    num_stages=stages,
                    group_size_m=8,
                )

    def bind(self, tokens: int, meta: Any) -> tuple[Callable[[], Any], Callable[[], None]]:
        """See `Kernel.bind`."""
        import torch
        from vllm.lora.ops.triton_ops.lora_shrink_op import _lora_shrink

        given = torch.randn(tokens, self.inputs, device="cuda", dtype=torch.bfloat16)
        taken = torch.zeros(self.slices, tokens, self.outputs, device="cuda", dtype=torch.float32)

        def first() -> Any:
            _lora_shrink(given, self._weights[0], taken, *meta, 1.0)
            return taken.clone()

        def every() -> None:
            for weights in self._weights:
                _lora_shrink(given, weights, taken, *meta, 1.0)

        return first, every


class Expand:
    """From the rank to a layer's outputs, added to what is there."""

    name = "EXPAND_TRUE"

    def __init__(self, slots: int, layers: int, rank: int, sizes: Sequence[int]) -> None:
        import torch

        self.slices, self.inputs, self.outputs = len(sizes), rank, max(sizes)
        self._width = sum(sizes)
        self._weights = [[_random(torch, (slots, 1, size, rank)) for size in sizes] for _ in range(layers)]

    def default(self, tokens: int) -> Config:
        """See `Kernel.default`."""
        return _default("expand", tokens, self.outputs, self.inputs, self.slices)

    def candidates(self) -> Iterator[Config]:
        """See `Kernel.candidates`."""
        depths = sorted({16, min(self.inputs, 64)})
        for m, n, k, warps, stages in itertools.product((16, 32), (64, 128, 256), depths, (2, 4, 8), (1, 2)):
            yield _config(block_m=m, block_n=n, block_k=k, num_warps=warps, num_stages=stages)

    def bind(self, tokens: int, meta: Any) -> tuple[Callable[[], Any], Callable[[], None]]:
        """See `Kernel.bind`."""
        import torch
        from vllm.lora.ops.triton_ops.lora_expand_op import _lora_expand

        given = torch.randn(self.slices, tokens, self.inputs, device="cuda", dtype=torch.float32)
        taken = torch.zeros(tokens, self._width, device="cuda", dtype=torch.bfloat16)

        def first() -> Any:
            taken.zero_()
            _lora_expand(given, self._weights[0], taken, *meta, offset_start=0, add_inputs=True)
            return taken.float()

        def every() -> None:
            for weights in self._weights:
                _lora_expand(given, weights, taken, *meta, offset_start=0, add_inputs=True)

        return first, every


@dataclass(slots=True)
class Best:
    """What is known of one kernel with so many tokens. Times in microseconds for a layer."""

    first: Callable[[], Any]
    every: Callable[[], None]
    reference: Any
    default_us: float
    us: float
    config: Config


@dataclass(frozen=True, slots=True)
class Tuned:
    """What is written of it: `place` are the keys of vLLM's file, from the slots and one to the outputs."""

    kernel: str
    place: tuple[str, str, str, str, str]
    default_us: float
    us: float
    config: Config


def kernels(shape: dict[str, Any], slots: int, rank: int) -> Iterator[Kernel]:
    """Of the linear layers of a Qwen2 shape: q, k and v together, o, gate and up together, down."""
    hidden, middle, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    for slices, inputs in ((3, hidden), (1, hidden), (2, hidden), (1, middle)):
        yield Shrink(slots, layers, rank, slices, inputs)
    for sizes in ((hidden, keys, keys), (hidden,), (middle, middle)):
        yield Expand(slots, layers, rank, sizes)


def tune(kernel: Kernel, slots: int, layers: int, seconds: float, seed: int) -> dict[int, Best]:
    """The best of the candidates that `seconds` allow, in random order, for each of TOKENS."""
    bests = {tokens: _start(kernel, tokens, slots, layers) for tokens in TOKENS}
    tried = list(kernel.candidates())
    random.Random(seed).shuffle(tried)
    end = time.monotonic() + seconds
    for config in itertools.takewhile(lambda _: time.monotonic() < end, tried):
        for tokens, best in bests.items():
            if tokens < FEW_TOKENS and config["block_m"] > FEW_ROWS:
                continue
            _use(config)
            got = best.first()
            if (got - best.reference).norm() > TOLERANCE * best.reference.norm():
                raise RuntimeError(f"{kernel.name}: {config} computes something else")
            took = _timed(best.every, layers)
            if took < best.us:
                best.us, best.config = took, config
    return bests


def _start(kernel: Kernel, tokens: int, slots: int, layers: int) -> Best:
    import torch
    from vllm.lora.ops.triton_ops import LoRAKernelMeta

    meta = LoRAKernelMeta.make(slots, max(TOKENS), device="cuda")
    active = slots - 1
    meta.prepare_tensors(torch.arange(tokens, device="cuda") * active // tokens)
    first, every = kernel.bind(tokens, meta.meta_args(tokens, False))
    default = kernel.default(tokens)
    _use(default)
    reference = first()
    took = _timed(every, layers)
    return Best(first, every, reference, took, took, default)


def _use(config: Config) -> None:
    """Let both kernels run with `config`."""
    from vllm.lora.ops.triton_ops import lora_expand_op, lora_shrink_op

    for module in (lora_shrink_op, lora_expand_op):
        vars(module)["get_lora_op_configs"] = lambda *_, **__: config


def _timed(calls: Callable[[], None], layers: int) -> float:
    """Median microseconds of a layer, replayed as a CUDA graph."""
    import torch

    calls()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    took = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        took.append(begin.elapsed_time(end) * 1e3 / layers)
    return statistics.median(took)


def _random(torch: Any, shape: tuple[int, ...]) -> Any:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02


def _default(kernel: str, tokens: int, size: int, rank: int, slices: int) -> Config:
    """VLLM's own choice, which does not look at the number of slots."""
    from vllm.lora.ops.triton_ops.utils import get_lora_op_configs

    add = True if kernel == "expand" else None
    return dict(get_lora_op_configs(kernel, 0, tokens, size, rank, slices, add_inputs=add))


def _config(**sizes: int) -> Config:
    return {**sizes, "num_ctas": 1, "max_nreg": None}


def write(folder: Path, gpu: str, tuned: Sequence[Tuned]) -> None:
    """Add `tuned` to the files of `gpu` in `folder`.

    VLLM takes the nearest of every number but the slices, which must be there: more than three are taken as three. It
    looks for the number of slots first, so what was tuned for one number is given to the others: the rank matters more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in {one.kernel for one in tuned}:
        file = folder / f"{re.sub('[ -]', '_', gpu)}_{name}.json"
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        mine = {one.place: one.config for one in tuned if one.kernel == name}
        for place in mine:
            _place(content, place, mine)
        for by_slices in content.values():
            by_slices |= {str(slices): by_slices["3"] for slices in range(4, MOST_SLICES + 1)}
        for one, other in itertools.permutations(content.values(), 2):
            _fill(one, other)
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _place(content: dict[str, Any], place: tuple[str, ...], tuned: Mapping[tuple[str, ...], Config]) -> None:
    """Put what was tuned for `place` there, and where other numbers of slots have what it replaces."""
    slots, *path, last = place
    own = _at(content, slots, *path)
    before, own[last] = own.get(last), tuned[place]
    for other in content:
        there = _at(content, other, *path)
        if last in there and there[last] == before and (other, *path, last) not in tuned:
            there[last] = tuned[place]


def _at(content: dict[str, Any], *path: str) -> dict[str, Any]:
    """What lies there; made if need be."""
    for key in path:
        content = content.setdefault(key, {})
    return content


def _fill(one: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Give `one` the places of `other` that it lacks."""
    for key, value in other.items():
        if key not in one:
            one[key] = copy.deepcopy(value)
        elif "block_m" not in value:
            _fill(one[key], value)


def table(tuned: Sequence[Tuned]) -> Table:
    """A line for each kernel and number of tokens."""
    drawn = Table(title="microseconds a layer", title_justify="left")
    for heading in ("kernel", "slices", "inputs", "outputs", "tokens", "by default", "tuned"):
        drawn.add_column(heading, justify="left" if heading == "kernel" else "right")
    for one in tuned:
        _, slices, tokens, inputs, outputs = one.place
        drawn.add_row(one.kernel, slices, inputs, outputs, tokens, f"{one.default_us:.1f}", f"{one.us:.1f}")
    return drawn


def main() -> None:
    """Tune, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--slots", type=int, default=9, help="one of them idle")
    parser.add_argument("--seconds", type=float, default=120.0, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the files")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("needs an NVIDIA GPU")
    shape = SHAPES[args.shape]
    layers = shape["num_hidden_layers"]
    tuned = []
    for number, kernel in enumerate(kernels(shape, args.slots, args.rank)):
        for tokens, best in tune(kernel, args.slots, layers, args.seconds / KERNELS, args.seed + number).items():
            place = (str(args.slots + 1), str(kernel.slices), str(tokens), str(kernel.inputs), str(kernel.outputs))
            tuned.append(Tuned(kernel.name, place, best.default_us, best.us, best.config))
    if args.out is not None:
        write(args.out, torch.cuda.get_device_name(), tuned)
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    publish(result("lora_kernels", settings, {"kernels": [asdict(one) for one in tuned]}, []), [table(tuned)], None)


if __name__ == "__main__":
    main()
