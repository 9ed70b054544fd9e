"""Frozen weights written out in compute precision: NF4 through one kernel, other kinds by copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def write_weight(linear: Any, out: Tensor) -> None:
    """Write the weight of `linear`, plain or bitsandbytes' 4-bit, to `out` [N, K], whose rows may have a stride.

    The values are those of bitsandbytes' own dequantisation, bit by bit.
    """
    state = getattr(linear.weight, "quant_state", None)
    if state is None:
        out.copy_(linear.weight)
    elif out.is_cuda and out.shape[1] % state.blocksize == 0:
        _write_nf4(linear.weight, state, out)
    else:
        from bitsandbytes.functional import dequantize_4bit

        out.copy_(dequantize_4bit(linear.weight.data, state))


def is_quantised(linear: Any) -> bool:
    """Whether the weight is one of bitsandbytes' 4-bit ones, already quantised."""
    return getattr(linear.weight, "quant_state", None) is not None


def unsupported_weight(linear: Any) -> str | None:
    """Why the weight of `linear` cannot be written by `write_weight`; None when it can."""
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, Tensor) or weight.device.type == "meta":
        return "a weight is not on a device"
    if getattr(weight, "quant_state", None) is None and not weight.dtype.is_floating_point:
        return f"a weight is of type {weight.dtype}"
    return None


def _write_nf4(weight: Tensor, state: Any, out: Tensor) -> None:
    from training.trainer.fast import kernels

    nested = None
    if state.nested:
        nested = (state.state2.code, state.state2.absmax, state.offset, state.state2.blocksize)
    with torch.cuda.device(out.device):
        kernels.dequantise(weight.data, state.absmax, nested, state.code, state.blocksize, out)
