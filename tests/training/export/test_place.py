"""An export appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.export.errors import ExportError, ExportRefused
from training.export.place import MARK, check_space, new_folder


def _write(folder: Path, text: str = "new") -> None:
    (folder / MARK).write_text(text)


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_folder(target) as folder:
        _write(folder)
        assert not target.exists()
    assert (target / MARK).read_text() == "new"
    assert [file.name for file in target.parent.iterdir()] == ["out"]


def test_after_an_error_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        _write(folder)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_export_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as folder:
        _write(folder, "old")
        (folder / "more").write_text("x")
    with pytest.raises(ExportRefused, match="--force"), new_folder(target):
        pass
    with new_folder(target, force=True) as folder:
        _write(folder)
    assert [file.name for file in target.iterdir()] == [MARK]
    (target / MARK).rename(target / "photographs")
    with pytest.raises(ExportRefused, match="no earlier export"), new_folder(target, force=True):
        pass
    assert (target / "photographs").exists()


def test_an_earlier_export_survives_a_failed_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as folder:
        _write(folder, "old")
    with pytest.raises(RuntimeError), new_folder(target, force=True) as folder:
        raise RuntimeError
    assert (target / MARK).read_text() == "old"


def test_what_a_killed_export_left_goes(tmp_path: Path) -> None:
    dead = tmp_path / ".out.partial-999999999"
    dead.mkdir()
    (dead / "half.gguf").write_text("x")
    with new_folder(tmp_path / "out") as folder:
        _write(folder)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="GB free"):
        check_space(tmp_path / "out", 1 << 60)
