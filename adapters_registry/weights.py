"""Safetensors headers, read strictly and without mapping the file.

A source may change or shrink while it is read, and touching a mapped page past the new end kills the process; so they
are read with plain reads only. The checks are those of the safetensors format: known types, sizes that follow from the
shapes, offsets that cover the data exactly once. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from adapters_registry.errors import AdapterInvalid

MAX_HEADER_BYTES = 32 << 20
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file; `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class WeightsHeader:
    """The tensors of one file, by offset."""

    tensors: tuple[TensorInfo, ...]


def corrupt(reason: str) -> AdapterInvalid:
    """The refusal of a file that is not sound safetensors."""
    return AdapterInvalid(f"the weights file is corrupt: {reason}", param="source", code="weights_corrupt")


def read_header(file: BinaryIO) -> WeightsHeader:
    """Read and check the header of an open safetensors file. Raises AdapterInvalid (`weights_corrupt`)."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise corrupt("it is shorter than a safetensors header")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise corrupt(f"its header claims {length} bytes")
    raw = file.read(length)
    if len(raw) < length:
        raise corrupt("its header is cut short")
    entries = _parse(raw)
    entries.pop("__metadata__", None)
    tensors = sorted((_tensor(name, entry, 8 + length) for name, entry in entries.items()), key=_by_offset)
    _check_cover(tensors, 8 + length, size)
    return WeightsHeader(tuple(tensors))


def _parse(raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise corrupt("its header lists a name twice")
        return dict(pairs)

    try:
        value = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise corrupt("its header is not valid JSON") from None
    if not isinstance(value, dict):
        raise corrupt("its header is not a JSON object")
    return value


def _tensor(name: str, entry: Any, start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise corrupt(f"malformed entry for {name[:200]!r}")
    if dtype not in ITEM_BITS:
        raise corrupt(f"{name[:200]!r} has unknown type {dtype[:20]!r}")
    # bool is an int to Python, not to the format
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise corrupt(f"{name[:200]!r} has a malformed shape or offset")
    if end - begin != -(-math.prod(shape) * ITEM_BITS[dtype] // 8):
        raise corrupt(f"the size of {name[:200]!r} does not follow from its shape")
    return TensorInfo(name, dtype, tuple(shape), start + begin, start + end)


def _by_offset(tensor: TensorInfo) -> tuple[int, int]:
    return tensor.begin, tensor.end


def _check_cover(tensors: list[TensorInfo], start: int, size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.begin != position:
            raise corrupt(f"{tensor.name[:200]!r} overlaps another tensor or leaves a gap")
        position = tensor.end
    if position != size:
        raise corrupt(f"the data should end at byte {position}, the file at {size}")
