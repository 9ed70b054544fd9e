"""What tells one base model, and one way of rendering conversations, from another: digests that cost no full read."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from training.jobs.parts import Base

BLOCKS = 64
BLOCK_BYTES = 4096
TEMPLATE_FILE, TOKENIZER_FILE = "chat_template.jinja", "tokenizer_config.json"


def describe_base(name: str, source: str, max_lora_rank: int) -> Base:
    """The base in the folder `source`; of one that lies elsewhere only the name is known."""
    folder = Path(source)
    if not (folder / "config.json").is_file():
        return Base(name, source, max_lora_rank, weights=source, template="")
    stamp = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file()))
    weights, template = _digests(folder, stamp)
    return Base(name, source, max_lora_rank, weights, template)


@lru_cache(maxsize=64)
def _digests(folder: Path, _stamp: tuple[tuple[str, int], ...]) -> tuple[str, str]:
    """Digests of weights and template; read again when a file of the folder has changed."""
    weights = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        weights.update(_sample(file))
    return weights.hexdigest(), hashlib.sha256(_template(folder)).hexdigest()


def _sample(file: Path) -> bytes:
    """Blocks of the file at even distances, its first and its last among them."""
    size = file.stat().st_size
    steps = max(0, size - BLOCK_BYTES)
    found = bytearray()
    with file.open("rb") as stream:
        for index in range(BLOCKS):
            stream.seek(steps * index // (BLOCKS - 1))
            found += stream.read(BLOCK_BYTES)
    return bytes(found)


def _template(folder: Path) -> bytes:
    try:
        return (folder / TEMPLATE_FILE).read_bytes()
    except FileNotFoundError:
        pass
    try:
        config = json.loads((folder / TOKENIZER_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return b""
    return json.dumps(config.get("chat_template")).encode()
