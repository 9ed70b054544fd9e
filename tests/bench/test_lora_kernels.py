"""What of the kernels' tuning needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path

from bench.lora_kernels import MOST_SLICES, Tuned, table, write


def tuned(slots: str, slices: str, inputs: str, block: int) -> Tuned:
    return Tuned("SHRINK", (slots, slices, "64", inputs, "16"), 9.0, 4.0, {"block_m": block})


def test_files_are_added_to_and_have_every_number_of_slices(tmp_path: Path) -> None:
    write(tmp_path / "kernels", "NVIDIA H100-SXM", [tuned("10", "3", "3584", 16), tuned("10", "1", "3584", 32)])
    write(tmp_path / "kernels", "NVIDIA H100-SXM", [tuned("10", "1", "18944", 64), tuned("18", "3", "3584", 16)])
    content = json.loads((tmp_path / "kernels" / "NVIDIA_H100_SXM_SHRINK.json").read_text())
    assert set(content) == {"10", "18"}
    assert content["10"]["1"]["64"] == {"3584": {"16": {"block_m": 32}}, "18944": {"16": {"block_m": 64}}}
    assert content["10"][str(MOST_SLICES)] == content["10"]["3"]
    assert content["18"]["1"] == content["10"]["1"], "one rank is tuned for few slots, another for many"
    assert table([tuned("10", "3", "3584", 16)]).row_count == 1


def test_what_was_given_to_other_slots_follows_what_is_tuned_again(tmp_path: Path) -> None:
    file = tmp_path / "CARD_SHRINK.json"
    write(tmp_path, "CARD", [tuned("10", "3", "3584", 16), tuned("18", "3", "18944", 64)])
    write(tmp_path, "CARD", [tuned("18", "3", "18944", 128)])
    content = json.loads(file.read_text())
    assert content["10"]["3"]["64"]["18944"] == content["18"]["3"]["64"]["18944"] == {"16": {"block_m": 128}}
    write(tmp_path, "CARD", [tuned("10", "3", "18944", 32), tuned("18", "3", "18944", 256)])
    content = json.loads(file.read_text())
    assert content["10"]["3"]["64"]["18944"] == {"16": {"block_m": 32}}
    assert content["18"]["3"]["64"]["18944"] == {"16": {"block_m": 256}}
