"""Insides of vLLM that are not as we know them are told at the start, by name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving.engine.worker.bridge import UnknownVllm
from serving.engine.worker.extension import StagingExtension
from serving.engine.worker.slot_bank import SlotBank

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
    loader = SimpleNamespace(_adapter_manager=manager, _load_adapter=None)
    parallel = SimpleNamespace(world_size=1)
    return SimpleNamespace(
        rank=0, model_runner=SimpleNamespace(lora_manager=loader), vllm_config=SimpleNamespace(parallel_config=parallel)
    )


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
