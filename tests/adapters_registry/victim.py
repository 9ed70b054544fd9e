"""A process that registers an adapter and is killed, or races: `victim.py URL ROOT BASE SOURCE NAME STEP`.

STEP is a step of `register` at which it kills itself, or `run` to finish.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from adapters_registry import AdapterRegistry, BaseModelSpec, open_database


def main() -> None:
    url, root, base_folder, source, name, deadly = sys.argv[1:]
    base = BaseModelSpec.from_folder(Path(base_folder), "tiny-base", ["acme/Tiny-Base"], max_lora_rank=1 << 16)
    registry = AdapterRegistry(open_database(url), Path(root), bases={base.name: base})

    def progress(step: str, _done: int, _total: int | None) -> None:
        if step == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    print("ready", flush=True)  # noqa: T201 - the parent waits for it
    registry.register(name, source, progress=progress)


if __name__ == "__main__":
    main()
