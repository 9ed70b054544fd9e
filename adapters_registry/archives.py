"""Archives, read as if a stranger made them.

Members are never extracted to the path they name: the two wanted files are copied into files of ours, so no name, link
or device can reach outside. An archive that tries is refused all the same. Unpacked bytes are counted against the
bound, skipped members included, so that a small archive cannot keep a processor or a disk busy; and what the standard
library would hold in memory (a zip's directory, a tar's headers, the window of xz) is bounded, whatever the file says.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Self, cast

from adapters_registry.digest import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import SourceError
from adapters_registry.peft_config import refuse_pickle

WANTED = (CONFIG_FILE, WEIGHTS_FILE)
PICKLED = ("adapter_model.bin", "adapter_model.pt")
TAR_OPENERS: dict[str, Callable[[BinaryIO], IO[bytes]]] = {
    ".tar": lambda file: file,
    ".tar.gz": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    ".tgz": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    ".tar.xz": lambda file: cast("IO[bytes]", _Xz(file)),
    ".txz": lambda file: cast("IO[bytes]", _Xz(file)),
    ".tar.bz2": bz2.BZ2File,
}
CHUNK = 1 << 20
MAX_MEMBERS = 10_000
MAX_ZIP_DIRECTORY = 4 << 20
MAX_EXTENDED_HEADER = 1 << 16
MAX_XZ_MEMORY = 256 << 20
"""four times what the strongest preset of xz takes"""
EXTENDED_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError,
          NotImplementedError)  # fmt: skip
"""what the standard library raises for archives that are cut, garbled, encrypted or packed by an unknown method"""


def is_archive(name: str) -> bool:
    """Whether a file of that name is an archive of a kind that is read here."""
    return name.lower().endswith((".zip", *TAR_OPENERS))


def unpack(file: BinaryIO, name: str, folder: Path, max_bytes: int) -> None:
    """Copy the adapter's two files from the archive into `folder`.

    They may lie at the top or in one folder. Raises SourceError: `unsafe_archive`, `source_too_large`, or corrupt;
    AdapterInvalid (`pickle_weights`).
    """
    read = _unpack_zip if name.lower().endswith(".zip") else _unpack_tar
    try:
        read(file, name.lower(), _Chooser(folder, max_bytes))
    except BROKEN as error:
        raise SourceError(f"the archive cannot be read: {str(error)[:200]}", param="source") from error


def _unpack_zip(file: BinaryIO, name: str, chooser: _Chooser) -> None:
    with zipfile.ZipFile(cast("IO[bytes]", _BoundedReads(file))) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            regular = not stat.S_IFMT(mode) or stat.S_ISREG(mode)
            if not member.is_dir() and chooser.wants(member.filename, regular=regular):
                with archive.open(member) as content:
                    chooser.take(member.filename, content)
    chooser.finish()


def _unpack_tar(file: BinaryIO, name: str, chooser: _Chooser) -> None:
    opener = next(opener for suffix, opener in TAR_OPENERS.items() if name.endswith(suffix))
    with opener(file) as plain:
        # twice the bound leaves room for other files beside the adapter
        stream = cast("IO[bytes]", _Counted(plain, 2 * chooser.max_bytes))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedHeader) as archive:
            for member in archive:
                if not member.isdir() and chooser.wants(member.name, regular=member.isreg()):
                    content = archive.extractfile(member)
                    if content is not None:
                        chooser.take(member.name, content)
                _forget(archive)
    chooser.finish()


def _forget(archive: Any) -> None:
    """Drop what a tar file remembers of its headers, for random access that a stream does not have."""
    archive.members.clear()
    archive.pax_headers.clear()


class _Chooser:
    """Takes the wanted members, one folder's worth, and refuses hostile ones."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self.max_bytes = max_bytes
        self._left = max_bytes
        self._members = 0
        self._taken: dict[str, str] = {}
        self._pickle: str | None = None

    def wants(self, name: str, *, regular: bool) -> bool:
        self._members += 1
        path = PurePosixPath(name.replace("\\", "/"))
        if self._members > MAX_MEMBERS:
            raise SourceError(f"the archive has more than {MAX_MEMBERS} members", param="source", code="unsafe_archive")
        if path.is_absolute() or ".." in path.parts or (path.parts[:1] and path.parts[0].endswith(":")):
            raise _unsafe(f"member {name[:100]!r} names a place outside of it")
        if path.name in PICKLED:
            self._pickle = path.name
        if path.name not in WANTED:
            return False
        if not regular:
            raise _unsafe(f"member {name[:100]!r} is not a regular file")
        if path.name in self._taken:
            raise _unsafe(f"it holds {path.name} twice")
        return True

    def take(self, name: str, content: IO[bytes]) -> None:
        path = PurePosixPath(name.replace("\\", "/"))
        self._taken[path.name] = str(path.parent)
        with (self._folder / path.name).open("xb") as target:
            for chunk in _chunks(content):
                self._left -= len(chunk)
                if self._left < 0:
                    raise _too_large(self.max_bytes)
                target.write(chunk)

    def finish(self) -> None:
        if len(set(self._taken.values())) > 1:
            raise SourceError("the archive holds the config and the weights in different folders", param="source")
        if WEIGHTS_FILE not in self._taken and self._pickle is not None:
            refuse_pickle(self._pickle)


class _Counted:
    """A readable that ends with an error after `limit` bytes."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._left = limit

    def read(self, size: int = CHUNK) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._limit)
        return data


class _BoundedReads:
    """A file whose every read is bounded: `zipfile` reads a directory whole, however large the archive says it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size if 0 <= size <= MAX_ZIP_DIRECTORY else MAX_ZIP_DIRECTORY + 1)
        if len(data) > MAX_ZIP_DIRECTORY:
            raise _unsafe(f"its directory has more than {MAX_ZIP_DIRECTORY} bytes")
        return data


class _Xz:
    """A readable of what an xz file holds; unlike `lzma.LZMAFile`, it bounds the memory that the file may ask for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unread = b""
        self._stream = self._begin()

    @staticmethod
    def _begin() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)

    def read(self, size: int = CHUNK) -> bytes:
        """Up to `size` bytes, none at the end. Raises LZMAError, or EOFError where the file is cut."""
        while True:
            if self._stream.eof:
                # several streams in a row are one file, with zeros between them for padding
                self._unread = self._stream.unused_data.lstrip(b"\0") or self._file.read(CHUNK).lstrip(b"\0")
                if not self._unread:
                    return b""
                self._stream = self._begin()
            elif self._stream.needs_input and not self._unread:
                self._unread = self._file.read(CHUNK)
                if not self._unread:
                    raise EOFError("it ends in the middle")
            data, self._unread = self._stream.decompress(self._unread, size), b""
            if data:
                return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: the file is the caller's."""


class _BoundedHeader(tarfile.TarInfo):
    """Refuses extended headers that `tarfile` would read into memory whole, however large they say they are."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in EXTENDED_HEADERS and info.size > MAX_EXTENDED_HEADER:
            raise _unsafe(f"a header claims {info.size} bytes")
        return info


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK):
        yield chunk


def _unsafe(reason: str) -> SourceError:
    return SourceError(f"the archive is not safe: {reason}", param="source", code="unsafe_archive")


def _too_large(limit: int) -> SourceError:
    return SourceError(f"the archive unpacks to more than {limit} bytes", param="source", code="source_too_large")
