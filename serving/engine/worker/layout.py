"""How an adapter lies in a slot, and how the same bytes lie in one row of memory or in one file.

A slot is a list of tensors, the *fields*, the same for every slot of an engine. An adapter of rank r fills the first r
rows of its A matrices and the first r columns of its B matrices; the rest of the slot is zero. Of the fields that it
fills, the filled parts are laid one after the other: that row is what is prepared once, kept in host memory and copied.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

ALIGNMENT = 256
"""bytes; where each field's part begins, as device copies like it"""
FORMAT = 1
"""changes with the meaning of prepared bytes"""


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of a slot: `shape` without the slots, `dtype` by torch's name, `rank_dim` the one that ranks bound."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    rank_dim: int | None

    def filled(self, rank: int) -> tuple[int, ...]:
        """The shape of the part that an adapter of `rank` fills."""
        return tuple(min(rank, size) if dim == self.rank_dim else size for dim, size in enumerate(self.shape))


@dataclass(frozen=True, slots=True)
class Part:
    """Where the filled part of field number `field` lies in the row: `offset` and `size` in bytes."""

    field: int
    offset: int
    size: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The fields of every slot of one worker. `salt` tells apart engines that fill the same fields differently."""

    fields: tuple[Field, ...]
    salt: str

    @cached_property
    def key(self) -> str:
        """Name of the layout: equal for workers that can use the same prepared bytes."""
        fields = [(field.name, field.shape, field.rank_dim, field.dtype) for field in self.fields]
        content = json.dumps([FORMAT, self.salt, fields])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def parts(self, present: Iterable[int], rank: int) -> tuple[list[Part], int]:
        """The parts of the fields `present`, in order, and the length of the row in bytes."""
        parts, end = [], 0
        for number in present:
            shape = self.fields[number].filled(rank)
            size = math.prod(shape) * self.fields[number].itemsize
            parts.append(Part(number, end, size, shape))
            end += -(-size // ALIGNMENT) * ALIGNMENT
        return parts, end
