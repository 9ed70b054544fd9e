"""Insides of vLLM that are not as we know them are told at the start, by name."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from serving.engine.worker.bridge import UnknownVllm
from serving.engine.worker.extension import StagingExtension
from serving.engine.worker.protocol import StagingPlan
from serving.engine.worker.slot_bank import PINNING, SlotBank
from serving.engine.worker.staging import Adapter, Progress, Staging

pytest.importorskip("vllm")


def layer(**others: Any) -> Any:
    found = SimpleNamespace(lora_a_stacked=(torch.zeros(2, 1, 4, 6),), lora_b_stacked=(torch.zeros(2, 1, 5, 4),))
    vars(found).update(others)
    return found


def worker(modules: dict[str, Any], **others: Any) -> Any:
    manager = SimpleNamespace(
        lora_index_to_id=[None, None],
        modules=modules,
        _registered_adapters={},
        _active_adapters={},
        _last_mapping=None,
        _last_slot_layout=None,
        remove_adapter=None,
        _create_merged_loras_inplace=None,
        _get_lora_layer_weights=None,
    )
    vars(manager).update(others)
    loader = SimpleNamespace(_adapter_manager=manager, _load_adapter=None, set_active_adapters=None)
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(world_size=1, data_parallel_size=1),
        lora_config=SimpleNamespace(fully_sharded_loras=False),
    )
    return SimpleNamespace(rank=0, model_runner=SimpleNamespace(lora_manager=loader), vllm_config=config)


@pytest.mark.parametrize(
    ("strange", "told"),
    [
        (SimpleNamespace(), "lora_index_to_id"),
        (SimpleNamespace(model_runner=SimpleNamespace()), "lora_index_to_id"),
        (worker({}), "no layer"),
        (worker({"a": layer()}, lora_index_to_id={}), "lora_index_to_id"),
        (worker({"a": layer(w13_lora_a_stacked=())}), "w13_lora_a_stacked"),
        (worker({"a": SimpleNamespace()}), "nothing known"),
        (worker({"a": layer(lora_a_stacked=(torch.zeros(3, 1, 4, 6),))}), "for 2 slots"),
    ],
)
def test_unknown_insides_are_refused_by_name(strange: Any, told: str) -> None:
    with pytest.raises(UnknownVllm, match=told):
        SlotBank(strange)


def test_a_worker_without_adapters_is_told_and_nothing_is_begun() -> None:
    assert "lora_index_to_id" in StagingExtension().loradock_open("{}")


def test_data_parallelism_is_refused() -> None:
    parallel = worker({"a": layer()})
    parallel.vllm_config.parallel_config.data_parallel_size = 2
    with pytest.raises(UnknownVllm, match="data parallelism"):
        SlotBank(parallel)


class Loader:
    """The part of vLLM's that activates a batch's adapters; `seen` is what it was called with."""

    def __init__(self, manager: Any) -> None:
        self._adapter_manager = manager
        self._load_adapter = None
        self.seen: list[Any] = []

    def set_active_adapters(self, requests: set[Any], mapping: Any) -> None:
        self.seen.append(({request.lora_int_id for request in requests}, mapping))


def test_a_request_for_what_has_left_goes_to_the_base_and_loads_nothing() -> None:
    requests_of = pytest.importorskip("vllm.lora.request").LoRARequest
    mapping_of = pytest.importorskip("vllm.lora.layers.utils").LoRAMapping
    strange = worker({"a": layer()})
    loader = strange.model_runner.lora_manager = Loader(strange.model_runner.lora_manager._adapter_manager)
    bank = SlotBank(strange)
    bank.take_over()
    slot = bank.reserve()
    assert slot is not None
    bank.commit(slot, 7, 4)
    requests = {requests_of(str(number), number, "/nowhere") for number in (7, 8)}
    loader.set_active_adapters(requests, mapping_of((7, 8, 8, 0), (7, 8, 0)))
    assert loader.seen.pop() == ({7}, mapping_of((7, 0, 0, 0), (7, 0, 0)))
    bank.give_back()
    loader.set_active_adapters(requests, None)
    assert loader.seen.pop() == ({7, 8}, None)


def extension(manager: Any, staging: Staging) -> StagingExtension:
    """A worker's, whose only slot is being filled for adapter 7."""
    found = StagingExtension()
    found._loradock_bank = SlotBank(manager)
    found._loradock_stagings = {7: staging}
    found._loradock_failed = {}
    found._loradock_abandoned = []
    found._loradock_freed = {}
    return found


