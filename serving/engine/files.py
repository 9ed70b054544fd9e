"""Reading an adapter's files before an engine does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from adapters_registry.model import AdapterVersion
from serving.errors import AdapterLoadFailed

READ_BYTES = 1 << 20


async def read_files(adapter: AdapterVersion) -> None:
    """Read the files off the event loop, so that an engine finds them in the page cache, or not at all here.

    Raises AdapterLoadFailed.
    """
    try:
        await asyncio.to_thread(_read_through, adapter.path)
    except OSError as error:
        raise AdapterLoadFailed(f"adapter {adapter.engine_name} cannot be read: {error.strerror}") from error


def _read_through(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            while stream.read(READ_BYTES):
                pass
