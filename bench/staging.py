"""What bringing an adapter into a slot takes, and what a thread in Python beside it feels. Needs no engine.

    python -m bench.staging [--shape 7b] [--rank 16] [--out bench/results/staging.json]

Fills slots of a model's shape from host memory and from the page cache, on threads, as the engine's process does, while
the main thread does small tensor operations in a loop, as the engine's does. What it waits longest between two of them
is what the interpreter's lock (and the cores) cost it. Slots are in host memory, or on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from bench.report import publish, result
from bench.shapes import SHAPES
from serving.engine.worker.arena import Arena
from serving.engine.worker.extension import SWITCH_INTERVAL_S
from serving.engine.worker.layout import Field, Layout
from serving.engine.worker.prepared import PreparedFolder
from serving.engine.worker.slot_bank import Packed, SlotBank
from serving.engine.worker.staging import Adapter, Progress, Stager, Staging

ALONE_S = 0.1
CAPACITY = 8 << 30


class Bank:
    """Two slots for adapters of `rank` on all linear layers of a Qwen2 shape, in bfloat16; see `SlotBank`."""

    def __init__(self, shape: dict[str, Any], rank: int, device: str) -> None:
        self.layout = Layout(tuple(_fields(shape, rank)), "bench")
        self.count = 2
        self.device = torch.device(device)
        self.rank = rank
        self._tensors = [
            torch.zeros((2, *field.shape), dtype=torch.bfloat16, device=device) for field in self.layout.fields
        ]
        self._slots = [[tensor[slot] for tensor in self._tensors] for slot in range(2)]

    def pack(self, name: str, path: str) -> Packed:
        """Random weights."""
        del name, path
        weights = (torch.randn(field.shape).to(torch.bfloat16) for field in self.layout.fields)
        return Packed(self.rank, dict(enumerate(weights)))

    def targets(self, slot: int, rank: int) -> list[torch.Tensor]:
        """Adapters fill the slots."""
        del rank
        return self._slots[slot]

    def whole(self, slot: int) -> list[torch.Tensor]:
        """Every field."""
        return self._slots[slot]


def _fields(shape: dict[str, Any], rank: int) -> Iterator[Field]:
    hidden, middle = shape["hidden_size"], shape["intermediate_size"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    linears = {"q": (hidden, hidden), "k": (hidden, keys), "v": (hidden, keys), "o": (hidden, hidden)}
    linears |= {"gate": (hidden, middle), "up": (hidden, middle), "down": (middle, hidden)}
    for layer in range(shape["num_hidden_layers"]):
        for name, (inputs, outputs) in linears.items():
            yield Field(f"{layer}.{name}.a", (1, rank, inputs), "bfloat16", 2, 1)
            yield Field(f"{layer}.{name}.b", (1, outputs, rank), "bfloat16", 2, 2)


def longest_wait_ms(until: Callable[[], bool], tensor: torch.Tensor) -> float:
    """Do small operations until `until()`; the longest time between two of them."""
    longest, last = 0.0, time.perf_counter()
    while not until():
        tensor.add_(1)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return round(1e3 * longest, 3)


def rounds(stager: Stager, adapters: list[Adapter], count: int, tensor: torch.Tensor) -> dict[str, Any]:
    """Stage `adapters` in turn, `count` times in all: how long each took, and what the main thread waited."""
    took, waits = [], []
    for number in range(count):
        freed = torch.cuda.Event() if torch.cuda.is_available() else None
        if freed is not None:
            freed.record()
        staging = Staging(adapters[number % len(adapters)], number % 2, freed)
        began = time.perf_counter()
        stager.begin(staging)
        waits.append(longest_wait_ms(lambda staging=staging: staging.progress is not Progress.STAGING, tensor))
        took.append(round(1e3 * (time.perf_counter() - began), 2))
        if staging.progress is Progress.FAILED:
            raise RuntimeError(staging.reason)
    return {
        "staged_ms": statistics.median(took),
        "staged_max_ms": max(took),
        "longest_wait_ms": statistics.median(waits),
        "longest_wait_max_ms": max(waits),
    }


def measure(shape: str, rank: int, count: int, folder: Path) -> dict[str, Any]:
    """Alone, from host memory, from the page cache, and while adapters are prepared."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    bank, tensor = Bank(SHAPES[shape], rank, device), torch.zeros(8, device=device)
    row = bank.layout.parts(range(len(bank.layout.fields)), rank)[1]
    adapters = [Adapter(f"a{number}", "", f"digest{number}") for number in range(2)]

    def stager(rows: int) -> Stager:
        arena = Arena(rows * row, pinned=cuda)
        return Stager(cast("SlotBank", bank), arena, PreparedFolder(folder / "prepared", CAPACITY))

    near, far = stager(2), stager(1)
    for adapter in adapters:
        near.prefetch(adapter, keep=True).result()
    rounds(near, adapters, 4, tensor)
    rounds(far, adapters, 4, tensor)
    alone = []
    for _ in range(count):
        end = time.perf_counter() + ALONE_S
        alone.append(longest_wait_ms(lambda end=end: time.perf_counter() > end, tensor))
    preparing = []
    for number in range(max(2, count // 4)):
        prepared = far.prefetch(Adapter("new", "", f"new{number}"), keep=False)
        preparing.append(longest_wait_ms(prepared.done, tensor))
    return {
        "adapter_bytes": row,
        "tensors": len(bank.layout.fields),
        "alone": {"longest_wait_ms": statistics.median(alone), "longest_wait_max_ms": max(alone)},
        "from_host_memory": rounds(near, adapters, count, tensor),
        "from_page_cache": rounds(far, adapters, count, tensor),
        "while_preparing": {"longest_wait_ms": statistics.median(preparing), "longest_wait_max_ms": max(preparing)},
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loradock-staging-") as folder:
        figures = measure(args.shape, args.rank, args.rounds, Path(folder))
    settings = {"shape": args.shape, "rank": args.rank, "rounds": args.rounds}
    publish(result("staging", settings, figures, []), [], args.out)


if __name__ == "__main__":
    main()
