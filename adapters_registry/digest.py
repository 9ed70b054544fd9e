"""The canonical form of an adapter and its digest.

Stored are exactly two files: `adapter_config.json` with only the fields that change what an engine computes, and
`adapter_model.safetensors` with the tensors in a fixed order and no foreign metadata. The digest is the sha256 over the
config's length (8 bytes, little endian), the config and the weights file; so the same adapter gets the same digest from
a folder or an archive, in any order of tensors, with any README beside it, and stored files can be verified by hashing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors

from adapters_registry.errors import AdapterInvalid
from adapters_registry.validation import CheckedAdapter, LoraTensor
from adapters_registry.weights import ITEM_BITS, corrupt

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CHUNK = 4 << 20
EXPONENT_BITS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""a number is infinite or not a number exactly when all of these bits are set"""


def write_canonical(
    adapter: CheckedAdapter, source: BinaryIO, folder: Path, progress: Callable[[int, int], None]
) -> tuple[str, int]:
    """Copy `source` into `folder` in canonical form; returns digest and size in bytes. Every byte is read once.

    `progress` gets bytes done and in all. Both files are on disk (fsync) when this returns. Raises AdapterInvalid for
    numbers that are not finite (`not_finite`) and for a source that shrinks meanwhile (`weights_corrupt`).
    """
    digest = _begin(adapter.config)
    _write_synced(folder / CONFIG_FILE, iter([adapter.config]))
    tensors = sorted(adapter.tensors, key=_storage_order)
    header = _header(tensors)
    total = len(header) + sum(tensor.info.size_bytes for tensor in tensors)

    def pieces() -> Iterator[bytes | memoryview]:
        done = len(header)
        digest.update(header)
        yield header
        for tensor in tensors:
            for chunk in _checked_chunks(tensor, source):
                digest.update(chunk)
                done += len(chunk)
                yield chunk
                progress(done, total)

    _write_synced(folder / WEIGHTS_FILE, pieces())
    _check_readable(folder / WEIGHTS_FILE, len(tensors))
    return digest.hexdigest(), len(adapter.config) + total


def digest_of(folder: Path) -> str:
    """The digest of stored files. Raises OSError when one is missing."""
    digest = _begin((folder / CONFIG_FILE).read_bytes())
    with (folder / WEIGHTS_FILE).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _begin(config: bytes) -> hashlib._Hash:
    return hashlib.sha256(len(config).to_bytes(8, "little") + config)


def _storage_order(tensor: LoraTensor) -> tuple[int, str]:
    # wide types first keeps every tensor aligned to its item size
    return -ITEM_BITS[tensor.info.dtype], tensor.canonical_name


def _header(tensors: list[LoraTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.info.size_bytes
        entries[tensor.canonical_name] = {
            "dtype": tensor.info.dtype,
            "shape": list(tensor.info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _checked_chunks(tensor: LoraTensor, source: BinaryIO) -> Iterator[bytes]:
    mask = EXPONENT_BITS[tensor.info.dtype]
    item_bytes = ITEM_BITS[tensor.info.dtype] // 8
    source.seek(tensor.info.begin)
    left = tensor.info.size_bytes
    while left:
        chunk = source.read(min(CHUNK, left))
        left -= len(chunk)
        if not chunk or len(chunk) % item_bytes:
            raise corrupt("it shrank while it was read")
        words = np.frombuffer(chunk, np.uint32) if item_bytes == 4 else np.frombuffer(chunk, np.uint16)
        if ((words & mask) == mask).any():
            raise AdapterInvalid(
                f"{tensor.canonical_name[:200]!r} holds numbers that are NaN or infinite",
                param="source",
                code="not_finite",
            )
        yield chunk


def _write_synced(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _check_readable(path: Path, tensors: int) -> None:
    """Open our copy with the library that engines use, so that no difference of opinion reaches an engine."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = len(file.keys())
    except safetensors.SafetensorError as error:
        raise corrupt(str(error)) from error
    if found != tensors:
        raise corrupt(f"{tensors} tensors went in, {found} came out")
