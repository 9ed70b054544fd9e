"""A stand-in for the engine's process, as a program: answers its status on a unix socket, or fails as it is told.

Arguments: SOCKET BEHAVIOUR, where BEHAVIOUR is `serve`, `refuse` (a configuration error), `crash`, `usage`,
`ready-then-crash` or `hang` (the socket never answers again after the first status).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

from serving.engine.worker import protocol
from serving.engine.worker.__main__ import GUARD

STATUS = {"vllm": "0", "max_model_len": 99, "slots": 2, "adapters": {}, "running": {}, "running_base": 0}


async def main(socket: str, behaviour: str) -> int:
    subprocess.Popen(  # noqa: ASYNC220 - as the real one does, before anything else
        ["/bin/sh", "-c", GUARD, "guard", str(os.getpgrp()), os.path.dirname(socket)],  # noqa: PTH120
        stdin=sys.stdin.fileno(),
        start_new_session=True,
    )
    protocol.tell(protocol.PHASE + protocol.STARTING_CORE)
    if behaviour == "refuse":
        protocol.tell(protocol.ERROR + "this model cannot be served")
        return protocol.EXIT_CONFIG
    if behaviour == "usage":
        protocol.tell("worker: error: unrecognized arguments: --nonsense")
        return 2
    if behaviour == "crash":
        protocol.tell("RuntimeError: out of luck")
        return 1
    answered = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            if behaviour == "hang" and answered.is_set():
                await asyncio.sleep(3600)
            body = json.dumps(STATUS).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
            answered.set()

    await asyncio.start_unix_server(answer, socket)
    if behaviour == "ready-then-crash":
        await answered.wait()
        await asyncio.sleep(0.05)
        return 1
    await asyncio.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
