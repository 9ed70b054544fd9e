"""What workers and their parent say to each other: length-prefixed MessagePack, each message a tagged array."""

from __future__ import annotations

import asyncio
import struct
from typing import Generic, TypeVar

import msgspec

_LENGTH = struct.Struct(">I")


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages."""


class Hold(Message, frozen=True):
    """Worker: hold `adapter` (an engine name) for request `id`; times are seconds, as in `Patience`."""

    id: int
    adapter: str
    fallback_after_s: float | None
    give_up_after_s: float


class Release(Message, frozen=True):
    """Worker: request `id` has ended, or does not want to wait any more."""

    id: int


class Unload(Message, frozen=True):
    """Worker: let `adapter` leave."""

    adapter: str


class Changed(Message, frozen=True):
    """Worker: the registry has changed, and everybody should look."""


class Held(Message, frozen=True):
    """Parent: `id` may go on."""

    id: int
    was_ready: bool
    waited_s: float


class Cold(Message, frozen=True):
    """Parent: `id` goes to the base, the adapter is still cold."""

    id: int


class Refused(Message, frozen=True):
    """Parent: `id` fails with an error of `serving.errors`."""

    id: int
    error: str
    message: str
    code: str | None
    retry_after_s: float | None


class EngineView(Message, frozen=True):
    """An engine as workers see it; fields as in `Engine`, `EngineStatus` and `Transport`."""

    name: str
    base_name: str
    upstream_model: str
    cost_per_mtok: float
    tokens_per_s: float | None
    slots: int
    max_lora_rank: int
    max_context: int | None
    base_url: str
    socket_path: str | None
    headers: dict[str, str]
    retry_stale: bool
    state: str
    generation: int
    restarts: int
    detail: str
    pid: int | None


class ResidentView(Message, frozen=True):
    """One adapter on one engine; fields as in `Resident`."""

    adapter: str
    engine: str
    state: str
    in_flight: int
    loads: int
    load_s: float


class View(Message, frozen=True):
    """Parent: the fleet at this moment; sent at connection and at every change."""

    engines: list[EngineView]
    residents: list[ResidentView]


class Refresh(Message, frozen=True):
    """Parent: look at the registry now."""


FromWorker = Hold | Release | Unload | Changed
FromParent = Held | Cold | Refused | View | Refresh

Incoming = TypeVar("Incoming")
_encode = msgspec.msgpack.Encoder().encode


class Channel(Generic[Incoming]):
    """One connection. `incoming` is the union of what the other side sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, incoming: object) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = msgspec.msgpack.Decoder(incoming).decode

    def send(self, message: Message) -> None:
        """Queue `message`; a closed connection swallows it, its reader notices."""
        if self._writer.is_closing():  # uvloop would raise
            return
        data = _encode(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def receive(self) -> Incoming | None:
        """The next message; None when the other side is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            message: Incoming = self._decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return message

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()
