import asyncio
from pathlib import Path

import uvloop

from serving.control.wire import Channel, FromParent, Release


def test_what_is_sent_to_a_side_that_has_gone_is_swallowed_on_the_servers_loop(tmp_path: Path) -> None:
    async def talk() -> None:
        accepted: asyncio.Queue[Channel[FromParent]] = asyncio.Queue()
        server = await asyncio.start_unix_server(
            lambda reader, writer: accepted.put_nowait(Channel(reader, writer, FromParent)), tmp_path / "socket"
        )
        _, writer = await asyncio.open_unix_connection(tmp_path / "socket")
        channel = await accepted.get()
        writer.close()
        await writer.wait_closed()
        assert await channel.receive() is None
        for _ in range(3):
            channel.send(Release(1))
            await asyncio.sleep(0.01)
        channel.close()
        channel.send(Release(2))
        server.close()

    uvloop.run(talk())
