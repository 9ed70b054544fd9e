import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from serving.engine.worker.arena import Arena
from serving.engine.worker.prepared import Head, PreparedFolder
from serving.engine.worker.slot_bank import SlotBank
from serving.engine.worker.staging import SLICE, Adapter, Progress, Stager, Staging, slices
from tests.serving.engine.worker.bank import LAYOUT, Bank
from tests.serving.waiting import until

ROW = LAYOUT.parts([0, 1], 4)[1]
Make = Callable[..., Adapter]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def adapter(number: int, rank: int = 4) -> Adapter:
        folder = tmp_path / f"adapter-{number}"
        folder.mkdir()
        (folder / "rank").write_text(str(rank))
        return Adapter(f"a{number}", str(folder), f"digest{number}")

    return adapter


class Tiers:
    def __init__(self, folder: Path, rows: int, slots: int = 2, loads: int = 1) -> None:
        self.bank = Bank(slots)
        self.arena = Arena(rows * ROW, pinned=False)
        self.folder = PreparedFolder(folder / "prepared", 1 << 20)
        self.stager = Stager(cast("SlotBank", self.bank), self.arena, self.folder, loads=loads)

    async def stage(self, adapter: Adapter, slot: int = 0) -> Staging:
        staging = Staging(adapter, slot, None)
        self.stager.begin(staging)
        await until(lambda: staging.progress is not Progress.STAGING)
        return staging


async def test_a_slot_holds_the_adapter_and_nothing_of_the_one_before(tmp_path: Path, make: Make) -> None:
    tiers = Tiers(tmp_path, rows=2)
    for adapter in (make(1, rank=4), make(2, rank=1), make(3, rank=2)):
        staging = await tiers.stage(adapter)
        assert (staging.progress, staging.reason) == (Progress.FILLED, "")
        assert tiers.bank.holds(0, Path(adapter.path))
    assert torch.all(tiers.bank.tensors[0][1] == 9.0), "another slot was touched"


async def test_an_adapter_is_read_once_prepared_once_and_then_comes_from_memory(tmp_path: Path, make: Make) -> None:
    tiers, adapter = Tiers(tmp_path, rows=2), make(1)
    for slot in (0, 1, 0):
        assert (await tiers.stage(adapter, slot)).progress is Progress.FILLED
    assert tiers.bank.packs == 1
    again = Tiers(tmp_path, rows=2)  # a new start of the engine
    await again.stage(adapter)
    assert again.bank.packs == 0
    assert again.bank.holds(0, Path(adapter.path))
    figures = tiers.stager.tiers()
    assert (figures["host"]["hits"], figures["host"]["misses"], figures["disk"]["prepared"]) == (2, 1, 1)
    assert figures["slots"]["filled"] == 3


async def test_host_memory_keeps_to_its_bytes_and_the_least_recently_used_leaves(tmp_path: Path, make: Make) -> None:
    tiers, adapters = Tiers(tmp_path, rows=2), [make(number) for number in range(3)]
    for adapter in (adapters[0], adapters[1], adapters[0], adapters[2]):
        await tiers.stage(adapter)
    assert tiers.arena.used == 2 * ROW
    assert tiers.arena.evictions == 1
    row = tiers.arena.find(adapters[0].digest)
    assert row is not None
    assert tiers.arena.find(adapters[1].digest) is None


async def test_an_adapter_that_host_memory_cannot_hold_is_staged_all_the_same(tmp_path: Path, make: Make) -> None:
    tiers, adapter = Tiers(tmp_path, rows=0), make(1)
    for _ in range(2):
        await tiers.stage(adapter)
        assert tiers.bank.holds(0, Path(adapter.path))
    assert tiers.arena.used == 0


