"""Slots without a model, with the part of `SlotBank` that staging uses."""

from __future__ import annotations

from pathlib import Path

import torch

from serving.engine.worker.layout import Field, Layout
from serving.engine.worker.slot_bank import Packed

LARGEST_RANK = 4
LAYOUT = Layout(
    (
        Field("a", (1, LARGEST_RANK, 6), "float32", 4, 1),
        Field("b", (1, 5, LARGEST_RANK), "float32", 4, 2),
        Field("other", (1, LARGEST_RANK, 3), "float32", 4, 1),
    ),
    "test",
)


class Bank:
    """`slots` slots in host memory. An adapter's folder holds `rank`, a number; `pack` counts how often it was read."""

    def __init__(self, slots: int = 2, device: str = "cpu") -> None:
        self.layout = LAYOUT
        self.count = slots
        self.workers = 1
        self.device = torch.device(device)
        self.tensors = [torch.full((slots, *field.shape), 9.0, device=device) for field in LAYOUT.fields]
        self.packs = 0

    def pack(self, name: str, path: str) -> Packed:
        self.packs += 1
        rank = int((Path(path) / "rank").read_text())
        tensors = {}
        for number in (0, 1):
            tensor = torch.zeros(LAYOUT.fields[number].shape)
            dim = LAYOUT.fields[number].rank_dim
            assert dim is not None
            part = tensor.narrow(dim, 0, rank)
            part.copy_(torch.arange(part.numel()).view(part.shape) + 100 * rank)
            tensors[number] = tensor
        return Packed(rank, tensors)

    def targets(self, slot: int, rank: int) -> list[torch.Tensor]:
        return [
            tensor[slot].narrow(field.rank_dim or 0, 0, rank)
            for field, tensor in zip(LAYOUT.fields, self.tensors, strict=True)
        ]

    def whole(self, slot: int) -> list[torch.Tensor]:
        return [tensor[slot] for tensor in self.tensors]

    def holds(self, slot: int, path: Path) -> bool:
        """Whether the slot is what vLLM itself would have written."""
        packed = self.pack("expected", str(path))
        self.packs -= 1
        empty = [torch.zeros(field.shape) for field in LAYOUT.fields]
        return all(
            torch.equal(tensor[slot].cpu(), packed.tensors.get(number, empty[number]))
            for number, tensor in enumerate(self.tensors)
        )
