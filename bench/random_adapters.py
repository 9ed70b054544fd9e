"""Any number of random adapters in 16 bits for any Qwen2 or Llama shape, fast enough to make hundreds of them."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors import safe_open

from adapters_registry.model import AdapterVersion, State
from configs.embedded import BASE_NAME
from training.demo.variants import CONFIG, WEIGHTS, make_random

AGENT = "bench"
STEP = 7919
"""values by which each adapter's row is turned against the one before; prime, so that no two are alike"""


def make_adapters(base: Path, folder: Path, count: int, rank: int, *, first: int = 0) -> list[AdapterVersion]:
    """Write `count` adapters of `rank` on all linear layers of the model in `base`, numbered from `first`.

    Each lies in a folder that is called as engines call it, where vLLM's own resolver finds it too.
    """
    with tempfile.TemporaryDirectory() as temporary:
        template = make_random(base, Path(temporary) / "template", rank, 0)
        head, values = _template(template / WEIGHTS)
        # vLLM's resolver compares this with the folder that it serves.
        about = json.loads((template / CONFIG).read_text(encoding="utf-8")) | {"base_model_name_or_path": str(base)}
        config = json.dumps(about)
        adapters = []
        for number in range(first, first + count):
            name = f"r{rank}-{number:04}"
            digest = hashlib.sha256(name.encode()).hexdigest()
            place = folder / f"{name}@{digest[:12]}"
            place.mkdir(parents=True)
            (place / CONFIG).write_text(config, encoding="utf-8")
            with (place / WEIGHTS).open("wb") as file:
                file.write(head)
                file.write(np.roll(values, number * STEP).data)
            adapters.append(_version(name, digest, rank, place))
    return adapters


def _template(weights: Path) -> tuple[bytes, np.ndarray]:
    """The head of a safetensors file with the same tensors in bfloat16, and their values one after the other."""
    head, parts, end = {}, [], 0
    with safe_open(weights, framework="numpy") as file:
        for name in sorted(file.keys()):
            values = file.get_tensor(name)
            head[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [end, end + 2 * values.size]}
            end += 2 * values.size
            # the upper half of a float32 is a bfloat16
            parts.append((np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16).ravel())
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, np.concatenate(parts)


def _version(name: str, digest: str, rank: int, place: Path) -> AdapterVersion:
    return AdapterVersion(
        name=name,
        digest=digest,
        agent=AGENT,
        base=BASE_NAME,
        rank=rank,
        path=place,
        size_bytes=(place / WEIGHTS).stat().st_size,
        state=State.VALIDATED,
        created_at=datetime.now(UTC),
        source="random",
    )