@pytest.mark.parametrize("harm", ["vanished", "cut", "flipped"])
async def test_a_prepared_file_that_was_harmed_is_made_again(tmp_path: Path, make: Make, harm: str) -> None:
    adapter = make(1)
    await Tiers(tmp_path, rows=2).stage(adapter)
    tiers = Tiers(tmp_path, rows=2)
    file = tiers.folder.path_of(adapter.digest)
    content = file.read_bytes()
    if harm == "vanished":
        file.unlink()
    else:
        file.write_bytes(
            content[:-9] if harm == "cut" else content[:-ROW] + bytes([content[-ROW] ^ 1]) + content[1 - ROW :]
        )
    assert (await tiers.stage(adapter)).progress is Progress.FILLED
    assert tiers.bank.packs == 1
    assert tiers.bank.holds(0, Path(adapter.path))
    assert file.read_bytes() == content


async def test_an_adapter_that_cannot_be_read_fails_alone(tmp_path: Path, make: Make) -> None:
    tiers, bad, good = Tiers(tmp_path, rows=1), make(1), make(2)
    (Path(bad.path) / "rank").write_text("not a number")
    staging = await tiers.stage(bad)
    assert staging.progress is Progress.FAILED
    assert "not a number" in staging.reason
    assert (await tiers.stage(good)).progress is Progress.FILLED
    assert tiers.arena.used == ROW


async def test_a_full_disk_only_costs_the_prepared_file(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers, adapter = Tiers(tmp_path, rows=1), make(1)

    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiers.folder, "write", full)
    assert (await tiers.stage(adapter)).progress is Progress.FILLED
    assert tiers.bank.holds(0, Path(adapter.path))


def test_prefetching_prepares_and_evicts_only_if_it_is_told(tmp_path: Path, make: Make) -> None:
    tiers, adapters = Tiers(tmp_path, rows=1), [make(number) for number in range(3)]
    in_memory = []
    for number, keep in ((0, False), (1, False), (2, True), (0, False)):
        tiers.stager.prefetch(adapters[number], keep=keep).result(5)
        in_memory.append([adapter.name for adapter in adapters if adapter.digest in tiers.arena])
    assert in_memory == [["a0"], ["a0"], ["a2"], ["a2"]]
    assert tiers.bank.packs == tiers.folder.count == 3
    tiers.stager.prefetch(Adapter("none", str(tmp_path / "none"), "none"), keep=True).result(5)


def test_after_a_start_prepared_adapters_fill_host_memory_and_leave_first(tmp_path: Path, make: Make) -> None:
    adapters = [make(number) for number in range(3)]
    before = Tiers(tmp_path, rows=0)
    for adapter in adapters:
        before.stager.prefetch(adapter, keep=False).result(5)
    tiers = Tiers(tmp_path, rows=2)
    tiers.stager.prefetch(adapters[0], keep=True).result(5)
    for adapter in (adapters[1], adapters[2], adapters[1]):
        tiers.stager.prefetch(adapter, keep=False).result(5)
    assert adapters[1].digest in tiers.arena
    tiers.stager.prefetch(adapters[2], keep=True).result(5)
    assert [adapter.digest in tiers.arena for adapter in adapters] == [True, False, True]
    assert tiers.bank.packs == 0


