"""What runs in processes that register an adapter and are killed, or race."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from adapters_registry import AdapterRegistry, BaseModelSpec, open_database


def register(pipe: Connection, url: str, folder: Path, source: str, deadly: str = "") -> None:
    """Register `source` as `legal` in `folder`, saying so just before; at the step `deadly`, kill the process."""
    base = BaseModelSpec.from_folder(folder / "base", "tiny-base", ["acme/Tiny-Base"], max_lora_rank=1 << 16)
    database = open_database(url)
    registry = AdapterRegistry(database, folder / "home", bases={base.name: base})

    def progress(step: str, _done: int, _total: int | None) -> None:
        if step == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    pipe.send("ready")
    registry.register("legal", source, progress=progress)
    database.close()


def migrate(pipe: Connection, url: str) -> None:
    """Open the database as soon as the pipe says so."""
    pipe.recv()
    open_database(url).close()
