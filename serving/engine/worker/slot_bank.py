"""The adapter slots of one vLLM worker: what staging needs of vLLM's insides (0.26 to 0.32), all of it.

Insides that are not as expected raise UnknownVllm at the start, and adapters then go vLLM's own way.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from serving.engine.worker.bridge import UnknownVllm, find, version
from serving.engine.worker.layout import Field, Layout

log = logging.getLogger(__name__)

STACKED = ("lora_a_stacked", "lora_b_stacked")
"""attributes of a LoRA layer that hold its weights, slot by slot"""
WHOLE = 1 << 30
"""more than any rank"""
PINNING = ("vllm.lora.lora_model", "vllm.lora.model_manager")
"""modules whose PIN_MEMORY makes vLLM pin each tensor that it reads"""


@dataclass(frozen=True, slots=True)
class Packed:
    """An adapter as vLLM would write it to a slot: for each field that it fills, the field's whole tensor."""

    rank: int
    tensors: dict[int, torch.Tensor]


class ResidentAdapter:
    """What vLLM keeps of an adapter whose weights are in a slot already."""

    def __init__(self, engine_id: int, rank: int) -> None:
        self.id = engine_id
        self.rank = rank

    def get_lora(self, module_name: str) -> Any:
        """Never asked for while the adapter has its slot. Answers would be wrong without its weights."""
        raise RuntimeError(f"adapter {self.id} was activated twice ({module_name})")


class SlotBank:
    """The slots. Methods that say so belong to the engine's thread, which runs the model."""

    def __init__(self, worker: Any) -> None:
        """Raises UnknownVllm."""
        loader: Any = getattr(getattr(worker, "model_runner", None), "lora_manager", None)
        manager: Any = getattr(loader, "_adapter_manager", None)
        self._loader = loader
        self._manager = _checked(manager, loader)
        self.count = len(manager.lora_index_to_id)
        self._modules: dict[str, list[int]] = {}
        self._tensors: list[torch.Tensor] = []
        fields: list[Field] = []
        for name, module in manager.modules.items():
            first = len(fields)
            for attribute, number, tensor in _stacked(name, module):
                fields.append(_field(f"{name}.{attribute}.{number}", attribute, tensor, self.count))
                self._tensors.append(tensor)
            self._modules[name] = list(range(first, len(fields)))
        parallel = worker.vllm_config.parallel_config
        if parallel.data_parallel_size > 1:
            raise UnknownVllm("with data parallelism only one of the engines answers a question")
        self.workers = int(parallel.world_size)
        sharding = "sharded" if worker.vllm_config.lora_config.fully_sharded_loras else "whole"
        salt = f"vllm {version()} rank {worker.rank} of {parallel.world_size} {sharding}"
        self.layout = Layout(tuple(fields), salt)
        self.device = self._tensors[0].device
        self._targets: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._set_active = loader.set_active_adapters
        self._pinning: dict[str, Any] = {}

    def take_over(self) -> None:
        """From now on adapters come by `commit` alone, and vLLM reads without pinning each tensor.

        Pinning is a driver call each, which the engine's thread would wait for. Raises UnknownVllm.
        """
        modules = {name: vars(importlib.import_module(name)) for name in PINNING}
        if not all("PIN_MEMORY" in names for names in modules.values()):
            raise UnknownVllm(f"vLLM {version()} pins what it reads in an unknown way")
        for name, names in modules.items():
            self._pinning[name], names["PIN_MEMORY"] = names["PIN_MEMORY"], False
        self._loader.set_active_adapters = self._set_active_if_here

    def give_back(self) -> None:
        """Let vLLM load adapters its own way again."""
        for name, pinned in self._pinning.items():
            vars(importlib.import_module(name))["PIN_MEMORY"] = pinned
        vars(self._loader).pop("set_active_adapters", None)

    def _set_active_if_here(self, requests: set[Any], mapping: Any) -> None:
        """Activate a batch's adapters; a request for one that is in no slot goes to the base. Engine's thread.

        Such a request named the adapter just before it was withdrawn. vLLM would load it here, with every stream
        waiting, into a slot that nobody knows of, or die for want of one.
        """
        here = self._manager._registered_adapters
        gone = {request.lora_int_id for request in requests if request and request.lora_int_id not in here}
        if gone:
            log.warning("requests for adapters that have left are answered by the base: %s", sorted(gone))
            requests = {request for request in requests if request and request.lora_int_id in here}
            mapping = mapping and replace(
                mapping,
                index_mapping=tuple(0 if number in gone else number for number in mapping.index_mapping),
                prompt_mapping=tuple(0 if number in gone else number for number in mapping.prompt_mapping),
            )
        self._set_active(requests, mapping)

    def pack(self, name: str, path: str) -> Packed:
        """Read an adapter's folder as vLLM does. Raises what vLLM raises for one that it refuses."""
        with torch.inference_mode():
            model = self._loader._load_adapter(find("LoRARequest")(lora_name=name, lora_int_id=1, lora_path=path))
            self._manager._create_merged_loras_inplace(model)
            rank = max(_rank(lora.lora_a, lora.lora_b) for lora in model.loras.values())
            tensors: dict[int, torch.Tensor] = {}
            for module_name, numbers in self._modules.items():
                lora = self._manager._get_lora_layer_weights(model, module_name)
                if lora:
                    shadow = _shadow(self._manager.modules[module_name])
                    shadow.set_lora(0, lora.lora_a, lora.lora_b)
                    written = [tensor[0] for _, _, tensor in _stacked(module_name, shadow)]
                    tensors.update(zip(numbers, written, strict=True))
            if not tensors:
                raise ValueError("it adapts nothing of this model")
            return Packed(rank, tensors)

    def targets(self, slot: int, rank: int) -> list[torch.Tensor]:
        """Of each field, the part of `slot` that an adapter of `rank` fills."""
        key = (slot, rank)
        if key not in self._targets:
            self._targets[key] = [
                tensor[slot]
                if field.rank_dim is None
                else tensor[slot].narrow(field.rank_dim, 0, field.filled(rank)[field.rank_dim])
                for field, tensor in zip(self.layout.fields, self._tensors, strict=True)
            ]
        return self._targets[key]

    def whole(self, slot: int) -> list[torch.Tensor]:
        """Every field of `slot`."""
        return self.targets(slot, WHOLE)

    def reserve(self) -> int | None:
        """A free slot that vLLM will not use meanwhile; None if there is none. Engine's thread."""
        slots = self._manager.lora_index_to_id
        if None not in slots:
            return None
        slot = int(slots.index(None))
        slots[slot] = _reserved(slot)
        self._let_the_mapping_stand()
        return slot

    def commit(self, slot: int, engine_id: int, rank: int) -> None:
        """Let requests use `slot`, which holds the adapter's weights. Engine's thread."""
        manager = self._manager
        manager._registered_adapters[engine_id] = ResidentAdapter(engine_id, rank)
        manager._active_adapters[engine_id] = None
        manager.lora_index_to_id[slot] = engine_id
        if manager._last_mapping is not None and engine_id in manager._last_mapping.index_mapping:
            manager._last_mapping = None  # the same batch now means another slot
        self._let_the_mapping_stand()

    def free(self, slot: int) -> None:
        """Give back a reserved slot. Engine's thread."""
        if self._manager.lora_index_to_id[slot] == _reserved(slot):
            self._manager.lora_index_to_id[slot] = None
            self._let_the_mapping_stand()

    def remove(self, engine_id: int) -> int | None:
        """Free the slot of an adapter that no request uses. Returns the slot, None if it has none. Engine's thread."""
        slots = self._manager.lora_index_to_id
        slot = slots.index(engine_id) if engine_id in slots else None
        self._manager.remove_adapter(engine_id)
        self._let_the_mapping_stand()
        return slot

    def _let_the_mapping_stand(self) -> None:
        """Tell vLLM that the slots it last mapped the batch to are still those.

        Otherwise it maps the same batch again before the next step, for which its thread waits for the device.
        """
        self._manager._last_slot_layout = tuple(self._manager.lora_index_to_id)


