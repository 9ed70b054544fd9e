from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from training.trainer import DiskFull
from training.trainer.checkpoints import MANIFEST, Checkpoints


def fill(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights").write_text(text)

    return write


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, keep=2)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_newest_are_kept(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for step in (1, 2, 30):
        checkpoints.write(step, fill(str(step)))
    assert names(tmp_path) == ["step-00000002", "step-00000030"]
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest.step, (newest.folder / "weights").read_text()) == (30, "30")


def cut_off(folder: Path) -> None:
    (folder / "weights").write_text("")


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def lose_a_file(folder: Path) -> None:
    (folder / "weights").unlink()


def cut_the_manifest_off(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"files": {"wei')


@pytest.mark.parametrize("tear", [cut_off, lose_the_manifest, lose_a_file, cut_the_manifest_off])
def test_a_torn_one_is_passed_over(checkpoints: Checkpoints, tmp_path: Path, tear: Callable[[Path], None]) -> None:
    for step in (1, 2):
        checkpoints.write(step, fill(str(step)))
    tear(tmp_path / "step-00000002")
    newest = Checkpoints(tmp_path, keep=2).newest()
    assert newest is not None
    assert newest.step == 1


def test_what_a_kill_left_half_written_is_swept_away(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.write(1, fill("1"))
    (tmp_path / "step-00000002.part").mkdir()
    fill("2")(tmp_path / "step-00000002.part")
    newest = Checkpoints(tmp_path, keep=2).newest()
    assert newest is not None
    assert newest.step == 1
    assert names(tmp_path) == ["step-00000001"]


def full_with_more_than(folder: Path, others: int) -> Callable[[Path], None]:
    """Writes fail for want of room as long as more than `others` checkpoints lie beside."""

    def write(partial: Path) -> None:
        fill("new")(partial)
        if len(names(folder)) - 1 > others:
            raise OSError(errno.ENOSPC, "No space left on device")

    return write


def test_a_full_disk_costs_the_oldest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.write(step, fill(str(step)))
    checkpoints.write(4, full_with_more_than(tmp_path, 1))
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_a_disk_that_stays_full_ends_in_one_error_and_the_last_good_one_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.write(step, fill(str(step)))
    with pytest.raises(DiskFull, match=r"no room in .*; the last good checkpoint is kept"):
        checkpoints.write(3, full_with_more_than(tmp_path, 0))
    assert names(tmp_path) == ["step-00000002"]
    assert (newest := checkpoints.newest()) is not None
    assert newest.step == 2


def test_other_errors_are_not_taken_for_a_full_disk(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.write(1, fill("1"))

    def refuse(_folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        checkpoints.write(2, refuse)
    assert "step-00000001" in names(tmp_path)


def test_torch_running_out_of_room_is_known_by_the_disk(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Its writer says no more than that a write failed."""
    torch = pytest.importorskip("torch")

    def write(partial: Path) -> None:
        (partial / "weights").symlink_to("/dev/full")
        torch.save({"weights": torch.zeros(1 << 18)}, partial / "weights")

    checkpoints.write(1, fill("1"))
    with pytest.raises((RuntimeError, OSError, DiskFull)):
        checkpoints.write(2, write)
    assert (newest := checkpoints.newest()) is not None
    assert newest.step == 1
