"""How a router model lies on disk: a folder of one JSON file and one safetensors file, nothing that can run code.

`router.json` holds the schema version, what each part is, and the sha256 of the arrays beside it, so that the sha256 of
that one file names the whole model. Whatever does not fit (an unknown schema, a changed byte, a part of an unknown
kind, an array of another shape) is refused with `RouterModelInvalid`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

SCHEMA = "loradock-router/2"
READABLE = ("loradock-router/1", SCHEMA)
"""the first knew no neighbours, and is otherwise the same"""
DOCUMENT, ARRAYS = "router.json", "router.safetensors"
VERSION_DIGITS = 12
MAX_BYTES = 256 << 20
"""of either file; a model of a million terms has 40 MB"""

Array = np.ndarray[Any, np.dtype[Any]]


class RouterModelInvalid(ValueError):
    """The folder holds no router model that this version can use. The message is one line."""


@dataclass(frozen=True)
class Part:
    """What one estimator consists of: `kind` names its class, `settings` is JSON, `arrays` are plain numbers."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def array(self, name: str, *shape: int, kind: str = "f") -> Array:
        """One array; `shape` has -1 where any length will do, `kind` is numpy's (`f` floats, `i` integers).

        Raises RouterModelInvalid.
        """
        found = self.arrays.get(name)
        if found is None:
            raise RouterModelInvalid(f"part '{self.kind}' lacks the array '{name}'")
        fits = found.ndim == len(shape) and all(w in (-1, n) for w, n in zip(shape, found.shape, strict=True))
        if not fits or found.dtype.kind != kind:
            raise RouterModelInvalid(f"array '{name}' of part '{self.kind}' has another shape or type")
        if kind == "f" and not np.isfinite(found).all():
            raise RouterModelInvalid(f"array '{name}' of part '{self.kind}' holds what is no number")
        return found

    def setting(self, name: str, kind: type) -> Any:
        """One setting of that type. Raises RouterModelInvalid."""
        found = self.settings.get(name)
        if not isinstance(found, kind):
            raise RouterModelInvalid(f"part '{self.kind}' lacks the {kind.__name__} '{name}'")
        return found


def version_of(parts: Mapping[str, Part]) -> str:
    """The version that these parts have once saved."""
    return _version(_encode(parts)[0])


def write(folder: Path, parts: Mapping[str, Part]) -> None:
    """Write the model to `folder`, which is made where it is missing. Raises OSError."""
    document, arrays = _encode(parts)
    folder.mkdir(parents=True, exist_ok=True)
    # the document last: a folder that was left half written is refused rather than misread
    (folder / DOCUMENT).unlink(missing_ok=True)
    (folder / ARRAYS).write_bytes(arrays)
    (folder / DOCUMENT).write_bytes(document)


def read(folder: Path) -> tuple[str, dict[str, Part]]:
    """Version and parts of the model in `folder`. Raises RouterModelInvalid, also where files are missing."""
    raw, arrays_raw = _bytes(folder / DOCUMENT), _bytes(folder / ARRAYS)
    document = _document(raw, folder)
    if hashlib.sha256(arrays_raw).hexdigest() != document["arrays_sha256"]:
        raise RouterModelInvalid(f"{folder / ARRAYS} is not the one that {DOCUMENT} was written with")
    try:
        arrays = safetensors.numpy.load(arrays_raw)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise RouterModelInvalid(f"{folder / ARRAYS} is no safetensors file: {error}") from None
    parts = {
        name: Part(
            part["kind"],
            part["settings"],
            {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")},
        )
        for name, part in document["parts"].items()
    }
    return _version(raw), parts


def _encode(parts: Mapping[str, Part]) -> tuple[bytes, bytes]:
    arrays = {
        f"{name}/{key}": np.ascontiguousarray(array)
        for name, part in sorted(parts.items())
        for key, array in sorted(part.arrays.items())
    }
    packed = safetensors.numpy.save(arrays)
    document = {
        "schema": SCHEMA,
        "arrays_sha256": hashlib.sha256(packed).hexdigest(),
        "parts": {name: {"kind": part.kind, "settings": dict(part.settings)} for name, part in sorted(parts.items())},
    }
    return json.dumps(document, sort_keys=True, indent=1).encode("ascii") + b"\n", packed


def _version(document: bytes) -> str:
    return hashlib.sha256(document).hexdigest()[:VERSION_DIGITS]


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RouterModelInvalid(f"{path} is larger than {MAX_BYTES >> 20} MB")
        return path.read_bytes()
    except OSError as error:
        raise RouterModelInvalid(f"{path}: {error.strerror or error}") from None


def _document(raw: bytes, folder: Path) -> dict[str, Any]:
    """The document, of which no more is known than that the parts have a kind and settings."""
    try:
        document: dict[str, Any] = json.loads(raw)
    except ValueError:  # also UnicodeDecodeError
        raise RouterModelInvalid(f"{folder / DOCUMENT} is no JSON") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in READABLE:
        raise RouterModelInvalid(f"{folder / DOCUMENT} has the schema {schema!r}; this version reads {READABLE}")
    parts = document.get("parts")
    if not isinstance(document.get("arrays_sha256"), str) or not isinstance(parts, dict):
        raise RouterModelInvalid(f"{folder / DOCUMENT} lacks its parts or the digest of its arrays")
    for part in parts.values():
        if not (
            isinstance(part, dict) and isinstance(part.get("kind"), str) and isinstance(part.get("settings"), dict)
        ):
            raise RouterModelInvalid(f"{folder / DOCUMENT} describes a part without kind or settings")
    return document
