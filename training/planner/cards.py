"""Devices that training may run on."""

from __future__ import annotations

import os
from dataclasses import dataclass

from training.planner.errors import CardError
from training.planner.memory import GIB

CONTEXT = GIB // 2
"""what CUDA and its libraries take before the first tensor; an allowance (0.3 to 0.6 GiB, by card and driver)"""
SLACK = 0.03
"""share of the peak that the caching allocator holds beyond what it was asked for; an allowance"""
_AVX2_CORE_TFLOPS = 0.05


@dataclass(frozen=True, slots=True)
class Card:
    """One device. `memory` is what the driver reports in bytes, `tflops` the dense rate of 16-bit tensor cores.

    Without a known rate (0), no time can be predicted.
    """

    name: str
    memory: int
    tflops: float = 0.0
    cpu: bool = False

    @classmethod
    def of_memory(cls, gib: float) -> Card:
        """A card of which only the memory is known."""
        if not gib > 0:
            raise CardError("a card's memory must be positive")
        return cls(f"{gib:g} GiB", round(gib * GIB))

    def usable(self) -> int:
        """Bytes that tensors may take at the peak."""
        return self.memory if self.cpu else max(0, int((self.memory - CONTEXT) / (1 + SLACK)))


# memory as reported by the driver, dense BF16 (T4: FP16) rate from NVIDIA's data sheets
_CARDS = {
    "RTX3060": (11.76, 51.0),
    "RTX3070": (7.78, 81.3),
    "RTX4060": (7.75, 60.5),
    "RTX4090": (23.65, 165.2),
    "A10": (22.07, 125.0),
    "L4": (22.17, 121.0),
    "T4": (14.58, 65.0),
    "A100-40": (39.39, 312.0),
    "A100-80": (79.15, 312.0),
    "H100": (79.11, 989.0),
    "H200": (139.81, 989.0),
    "B200": (178.35, 2250.0),
}
CPU = "cpu"


def card_names() -> tuple[str, ...]:
    """Names that `find_card` knows."""
    return (*_CARDS, CPU)


def find_card(name: str) -> Card:
    """The card `name`; case, spaces and hyphens do not matter. Raises CardError naming the cards there are."""
    wanted = _plain(name)
    if wanted == CPU:
        return _this_machine()
    for known, (gib, tflops) in _CARDS.items():
        if wanted in {_plain(known), _plain(known.removeprefix("RTX"))}:
            return Card(known, round(gib * GIB), tflops)
    raise CardError(f"unknown card '{name}' (there are {', '.join(card_names())}; or give --memory-gib)")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _this_machine() -> Card:
    """Memory and cores of this machine, at the rate of a core with AVX2."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Card(CPU, memory, _AVX2_CORE_TFLOPS * (os.cpu_count() or 1), cpu=True)
