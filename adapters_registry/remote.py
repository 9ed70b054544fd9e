"""Fetching by fsspec: object stores, web servers, the Hub. Imported drivers are those that the URL's scheme names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters_registry.digest import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import AdapterInvalid, RegistryError, SourceError
from adapters_registry.peft_config import MAX_CONFIG_BYTES

if TYPE_CHECKING:
    from adapters_registry.sources import Progress

CHUNK = 1 << 20
READ_AHEAD = 16 << 20
WEB_SILENCE_S = 60.0
"""longest wait for the next bytes of a web server"""


def fetch_archive(url: str, label: str, target: Path, max_bytes: int, progress: Progress) -> None:
    """Download one file. Raises SourceError."""
    with _driver(url, label) as (files, path):
        _download(files, path, target, max_bytes, progress)


def fetch_folder(url: str, label: str, folder: Path, max_bytes: int, progress: Progress) -> None:
    """Download the adapter's two files from a remote folder. Missing files are left to the caller to tell.

    Raises SourceError, or AdapterInvalid (`pickle_weights`) when the weights are there as a pickle only.
    """
    with _driver(url.rstrip("/"), label) as (files, path):
        # asked for by name: web servers and some stores cannot list
        if not _try_download(files, f"{path}/{CONFIG_FILE}", folder / CONFIG_FILE, MAX_CONFIG_BYTES, progress):
            raise AdapterInvalid(f"{label} holds no {CONFIG_FILE}", param="source", code="config_missing")
        if not _try_download(files, f"{path}/{WEIGHTS_FILE}", folder / WEIGHTS_FILE, max_bytes, progress):
            for pickle in ("adapter_model.bin", "adapter_model.pt"):
                if files.exists(f"{path}/{pickle}"):
                    (folder / pickle).touch()  # its name alone gives the caller the reason


@contextmanager
def _driver(url: str, label: str) -> Iterator[tuple[Any, str]]:
    """The file system of `url` and the path within it; whatever a driver raises becomes one line about the source."""
    import fsspec  # type: ignore[import-untyped]  # imported late: only remote sources need it

    try:
        yield fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **_web_options(url))
    except RegistryError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{label} does not exist", param="source") from error
    except ImportError as error:
        raise SourceError(f"{label} needs a driver that is not installed: {_line(error)}", param="source") from error
    except Exception as error:  # drivers raise types of SDKs that may not be installed, so they cannot be named
        raise SourceError(f"cannot fetch {label}: {_line(error)}", param="source") from error


def _web_options(url: str) -> dict[str, Any]:
    """Options of the web driver, whose client would otherwise give up after five minutes, in the middle of a download.

    What the user's own configuration of fsspec says about that client stands.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in ("http", "https"):
        return {}
    import fsspec
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=30.0, sock_read=WEB_SILENCE_S)
    configured = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
    return {"client_kwargs": {"timeout": timeout, **configured}}


def _try_download(files: Any, path: str, target: Path, max_bytes: int, progress: Progress) -> bool:
    try:
        _download(files, path, target, max_bytes, progress)
    except FileNotFoundError:
        return False
    return True


def _download(files: Any, path: str, target: Path, max_bytes: int, progress: Progress) -> None:
    size = files.info(path).get("size")
    if size is not None and size > max_bytes:
        raise _too_large(size, max_bytes)
    done = 0
    # web servers need not serve ranges: block size 0 asks the driver for one stream
    web = "http" in files.protocol or "https" in files.protocol
    options = {"block_size": 0} if web else {"block_size": READ_AHEAD, "cache_type": "readahead"}
    with files.open(path, "rb", **options) as source, target.open("xb") as copy:
        while chunk := source.read(CHUNK):
            done += len(chunk)
            if done > max_bytes:
                raise _too_large(done, max_bytes)
            copy.write(chunk)
            progress(done, size)


def _too_large(size: int, max_bytes: int) -> SourceError:
    return SourceError(
        f"the source has {size} bytes or more, above the {max_bytes} allowed", param="source", code="source_too_large"
    )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # a URL in the driver's message may carry the query that holds the secret
    return " ".join(word.partition("?")[0] for word in text.split(" "))[:200]