def _reserved(slot: int) -> int:
    """What stands in a reserved slot: no adapter's id, which are positive."""
    return -1 - slot


def _checked(manager: Any, loader: Any) -> Any:
    """The manager, if it is the one that we know. Raises UnknownVllm."""
    wanted: Sequence[tuple[Any, str, type]] = (
        (manager, "lora_index_to_id", list),
        (manager, "modules", dict),
        (manager, "_registered_adapters", object),
        (manager, "_active_adapters", object),
        (manager, "_last_mapping", object),
        (manager, "_last_slot_layout", object),
        (manager, "remove_adapter", object),
        (manager, "_create_merged_loras_inplace", object),
        (manager, "_get_lora_layer_weights", object),
        (loader, "_load_adapter", object),
        (loader, "set_active_adapters", object),
    )
    for owner, name, kind in wanted:
        if not hasattr(owner, name) or not isinstance(getattr(owner, name), kind):
            raise UnknownVllm(f"vLLM {version()} keeps {name} of its adapters in an unknown form")
    if not manager.modules:
        raise UnknownVllm("the model has no layer that takes adapters")
    return manager


def _stacked(name: str, module: Any) -> Iterator[tuple[str, int, torch.Tensor]]:
    """The tensors of a layer that hold weights by slot: attribute, number, tensor. Raises UnknownVllm."""
    found = {attribute for attribute in vars(module) if attribute.endswith("_stacked")}
    if found != set(STACKED):
        kept = ", ".join(sorted(found)) or "nothing known"
        raise UnknownVllm(f"the layer {name} ({type(module).__name__}) keeps its adapters in {kept}")
    for attribute in STACKED:
        held = vars(module)[attribute]
        for number, tensor in enumerate([held] if isinstance(held, torch.Tensor) else held):
            yield attribute, number, tensor


def _field(name: str, attribute: str, tensor: torch.Tensor, slots: int) -> Field:
    if tensor.shape[0] != slots or not tensor.is_contiguous():
        raise UnknownVllm(f"{name} has the shape {tuple(tensor.shape)} for {slots} slots")
    shape = tuple(tensor.shape[1:])
    # (1, rank, inputs) and (1, outputs, rank); an embedding's A is (vocabulary, rank) and kept whole
    rank_dim = None if len(shape) != 3 else 1 if attribute == STACKED[0] else 2
    return Field(name, shape, str(tensor.dtype).removeprefix("torch."), tensor.element_size(), rank_dim)


def _shadow(module: Any) -> Any:
    """A layer that writes like `module`, to one slot in host memory."""
    shadow = object.__new__(type(module))
    vars(shadow).update(vars(module))
    for attribute in STACKED:
        held = vars(module)[attribute]
        empty = [
            torch.zeros((1, *tensor.shape[1:]), dtype=tensor.dtype)
            for tensor in ([held] if isinstance(held, torch.Tensor) else held)
        ]
        vars(shadow)[attribute] = empty[0] if isinstance(held, torch.Tensor) else tuple(empty)
    return shadow


def _rank(lora_a: Any, lora_b: Any) -> int:
    """The largest rank in a layer's weights, of which some may be missing."""
    pairs = zip(lora_a, lora_b, strict=True) if isinstance(lora_a, list) else [(lora_a, lora_b)]
    return max((max(a.shape[0], b.shape[1]) for a, b in pairs if a is not None and b is not None), default=1)
