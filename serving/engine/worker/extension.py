"""What the engine's process adds to vLLM's worker: staging, by calls that return at once.

vLLM mixes this class into its worker (`worker_extension_cls`) and runs its methods between two steps, on the thread
that runs the model; so each of them does next to nothing, and polling stands for waiting.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import torch

from serving.engine.worker.bridge import UnknownVllm
from serving.engine.worker.protocol import FAILED, PENDING, READY, StagingPlan
from serving.engine.worker.slot_bank import SlotBank
from serving.engine.worker.staging import Adapter, Progress, Stager, Staging, open_stager

SWITCH_INTERVAL_S = 1e-4
"""how long a thread of ours may keep the engine's waiting for the interpreter; Python's own is 5 ms"""


class StagingExtension:
    """Mixed into vLLM's worker: attributes must not be those of a worker, hence the prefix."""

    _loradock_bank: SlotBank
    _loradock_stager: Stager
    _loradock_stagings: dict[int, Staging]
    _loradock_failed: dict[int, str]
    """why, until they are removed: while another worker is not ready yet, who polls asks again"""
    _loradock_abandoned: list[Staging]
    """removed before their slots were filled: these are free once nothing writes them any more"""
    _loradock_freed: dict[int, Any]
    """by slot, the device's event behind the last step that could read it; slots that no adapter has left have none.
    Whatever empties a slot that requests have used must mark it: the next adapter is written to it behind that mark."""

    def loradock_open(self, plan: str) -> str:
        """Begin to stage by `plan`, in JSON. Returns why it cannot be done here, or nothing."""
        try:
            self._loradock_bank = SlotBank(self)
            self._loradock_bank.take_over()
            self._loradock_stager = open_stager(self._loradock_bank, msgspec.json.decode(plan, type=StagingPlan))
        except (UnknownVllm, OSError, RuntimeError, AttributeError) as error:
            self.loradock_close()
            return " ".join(str(error).split()) or type(error).__name__
        self._loradock_stagings = {}
        self._loradock_failed = {}
        self._loradock_abandoned = []
        self._loradock_freed = {}
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        return ""

    def loradock_close(self) -> None:
        """Give back all that `loradock_open` took; vLLM loads adapters itself then."""
        if stager := vars(self).pop("_loradock_stager", None):
            stager.close()
        if bank := vars(self).pop("_loradock_bank", None):
            bank.give_back()

    def loradock_begin(self, ticket: int, engine_id: int, name: str, path: str, digest: str) -> str:
        """Reserve a slot for the adapter and begin to fill it. Returns why it cannot be, or nothing."""
        self._loradock_sweep()
        slot = self._loradock_bank.reserve()
        if slot is None:
            return "no slot is free"
        staging = Staging(Adapter(name, path, digest), slot, self._loradock_freed.get(slot), ticket)
        self._loradock_stagings[engine_id] = staging
        self._loradock_stager.begin(staging)
        return ""

    def loradock_poll(self, engine_id: int) -> dict[str, Any]:
        """Commit the adapter if its slot is filled. Returns `state`, and for one that ended `reason` and `tiers`."""
        if (reason := self._loradock_failed.get(engine_id)) is not None:
            return {"state": FAILED, "reason": reason, "tiers": self._loradock_stager.tiers()}
        staging = self._loradock_stagings.get(engine_id)
        if staging is None:  # committed by an earlier call, while another worker was not ready
            return {"state": READY, "tiers": self._loradock_stager.tiers()}
        if staging.progress is Progress.STAGING:
            return {"state": PENDING}
        del self._loradock_stagings[engine_id]
        if staging.progress is Progress.FAILED:
            self._loradock_bank.free(staging.slot)
            self._loradock_failed[engine_id] = staging.reason
            return {"state": FAILED, "reason": staging.reason, "tiers": self._loradock_stager.tiers()}
        self._loradock_bank.commit(staging.slot, engine_id, staging.rank)
        return {"state": READY, "tiers": self._loradock_stager.tiers()}

    def loradock_remove(self, engine_id: int) -> None:
        """Free the adapter's slot; one that is still being filled, once that has ended."""
        self._loradock_failed.pop(engine_id, None)
        if (staging := self._loradock_stagings.pop(engine_id, None)) is not None:
            self._loradock_abandoned.append(staging)
        self._loradock_sweep()
        slot = self._loradock_bank.remove(engine_id)
        if slot is not None:
            # Marked now and not when the slot is taken: by then steps are under way that have nothing to do with it.
            self._loradock_freed[slot] = self._loradock_mark()

    def loradock_prefetch(self, name: str, path: str, digest: str, keep: bool) -> None:
        """Prepare an adapter for later, and bring it into host memory; without `keep`, only if it has room there."""
        self._loradock_stager.prefetch(Adapter(name, path, digest), keep=keep)

    def _loradock_sweep(self) -> None:
        ended = [staging for staging in self._loradock_abandoned if staging.progress is not Progress.STAGING]
        for staging in ended:
            self._loradock_abandoned.remove(staging)
            self._loradock_bank.free(staging.slot)

    def _loradock_mark(self) -> Any:
        """The device's event behind all that was launched so far; None where the device runs in step with us."""
        if self._loradock_bank.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event
