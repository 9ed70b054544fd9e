import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.engine.worker.prepared import (
    ABANDONED_S,
    BLOCK,
    FORGOTTEN_S,
    HEAD_ALIGNMENT,
    MAGIC,
    Damaged,
    Head,
    PreparedFolder,
    sweep,
)

SIZE = BLOCK + 1000


@pytest.fixture
def readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def row_of(digest: str, size: int = SIZE) -> tuple[Head, bytearray]:
    return Head(digest, 8, (0, 2), size), bytearray(os.urandom(size))


def read(folder: PreparedFolder, digest: str, readers: ThreadPoolExecutor) -> bytearray:
    file = folder.open(digest)
    assert file is not None
    row = bytearray(file.head.size)
    file.read_into(memoryview(row), readers)
    return row


def test_what_was_written_is_read(tmp_path: Path, readers: ThreadPoolExecutor) -> None:
    folder = PreparedFolder(tmp_path, 1 << 30)
    head, row = row_of("d1")
    assert folder.write(head, memoryview(row))
    file = folder.open("d1")
    assert file is not None
    assert (file.head.rank, file.head.present, file.head.size) == (8, (0, 2), SIZE)
    assert read(folder, "d1", readers) == row
    assert folder.open("d2") is None


@pytest.mark.parametrize("where", [3, 40, HEAD_ALIGNMENT + 5, HEAD_ALIGNMENT + BLOCK + 7])
def test_one_wrong_byte_anywhere_is_noticed(tmp_path: Path, readers: ThreadPoolExecutor, where: int) -> None:
    folder = PreparedFolder(tmp_path, 1 << 30)
    head, row = row_of("d1")
    folder.write(head, memoryview(row))
    with folder.path_of("d1").open("r+b") as file:
        file.seek(where)
        byte = file.read(1)
        file.seek(where)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Damaged):
        read(folder, "d1", readers)


@pytest.mark.parametrize("length", [0, 10, HEAD_ALIGNMENT, HEAD_ALIGNMENT + 500])
def test_a_file_that_was_cut_is_noticed(tmp_path: Path, readers: ThreadPoolExecutor, length: int) -> None:
    folder = PreparedFolder(tmp_path, 1 << 30)
    head, row = row_of("d1")
    folder.write(head, memoryview(row))
    os.truncate(folder.path_of("d1"), length)
    with pytest.raises(Damaged):
        read(folder, "d1", readers)


def test_the_folder_keeps_to_its_bytes_and_the_least_recently_used_leaves(tmp_path: Path) -> None:
    each = HEAD_ALIGNMENT + 1000
    folder = PreparedFolder(tmp_path, 2 * each)
    for digest in ("d1", "d2"):
        folder.write(*_small(digest))
        time.sleep(0.01)
    assert folder.open("d1") is not None
    folder.write(*_small("d3"))
    assert (folder.used, folder.count, folder.evictions) == (2 * each, 2, 1)
    assert folder.open("d2") is None
    assert folder.open("d1") is not None


def test_what_is_larger_than_the_folder_is_not_kept(tmp_path: Path) -> None:
    folder = PreparedFolder(tmp_path, 1000)
    assert not folder.write(*_small("d1"))
    assert list(tmp_path.iterdir()) == []


def test_a_head_of_another_kind_is_damage(tmp_path: Path) -> None:
    folder = PreparedFolder(tmp_path, 1 << 30)
    text = json.dumps({"digest": "d1", "size": 0}).encode()
    start = MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text
    folder.path_of("d1").write_bytes(start.ljust(HEAD_ALIGNMENT, b"\0"))
    with pytest.raises(Damaged, match="another kind"):
        folder.open("d1")


def test_what_cannot_be_removed_is_left(tmp_path: Path) -> None:
    folder = PreparedFolder(tmp_path, 1 << 30)
    folder.path_of("d1").mkdir()
    with pytest.raises(Damaged):
        folder.open("d1")
    folder.remove("d1")


def test_what_nobody_will_read_is_swept_away(tmp_path: Path) -> None:
    kept, gone = set(), set()
    for name, age, stays in (
        ("mine/used.row", 2 * FORGOTTEN_S, True),
        ("other/used.row", FORGOTTEN_S / 2, True),
        ("other/forgotten.row", 2 * FORGOTTEN_S, False),
        ("mine/busy.7.new", ABANDONED_S / 2, True),
        ("mine/killed.8.new", 2 * ABANDONED_S, False),
        ("other/not-ours.txt", 2 * FORGOTTEN_S, True),
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
        (kept if stays else gone).add(file)
    assert sweep(tmp_path, keep="mine") == len(gone)
    assert set(tmp_path.glob("*/*")) == kept


def _small(digest: str) -> tuple[Head, memoryview]:
    head, row = row_of(digest, 1000)
    return head, memoryview(row)
