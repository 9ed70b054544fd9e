"""On a GPU: slots are filled from pinned memory on a stream of their own, while another stream computes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import pytest

torch = pytest.importorskip("torch")

from serving.engine.worker.arena import Arena, pin  # noqa: E402
from serving.engine.worker.prepared import PreparedFolder  # noqa: E402
from serving.engine.worker.slot_bank import SlotBank  # noqa: E402
from serving.engine.worker.staging import Adapter, Progress, Stager, Staging  # noqa: E402
from tests.serving.engine.worker.bank import Bank  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_memory_is_pinned_in_place() -> None:
    block = torch.empty(1 << 20, dtype=torch.uint8)
    pin(block)
    assert block.is_pinned()
    with pytest.raises(RuntimeError, match="cannot be pinned"):
        pin(block)  # it is already


def test_a_slot_is_filled_behind_what_still_reads_it(tmp_path: Path) -> None:
    bank = Bank(slots=2, device="cuda")
    stager = Stager(cast("SlotBank", bank), Arena(1 << 20, pinned=True), PreparedFolder(tmp_path / "prepared", 1 << 20))
    before = bank.tensors[0][0].clone()
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "rank").write_text("2")
    for _ in range(3):  # prepared, then from host memory
        torch.cuda._sleep(100_000_000)
        read = bank.tensors[0][0].clone()  # by a step that is still on its way
        freed = torch.cuda.Event()
        freed.record()
        staging = Staging(Adapter("a", str(folder), "digest"), 0, freed)
        stager.begin(staging)
        deadline = time.monotonic() + 20
        while staging.progress is Progress.STAGING and time.monotonic() < deadline:
            time.sleep(0.001)
        assert (staging.progress, staging.reason) == (Progress.FILLED, "")
        torch.cuda.synchronize()
        assert torch.equal(read, before), "the slot was written while a step read it"
        assert bank.holds(0, folder)
        before = bank.tensors[0][0].clone()
    assert torch.all(bank.tensors[0][1] == 9.0)