def test_a_slot_that_is_still_being_filled_is_free_once_that_has_ended() -> None:
    strange = worker({"a": layer()})
    manager = strange.model_runner.lora_manager._adapter_manager
    manager.remove_adapter = lambda _: None
    staging = Staging(Adapter("a", "/nowhere", "d"), 0, None)
    ours = extension(strange, staging)
    assert ours._loradock_bank.reserve() == 0
    ours.loradock_remove(7)
    assert manager.lora_index_to_id[0] is not None, "another adapter would be written over by the old one"
    staging.progress = Progress.FILLED
    ours.loradock_remove(8)
    assert manager.lora_index_to_id[0] is None
    assert not ours._loradock_abandoned


def test_a_failure_is_told_as_often_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = worker({"a": layer()})
    manager = strange.model_runner.lora_manager._adapter_manager
    manager.remove_adapter = lambda _: None
    staging = Staging(Adapter("a", "/nowhere", "d"), 0, None)
    ours = extension(strange, staging)
    monkeypatch.setattr(ours, "_loradock_stager", SimpleNamespace(tiers=dict), raising=False)
    assert ours._loradock_bank.reserve() == 0
    assert ours.loradock_poll(7) == {"state": "pending"}
    staging.progress, staging.reason = Progress.FAILED, "no room"
    for _ in range(2):  # another worker was not ready at the first time
        assert ours.loradock_poll(7) == {"state": "failed", "reason": "no room", "tiers": {}}
    assert ours._loradock_bank.reserve() == 0
    ours.loradock_remove(7)
    assert ours._loradock_bank.reserve() == 1, "the reservation of another was given back"
    assert not ours._loradock_failed


def test_a_slot_is_marked_when_its_adapter_leaves_and_not_when_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strange = worker({"a": layer()})
    manager = strange.model_runner.lora_manager._adapter_manager
    manager.remove_adapter = lambda _: manager.lora_index_to_id.__setitem__(0, None)
    ours = extension(strange, Staging(Adapter("a", "/nowhere", "d"), 0, None))
    marks = iter(["behind the last step that read it", "behind steps of others"])
    monkeypatch.setattr(ours, "_loradock_mark", lambda: next(marks))
    begun: list[Staging] = []
    monkeypatch.setattr(ours, "_loradock_stager", SimpleNamespace(begin=begun.append), raising=False)
    manager.lora_index_to_id[0] = 8
    ours.loradock_remove(8)
    assert ours.loradock_begin(1, 9, "b", "/nowhere", "d") == ""
    assert begun[0].freed == "behind the last step that read it"


def test_what_was_taken_is_given_back_when_the_tiers_cannot_be_had(tmp_path: Path) -> None:
    class Worker(StagingExtension):
        pass

    strange = worker({"a": layer()})
    found = Worker()
    vars(found).update(vars(strange))
    pinning = importlib.import_module(PINNING[0])
    before = vars(pinning)["PIN_MEMORY"]
    (tmp_path / "prepared").write_text("a file where a folder should be")
    plan = StagingPlan(str(tmp_path / "prepared"), 0, 0, 1, 1, str(tmp_path / "notices"))
    assert found.loradock_open(msgspec.json.encode(plan).decode())
    assert vars(pinning)["PIN_MEMORY"] is before
    assert "_loradock_bank" not in vars(found)


def test_slots_are_reserved_committed_and_given_back() -> None:
    strange = worker({"a": layer(), "b": layer()})
    manager = strange.model_runner.lora_manager._adapter_manager
    batch = manager._last_mapping = SimpleNamespace(index_mapping=(0, 55))
    bank = SlotBank(strange)
    assert [field.name for field in bank.layout.fields][:2] == ["a.lora_a_stacked.0", "a.lora_b_stacked.0"]
    first, second = bank.reserve(), bank.reserve()
    assert {first, second} == {0, 1}
    assert bank.reserve() is None
    assert all(stands is not None and stands < 0 for stands in manager.lora_index_to_id)
    assert first is not None
    assert second is not None
    bank.free(first)
    bank.commit(second, 77, 4)
    bank.free(second)
    assert manager.lora_index_to_id == [None, 77]
    assert set(manager._registered_adapters) == set(manager._active_adapters) == {77}
    assert manager._last_mapping is batch, "the batch, which does not use the adapter, would be mapped again"
    assert manager._last_slot_layout == (None, 77)
    bank.commit(first, 55, 4)
    assert manager._last_mapping is None, "the batch would read the slot that the adapter had before"
    with pytest.raises(RuntimeError, match="77"):
        manager._registered_adapters[77].get_lora("a")
    assert [tuple(part.shape) for part in bank.targets(1, 2)] == [(1, 2, 6), (1, 5, 2)] * 2
