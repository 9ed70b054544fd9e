"""The merged model as a folder that transformers, vLLM and others read, written tensor by tensor.

The files are those of the base, shard for shard; one tensor at a time is in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapters_registry.weights import ITEM_BITS, TensorInfo
from training.export.checkpoint import CONFIG, INDEX, Checkpoint
from training.export.errors import ExportError
from training.export.merge import Merge

if TYPE_CHECKING:
    import torch

Dtype = Literal["bf16", "fp16"]
Progress = Callable[[int, int], None]
"""told bytes done and bytes in all"""

_TYPES: dict[str, tuple[str, str]] = {"bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16")}
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def write_merged(merge: Merge, folder: Path, dtype: Dtype, progress: Progress) -> None:
    """Write the model into the empty `folder`. Raises ExportError for a number beyond what `dtype` holds."""
    total, done = merged_bytes(merge.base), 0
    index: dict[str, str] = {}
    with merge.reading() as tensors:
        for shard, infos in merge.base.shards.items():
            layout = _layout(infos, dtype)

            def pieces(layout: list[tuple[str, str, tuple[int, ...]]] = layout) -> Iterable[bytes]:
                nonlocal done
                for name, stored, _ in layout:
                    data = _cast(tensors.read(name), name, stored)
                    done += len(data)
                    progress(done, total)
                    yield data

            _write_safetensors(folder / shard, layout, pieces())
            index |= {info.name: shard for info in infos}
    if len(merge.base.shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))})
    copy_side_files(merge.base, folder)
    config = {key: value for key, value in merge.base.config.items() if key not in {"dtype", "torch_dtype"}}
    _write_json(folder / CONFIG, config | {"dtype": _TYPES[dtype][1]})


def merged_bytes(base: Checkpoint) -> int:
    """Size of the merged weights in 16 bits."""
    return sum(_size("F16" if info.dtype in _FLOATS else info.dtype, info.shape) for info in base.tensors.values())


def copy_side_files(base: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, template, generation config and licence of the base."""
    for file in base.side_files():
        shutil.copyfile(file, folder / file.name)


def _layout(infos: Iterable[TensorInfo], dtype: Dtype) -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, stored types and shapes; wide types first, which keeps every tensor aligned to its item size."""
    rows = [(info.name, _TYPES[dtype][0] if info.dtype in _FLOATS else info.dtype, info.shape) for info in infos]
    return sorted(rows, key=lambda row: (-ITEM_BITS[row[1]], row[0]))


def _cast(tensor: torch.Tensor, name: str, stored: str) -> bytes:
    import torch

    if tensor.is_floating_point():
        tensor = tensor.to(torch.bfloat16 if stored == "BF16" else torch.float16)
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{name} holds numbers that {stored} cannot hold; export as bf16")
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _write_safetensors(file: Path, layout: list[tuple[str, str, tuple[int, ...]]], pieces: Iterable[bytes]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in layout:
        end = offset + _size(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with file.open("xb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for piece in pieces:
            out.write(piece)


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    size = ITEM_BITS[dtype] // 8
    for extent in shape:
        size *= extent
    return size


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