async def test_memory_that_a_copy_reads_is_given_to_no_other_adapter(tmp_path: Path, make: Make) -> None:
    tiers, one, two = Tiers(tmp_path, rows=2), make(1), make(2, rank=2)
    tiers.folder.capacity = 0
    staging = Staging(one, 0, None)
    with tiers.stager._copying:  # another adapter is being copied
        tiers.stager.begin(staging)
        await until(lambda: one.digest in tiers.arena)
        tiers.stager.prefetch(one, keep=False).result(5)
        tiers.stager.prefetch(two, keep=True).result(5)
    await until(lambda: staging.progress is Progress.FILLED)
    assert tiers.bank.holds(0, Path(one.path))
    assert tiers.bank.packs == 2
    row = tiers.arena.take(ROW)
    with pytest.raises(RuntimeError, match="kept already"):
        tiers.arena.keep(two.digest, row)


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_what_was_prepared_badly_is_prepared_again_after_a_start(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    adapter = make(1)
    Tiers(tmp_path, rows=0).stager.prefetch(adapter, keep=False).result(5)
    tiers = Tiers(tmp_path, rows=1)
    file = tiers.folder.path_of(adapter.digest)
    if harm == "damaged":
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    else:
        opening = tiers.folder.open
        monkeypatch.setattr(tiers.folder, "open", lambda digest: (opening(digest), file.unlink())[0])
    tiers.stager.prefetch(adapter, keep=False).result(5)
    assert tiers.bank.packs == 1
    assert adapter.digest in tiers.arena
    assert file.exists()
    assert tiers.stager.tiers()["disk"]["damaged"] == (harm == "damaged")


async def test_an_adapter_does_not_wait_for_one_that_takes_long(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers, slow, quick = Tiers(tmp_path, rows=2, loads=2), make(1), make(2)
    go_on, pack = threading.Event(), tiers.bank.pack
    monkeypatch.setattr(
        tiers.bank, "pack", lambda name, path: (name != slow.name or go_on.wait(5)) and pack(name, path)
    )
    staging = Staging(slow, 1, None)
    tiers.stager.begin(staging)
    assert (await tiers.stage(quick, 0)).progress is Progress.FILLED
    assert staging.progress is Progress.STAGING
    go_on.set()
    await until(lambda: staging.progress is Progress.FILLED)
    assert tiers.bank.holds(0, Path(quick.path))
    assert tiers.bank.holds(1, Path(slow.path))


def test_threads_that_want_the_same_adapter_read_it_once(tmp_path: Path, make: Make) -> None:
    tiers, adapter = Tiers(tmp_path, rows=1), make(1)
    rows: list[object] = []
    threads = [
        threading.Thread(target=lambda: rows.append(tiers.stager._bring(adapter)))  # as both of its threads do
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tiers.bank.packs == 1
    assert len({id(row) for row in rows}) == 1


def test_a_row_in_use_is_not_given_away() -> None:
    arena = Arena(3 * 256, pinned=False)
    rows = []
    for number in range(3):
        row = arena.take(256)
        arena.keep(str(number), row)
        rows.append(row)
    arena.release(rows[1])
    assert arena.take(256).offset == 256
    beside = arena.take(256)
    assert beside.offset is None
    arena.keep("beside", beside)
    assert arena.find("beside") is None


def test_a_large_row_is_copied_in_slices_that_leave_out_nothing() -> None:
    parts = [torch.empty(SLICE // 3, dtype=torch.uint8) for _ in range(10)] + [torch.empty(5), torch.empty(3 * SLICE)]
    cut = list(slices(parts))
    assert cut[0][0] == 0
    assert cut[-1][1] == len(parts)
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(cut))
    assert len(cut) == 3


async def test_a_row_of_another_shape_is_made_again(tmp_path: Path, make: Make) -> None:
    tiers, adapter = Tiers(tmp_path, rows=2), make(1)
    tiers.folder.write(Head(adapter.digest, 4, (0, 1), ROW + 256), memoryview(bytes(ROW + 256)))
    tiers.folder.write(Head("other", 4, (99,), ROW), memoryview(bytes(ROW)))
    assert (await tiers.stage(adapter)).progress is Progress.FILLED
    assert tiers.bank.holds(0, Path(adapter.path))
    assert tiers.stager.tiers()["disk"]["damaged"] == 1


async def test_memory_of_a_row_that_cannot_be_made_is_free_again(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers, adapter = Tiers(tmp_path, rows=1), make(1)
    with monkeypatch.context() as patch:
        patch.setattr(tiers.folder, "write", lambda *_: 1 / 0)
        assert (await tiers.stage(adapter)).progress is Progress.FAILED
    assert tiers.arena.used == 0
    assert (await tiers.stage(adapter)).progress is Progress.FILLED
    assert tiers.arena.used == ROW
