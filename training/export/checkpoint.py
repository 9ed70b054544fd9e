"""The base model as it lies on disk: its config, and its tensors one at a time, so that no model has to fit memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters_registry.errors import AdapterInvalid
from adapters_registry.weights import TensorInfo, read_header
from training.export.errors import ExportError, ExportRefused

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"})


@dataclass(frozen=True)
class Checkpoint:
    """A model folder in safetensors format; `shards` are its files by name, with their tensors in stored order."""

    folder: Path
    config: dict[str, Any]
    shards: dict[str, tuple[TensorInfo, ...]]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read config and headers. Raises ExportRefused for what is no model or is quantised."""
        config = read_json(folder / CONFIG)
        if quantised := config.get("quantization_config"):
            method = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
            raise ExportRefused(
                f"the base in {folder} is quantised ({method}): weights cannot be added to it; name the folder of the "
                "16-bit base with --base"
            )
        return cls(folder, config, {name: _header(folder / name) for name in _shard_names(folder)})

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """All tensors by name."""
        return {tensor.name: tensor for shard in self.shards.values() for tensor in shard}

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold."""
        return sum(_count(tensor.shape) for tensor in self.tensors.values())

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """Open the files to read tensors."""
        from contextlib import ExitStack

        from safetensors import safe_open

        with ExitStack() as stack:
            files = {name: stack.enter_context(safe_open(self.folder / name, framework="pt")) for name in self.shards}
            yield Reader({tensor.name: files[shard] for shard, found in self.shards.items() for tensor in found})

    def side_files(self) -> list[Path]:
        """What lies beside the weights and belongs to the model: configs, tokenizer, template, licence."""
        return sorted(
            file
            for file in self.folder.iterdir()
            if file.is_file()
            and file.suffix not in WEIGHT_SUFFIXES
            and not file.name.endswith(".index.json")
            and file.name.lower() != "readme.md"
            and not file.name.startswith(".")
        )


@dataclass(frozen=True)
class Reader:
    """Open files, by the tensors in them."""

    files: dict[str, Any]

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored."""
        tensor: torch.Tensor = self.files[name].get_tensor(name)
        return tensor


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`. Raises ExportRefused."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise ExportRefused(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ExportRefused(f"{file} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ExportRefused(f"{file} is not a JSON object")
    return value


def _shard_names(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        names = sorted({str(name) for name in dict(read_json(folder / INDEX).get("weight_map", {})).values()})
        if any("/" in name or name.startswith(".") for name in names):
            raise ExportRefused(f"{folder / INDEX} names files outside its folder")
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        raise ExportRefused(f"{folder} holds no safetensors weights")
    return names


def _header(file: Path) -> tuple[TensorInfo, ...]:
    try:
        with file.open("rb") as source:
            return read_header(source).tensors
    except OSError as error:
        raise ExportError(f"cannot read {file}: {error.strerror}") from None
    except AdapterInvalid as error:
        raise ExportError(f"{file}: {error.message}") from None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
