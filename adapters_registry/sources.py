"""Where adapters come from: a folder, an archive, a Hub repository, or any fsspec URL of a folder or an archive.

Only `adapter_config.json` and `adapter_model.safetensors` are ever taken; nothing else is read, copied or unpacked.

    /data/legal, ./legal.tar.gz          local; refused to callers without local access
    hub:org/name[@revision], hf://...    Hub repository; plain org/name too, where no such folder exists
    s3://..., https://.../a.zip, ...     fsspec, with the driver installed
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit, urlunsplit

from adapters_registry.archives import is_archive, unpack
from adapters_registry.digest import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import AdapterInvalid, SourceError
from adapters_registry.peft_config import MAX_CONFIG_BYTES, refuse_pickle
from adapters_registry.remote import fetch_archive, fetch_folder

DEFAULT_MAX_BYTES = 4 << 30
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,128})?")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
REMOTE_SCHEMES = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oci"})
"""what callers without local access may name; other fsspec drivers can reach this machine's files or network"""

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The two files of an adapter, readable on this machine. `label` tells the source without its secrets."""

    config: Path
    weights: Path
    label: str

    def read_config(self) -> bytes:
        """The config's bytes, cut one byte past the allowed size."""
        with open_regular(self.config) as file:
            return file.read(MAX_CONFIG_BYTES + 1)


def fetch(source: str | Path, scratch: Path, *, max_bytes: int, allow_local: bool, progress: Progress) -> SourceFiles:
    """Make the adapter's files readable, in place for a local folder, else as copies in `scratch`.

    `progress` gets bytes fetched, and in all where known. Raises SourceError (codes `source_unavailable`,
    `source_not_allowed`, `source_too_large`, `unsafe_archive`), AdapterInvalid (`config_missing`, `weights_missing`,
    `pickle_weights`).
    """
    text = str(source)
    if not text or "\0" in text or "::" in text:
        raise SourceError(f"{text[:200]!r} is not a source", param="source")
    if text.startswith("hub:"):
        text = f"hf://{text.removeprefix('hub:').lstrip('/')}"
    scheme, found, rest = text.partition("://")
    if found and scheme.lower() in ("file", "local"):
        text, found = unquote(rest), ""
    if found:
        return _fetch_remote(text, scratch, max_bytes, allow_local, progress)
    path = _local_path(text)
    if HUB_NAME.fullmatch(text) and not (allow_local and path.exists()):
        return _fetch_remote(f"hf://{text}", scratch, max_bytes, allow_local, progress)
    if not allow_local:
        raise SourceError("local paths are not allowed here", param="source", code="source_not_allowed")
    return _from_path(path, scratch, str(path.absolute()), max_bytes)


def _local_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SourceError(f"{text[:200]!r} names no home folder", param="source") from error


def label_of(url: str) -> str:
    """`url` without user, password, query and fragment, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def open_regular(path: Path) -> BinaryIO:
    """Open a plain file for reading; a device, a pipe or a link put in its place raises SourceError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot read {path.name}: {error.strerror}", param="source") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path.name} is not a regular file", param="source")
    return os.fdopen(descriptor, "rb")


def _fetch_remote(url: str, scratch: Path, max_bytes: int, allow_local: bool, progress: Progress) -> SourceFiles:
    scheme = url.partition("://")[0].lower()
    if not allow_local and scheme not in REMOTE_SCHEMES:
        raise SourceError(f"sources by {scheme[:40]!r} are not allowed here", param="source", code="source_not_allowed")
    # the Hub writes revisions as name@revision, which is no user name
    label = url if scheme == "hf" else label_of(url)
    if is_archive(urlsplit(url).path):
        archive = scratch / "archive"
        fetch_archive(url, label, archive, max_bytes, progress)
        return _from_archive(archive, urlsplit(url).path, scratch, label, max_bytes)
    fetch_folder(url, label, scratch, max_bytes, progress)
    return _from_folder(scratch, label, max_bytes)


def _from_path(path: Path, scratch: Path, label: str, max_bytes: int) -> SourceFiles:
    try:
        if path.is_dir():
            return _from_folder(path, label, max_bytes)
        if not path.exists():
            raise SourceError(f"{label} does not exist", param="source")
    except OSError as error:
        raise SourceError(f"cannot read {label[:300]}: {error.strerror}", param="source") from error
    if path.suffix in PICKLES:
        refuse_pickle(path.name)
    if not is_archive(path.name):
        raise SourceError(f"{label} is neither a folder nor a .zip or .tar archive", param="source")
    return _from_archive(path, path.name, scratch, label, max_bytes)


def _from_archive(archive: Path, name: str, scratch: Path, label: str, max_bytes: int) -> SourceFiles:
    folder = scratch / "unpacked"
    folder.mkdir()
    with open_regular(archive.resolve()) as file:
        unpack(file, name, folder, max_bytes)
    return _from_folder(folder, label, max_bytes)


def _from_folder(folder: Path, label: str, max_bytes: int) -> SourceFiles:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise SourceError(f"cannot read {label}: {error.strerror}", param="source") from error
    if CONFIG_FILE not in names:
        raise AdapterInvalid(f"{label} holds no {CONFIG_FILE}", param="source", code="config_missing")
    if WEIGHTS_FILE not in names:
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        if pickles:
            refuse_pickle(pickles[0])
        raise AdapterInvalid(f"{label} holds no {WEIGHTS_FILE}", param="source", code="weights_missing")
    files = SourceFiles(_inside(folder, CONFIG_FILE), _inside(folder, WEIGHTS_FILE), label)
    size = files.config.stat().st_size + files.weights.stat().st_size
    if size > max_bytes:
        raise SourceError(
            f"the adapter has {size} bytes, more than the {max_bytes} allowed", param="source", code="source_too_large"
        )
    return files


def _inside(folder: Path, name: str) -> Path:
    """The file itself, with links followed only within the folder, or to the blobs of the Hub cache it belongs to."""
    try:
        real, root = (folder / name).resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{name} is a link that leads nowhere", param="source") from error
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else None
    if real.is_relative_to(root) or (blobs is not None and real.is_relative_to(blobs)):
        return real
    raise SourceError(f"{name} is a link to a file outside of the source folder", param="source", code="unsafe_link")
