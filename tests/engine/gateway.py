"""A gateway reduced to its engine, to be killed: prints the engine's process id once ready, then waits for ever."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.engine.conftest import START_TIMEOUT_S, make_engine


async def main(home: Path) -> None:
    engine = make_engine(home)
    await engine.start()
    await engine.wait_ready(START_TIMEOUT_S)
    sys.stdout.write(f"{engine.status.pid}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
