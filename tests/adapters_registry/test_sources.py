from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import os
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
import pytest

from adapters_registry import AdapterInvalid, AdapterRegistry, SourceError
from adapters_registry.archives import TAR_OPENERS
from adapters_registry.sources import label_of
from tests.adapters_registry.build import write_adapter
from tests.adapters_registry.conftest import serving

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def pack_tar(folder: Path, path: Path, inside: str = "") -> Path:
    mode = {"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz", "txz": "w:xz", "bz2": "w:bz2"}.get(path.suffix[1:], "w")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in FILES:
            archive.add(folder / name, inside + name)
    return path


def pack_zip(folder: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in FILES:
            archive.write(folder / name, inside + name)
    return path


def refused(registry: AdapterRegistry, source: str | Path, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        registry.register("legal", source, **options)
    assert registry.list_versions() == ()
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("suffix", [".zip", *TAR_OPENERS])
@pytest.mark.parametrize("inside", ["", "legal-v1/", "./"])
def test_archives(suffix: str, inside: str, folder: Path, registry: AdapterRegistry, tmp_path: Path) -> None:
    pack = pack_zip if suffix == ".zip" else pack_tar
    packed = registry.register("packed", pack(folder, tmp_path / f"a{suffix}", inside))
    assert packed.digest == registry.register("plain", folder).digest


@pytest.mark.parametrize("name", ["/etc/adapter_config.json", "../adapter_config.json", "a/../../x", "C:/x", "..\\x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_that_reach_outside(
    name: str, kind: str, folder: Path, registry: AdapterRegistry, tmp_path: Path
) -> None:
    if kind == "zip":
        path = pack_zip(folder, tmp_path / "a.zip")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, "evil")
    else:
        path = pack_tar(folder, tmp_path / "a.tar")
        with tarfile.open(path, "a") as tar:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
    assert refused(registry, path).code == "unsafe_archive"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_members_that_are_no_files(kind: bytes, folder: Path, registry: AdapterRegistry, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / FILES[1], FILES[1])
        member = tarfile.TarInfo(FILES[0])
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    assert refused(registry, tmp_path / "a.tar").code == "unsafe_archive"


def test_zip_symlinks(folder: Path, registry: AdapterRegistry, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo(FILES[0])
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert refused(registry, tmp_path / "a.zip").code == "unsafe_archive"


def test_bombs(folder: Path, registry: AdapterRegistry, tmp_path: Path) -> None:
    """8 MiB is the registry's bound here; each of these unpacks to more from a few kilobytes."""
    zeros = bytes(20 << 20)
    with zipfile.ZipFile(tmp_path / "wanted.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / FILES[0], FILES[0])
        archive.writestr(FILES[1], zeros)
    with tarfile.open(tmp_path / "beside.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("README.md")
        member.size = len(zeros)
        tar.addfile(member, io.BytesIO(zeros))
        for name in FILES:
            tar.add(folder / name, name)
    for name in ("wanted.zip", "beside.tar.gz"):
        assert (tmp_path / name).stat().st_size < 100_000
        assert refused(registry, tmp_path / name).code == "source_too_large"


def test_a_header_that_would_fill_the_memory(registry: AdapterRegistry, tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 7 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT) + bytes(7 << 20))
    assert refused(registry, tmp_path / "a.tar.gz").code == "unsafe_archive"


def peak_memory_of(work: Callable[[], object]) -> int:
    """Bytes that Python had in use at most, above what it had before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XGLTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_many_headers_are_not_kept(kind: bytes, registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    def beside(archive: tarfile.TarFile, index: int) -> None:
        """A member with a header of 60 kB; 150 of them fill 9 MB where they are kept."""
        words = f" note{index}={'x' * 60_000}\n".encode()
        body = b"x" * 60_000 if kind == tarfile.GNUTYPE_LONGNAME else f"{len(words) + 5}".encode() + words
        header = tarfile.TarInfo("header")
        header.type, header.size = kind, len(body)
        archive.fileobj.write(header.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512))  # type: ignore[union-attr]
        archive.fileobj.write(tarfile.TarInfo(f"{index}").tobuf(tarfile.USTAR_FORMAT))  # type: ignore[union-attr]

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in FILES:
            archive.add(folder / name, name)
        for index in range(150):
            beside(archive, index)
    assert peak_memory_of(lambda: registry.register("legal", tmp_path / "a.tar")) < 5 << 20


def test_a_directory_that_would_fill_the_memory(registry: AdapterRegistry, tmp_path: Path) -> None:
    """An empty archive with a comment is told to have all of it, and more, as its directory."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", bytes(6 << 20))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[-10:-6] = (5 << 20).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    assert refused(registry, tmp_path / "a.zip").code == "unsafe_archive"


def test_a_window_that_would_fill_the_memory(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    plain = pack_tar(folder, tmp_path / "a.tar").read_bytes()
    for dictionary, accepted in ((64 << 20, True), (512 << 20, False)):
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": dictionary, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}]
        (tmp_path / "a.tar.xz").write_bytes(lzma.compress(plain, filters=filters))
        if accepted:
            assert registry.register("strongest", tmp_path / "a.tar.xz").rank == 4
            registry.retire("strongest")
        else:
            assert "emory" in refused(registry, tmp_path / "a.tar.xz").message


def test_xz_of_several_streams(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    plain = pack_tar(folder, tmp_path / "a.tar").read_bytes()
    middle = len(plain) // 2
    parts = lzma.compress(plain[:middle]) + bytes(8) + lzma.compress(plain[middle:]) + bytes(4)
    (tmp_path / "a.tar.xz").write_bytes(parts)
    assert registry.register("legal", tmp_path / "a.tar.xz").rank == 4


def test_too_many_members(registry: AdapterRegistry, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index in range(10_001):
            archive.writestr(f"{index}", "")
    assert refused(registry, tmp_path / "a.zip").code == "unsafe_archive"


def test_archives_with_two_adapters(folder: Path, registry: AdapterRegistry, tmp_path: Path) -> None:
    path = pack_zip(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(folder / FILES[0], f"checkpoint-10/{FILES[0]}")
    assert "twice" in refused(registry, path).message


def test_archives_that_are_none(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    for suffix in (".zip", *TAR_OPENERS):
        (tmp_path / f"noise{suffix}").write_bytes(os.urandom(4096))
        assert "cannot be read" in refused(registry, tmp_path / f"noise{suffix}").message
        whole = (pack_zip if suffix == ".zip" else pack_tar)(folder, tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises((SourceError, AdapterInvalid)):
            registry.register("legal", tmp_path / f"cut{suffix}")
    assert registry.list_versions() == ()


def test_archives_of_pickles(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    (folder / FILES[1]).rename(folder / "adapter_model.bin")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, "adapter")
    with pytest.raises(AdapterInvalid) as caught:
        registry.register("legal", tmp_path / "a.tar")
    assert caught.value.code == "pickle_weights"


def test_links_are_followed_inside_the_folder_only(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    outside = write_adapter(tmp_path / "outside", 1)
    (folder / FILES[1]).rename(folder / "v2.safetensors")
    (folder / FILES[1]).symlink_to("v2.safetensors")
    assert registry.register("inside", folder).rank == 4
    (folder / FILES[1]).unlink()
    (folder / FILES[1]).symlink_to(outside / FILES[1])
    with pytest.raises(SourceError) as caught:
        registry.register("legal", folder)
    assert caught.value.code == "unsafe_link"


def test_a_snapshot_in_the_hub_cache(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--acme--legal"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for index, name in enumerate(FILES):
        (folder / name).rename(repo / "blobs" / f"{index}")
        (snapshot / name).symlink_to(f"../../blobs/{index}")
    assert registry.register("legal", snapshot).rank == 4


def test_pipes_do_not_hang(registry: AdapterRegistry, folder: Path) -> None:
    (folder / FILES[0]).unlink()
    os.mkfifo(folder / FILES[0])
    assert "regular" in refused(registry, folder).message


@pytest.mark.parametrize(
    "source", ["", "a\0b", "zip://x::file:///etc", "/no/such/folder", "~nobody-here/x", "x" * 5000]
)
def test_sources_that_are_none(source: str, registry: AdapterRegistry) -> None:
    assert refused(registry, source).code == "source_unavailable"


def test_plain_files_and_sizes(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    assert "neither a folder" in refused(registry, folder / FILES[1]).message
    with (folder / FILES[1]).open("ab") as file:
        file.truncate(9 << 20)
    assert refused(registry, folder).code == "source_too_large"


def test_local_access_can_be_forbidden(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    sources = [str(folder), f"file://{folder}", f"local://{folder}", "memory://x", "sftp://x/y", "reference://x", "."]
    for source in [*sources, f"FILE://{folder}", "git://x"]:
        assert refused(registry, source, allow_local=False).code == "source_not_allowed"
    assert registry.register("legal", f"file://{folder}").rank == 4


def test_an_object_store(registry: AdapterRegistry, folder: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in FILES:
        store.pipe_file(f"/bucket/legal/{name}", (folder / name).read_bytes())
    store.pipe_file("/bucket/legal.zip", pack_zip(folder, tmp_path / "a.zip").read_bytes())
    steps: list[tuple[str, int, int | None]] = []
    first = registry.register("legal", "memory://bucket/legal", progress=lambda *step: steps.append(step))
    assert registry.register("legal", "memory://bucket/legal.zip") == first
    assert first.source == "memory://bucket/legal"
    assert [step for step, _, _ in steps if step == "fetching"]
    store.pipe_file("/bucket/pickled/adapter_config.json", b"{}")
    store.pipe_file("/bucket/pickled/adapter_model.bin", b"{}")
    with pytest.raises(AdapterInvalid) as caught:
        registry.register("legal", "memory://bucket/pickled")
    assert caught.value.code == "pickle_weights"
    with pytest.raises(AdapterInvalid) as caught:
        registry.register("legal", "memory://bucket/nothing")
    assert caught.value.code == "config_missing"
    store.pipe_file("/bucket/large/adapter_config.json", (folder / FILES[0]).read_bytes())
    store.pipe_file("/bucket/large/adapter_model.safetensors", bytes(9 << 20))
    with pytest.raises(SourceError) as refusal:
        registry.register("legal", "memory://bucket/large")
    assert refusal.value.code == "source_too_large"
    store.rm("/bucket", recursive=True)


def test_a_web_server(registry: AdapterRegistry, folder: Path, served: str, tmp_path: Path) -> None:
    """Python's own, which serves no ranges."""
    pack_tar(folder, tmp_path / "a.tar.gz")
    first = registry.register("legal", f"{served}/adapter/", allow_local=False)
    secret = served.replace("://", "://user:word@")
    second = registry.register("legal", f"{secret}/a.tar.gz?token=secret", allow_local=False)
    assert second == first
    with pytest.raises(SourceError) as caught:
        registry.register("legal", f"{served}/gone.zip?token=secret")
    assert "gone.zip does not exist" in caught.value.message
    assert "secret" not in caught.value.message
    with pytest.raises(SourceError) as caught:
        registry.register("legal", "http://127.0.0.1:9/a.zip?token=secret")
    assert "secret" not in caught.value.message


class Hesitant(BaseHTTPRequestHandler):
    """Sends an archive in ten pieces, with a pause before each."""

    content: bytes
    pause_s: float

    def log_message(self, *_args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        step = -(-len(self.content) // 10)
        with contextlib.suppress(OSError):  # who waited too long has left
            for begin in range(0, len(self.content), step):
                time.sleep(self.pause_s)
                self.wfile.write(self.content[begin : begin + step])


def test_a_download_may_last_but_not_fall_silent(
    registry: AdapterRegistry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pack_zip(folder, tmp_path / "a.zip").read_bytes()
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    with serving(type("Slow", (Hesitant,), {"content": content, "pause_s": 0.05})) as url:
        assert registry.register("slow", f"{url}/a.zip").rank == 4
        registry.retire("slow")
    monkeypatch.setattr("adapters_registry.remote.WEB_SILENCE_S", 0.2)
    with serving(type("Silent", (Hesitant,), {"content": content, "pause_s": 2.0})) as url:
        began = time.monotonic()
        assert "cannot fetch" in refused(registry, f"{url}/a.zip").message
        assert time.monotonic() - began < 1.5


def test_labels_hold_no_secrets() -> None:
    assert label_of("https://me:pw@host:1/a.zip?sig=x#y") == "https://host:1/a.zip"
    assert label_of("s3://bucket/a b/c") == "s3://bucket/a b/c"


def test_a_driver_that_is_not_there(registry: AdapterRegistry) -> None:
    assert "cannot fetch" in refused(registry, "nonsense://x").message
    assert "needs a driver" in refused(registry, "s3://bucket/adapter").message


class Hub(BaseHTTPRequestHandler):
    """The three routes of the Hub that reading one repository takes."""

    folder: Path

    def log_message(self, *_args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length) or b"{}")
        found = [path for path in body.get("paths", []) if (self.folder / path).is_file()]
        if "acme/legal" not in self.path:
            return self._send(404, b"{}", {"x-error-code": "RepoNotFound"})
        return self._json([self._entry(path) for path in found])

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "acme/legal" not in path:
            return self._send(404, b"{}", {"x-error-code": "RepoNotFound"})
        if "/tree/" in path:
            return self._json([self._entry(name) for name in FILES])
        if "/resolve/" in path:
            file = self.folder / path.rpartition("/")[2]
            if not file.is_file():
                return self._send(404, b"", {"x-error-code": "EntryNotFound"})
            return self._file(file)
        siblings = [{"rfilename": name} for name in FILES]
        return self._json({"id": "acme/legal", "sha": "0" * 40, "siblings": siblings, "private": False})

    def _entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "1" * 40}

    def _file(self, file: Path) -> None:
        data, headers = file.read_bytes(), {"x-repo-commit": "0" * 40, "etag": '"1"'}
        wanted = self.headers.get("range")
        if wanted:
            begin, end = wanted.removeprefix("bytes=").split("-")
            data = data[int(begin) : int(end or len(data)) + 1]
        self._send(206 if wanted else 200, data, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(type("FolderHub", (Hub,), {"folder": folder})) as endpoint:
        # HF_ENDPOINT would do the same, but is read once at import
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": endpoint})
        yield endpoint


@pytest.mark.parametrize("source", ["hub:acme/legal", "hub:acme/legal@main", "hf://acme/legal", "acme/legal"])
def test_the_hub(source: str, hub: str, registry: AdapterRegistry, folder: Path) -> None:
    version = registry.register("legal", source, allow_local=False)
    assert version.digest == registry.register("local", folder).digest
    assert version.source.startswith("hf://acme/legal")


def test_the_hub_without_that_repository(hub: str, registry: AdapterRegistry) -> None:
    with pytest.raises((SourceError, AdapterInvalid)) as caught:
        registry.register("legal", "acme/other")
    assert "acme/other" in caught.value.message
    assert registry.list_versions() == ()
