# mypy: ignore-errors
# ruff: noqa: PLR0917, D103
# Triton's language has no types and launches by position; what each kernel computes is told by its twin.
"""Triton kernels of the fast path: one pass over memory each, several of them in place.

Every kernel has a twin in plain PyTorch in `pointwise`, `loss` or bitsandbytes, which a CPU runs and tests compare.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024
_VOCABULARY_BLOCK = 8192
_DROPOUT_LANES = 512
"""columns that one program drops from, in each of four parts: one draw of random bits serves four columns"""
_NF4_BLOCKS = 32
"""quantisation blocks that one program of `dequantise` expands"""


@triton.jit
def _rms_norm(x, weight, out, x_stride, out_stride, width, epsilon, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
    wide = values.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide) / width + epsilon)
    normed = (wide * inverse).to(values.dtype)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + row * out_stride + column, (normed * scale).to(values.dtype), mask=inside)


@triton.jit
def _rms_norm_backward(x, weight, gradient, residual, out, width, epsilon, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, block)
    inside = column < width
    values = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values) / width + epsilon)
    scaled = tl.load(gradient + row + column, mask=inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    normed = values * inverse
    through = inverse * (scaled - normed * (tl.sum(scaled * normed) / width))
    through += tl.load(residual + row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + column, through.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    source, batch_stride, place_stride, head_stride, target, target_stride, cos, sin,
    places, heads, half, table_rows, table_stride, sign, block_heads: tl.constexpr, block_half: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, block_heads)[:, None]
    lane = tl.arange(0, block_half)[None, :]
    inside = (head < heads) & (lane < half)
    read = source + (token // places) * batch_stride + (token % places) * place_stride + head * head_stride + lane
    first = tl.load(read, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(read + half, mask=inside, other=0.0).to(tl.float32)
    angle = (token % table_rows) * table_stride + lane
    cosine = tl.load(cos + angle, mask=lane < half, other=0.0).to(tl.float32)
    sine = tl.load(sin + angle, mask=lane < half, other=0.0).to(tl.float32) * sign
    write = target + token * target_stride + head * 2 * half + lane
    tl.store(write, (first * cosine - second * sine).to(target.dtype.element_ty), mask=inside)
    tl.store(write + half, (second * cosine + first * sine).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(gate_up, out, gate_up_stride, out_stride, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(gate_up + row * gate_up_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_stride + width + column, mask=inside, other=0.0)
    activated = (gate * tl.sigmoid(gate)).to(up.dtype)
    tl.store(out + row * out_stride + column, (activated * up).to(up.dtype), mask=inside)


@triton.jit
def _swiglu_backward(gate_up, gradient, gate_up_stride, gradient_stride, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate_at = gate_up + row * gate_up_stride + column
    gradient_at = gradient + row * gradient_stride + column
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + width, mask=inside, other=0.0).to(tl.float32)
    incoming = tl.load(gradient_at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    activated = gate * sigmoid
    kind = gate_up.dtype.element_ty
    tl.store(gate_at, (incoming * up * (sigmoid + activated * (1.0 - sigmoid))).to(kind), mask=inside)
    tl.store(gate_at + width, (incoming * activated).to(kind), mask=inside)
    tl.store(gradient_at, (activated.to(kind).to(tl.float32) * up).to(kind), mask=inside)


@triton.jit
def _dropped(x, out, x_stride, out_stride, width, seed, share, scale, add: tl.constexpr, lanes: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * 4 * lanes + tl.arange(0, lanes)
    draw = tl.program_id(0) * tl.num_programs(1) * lanes + tl.program_id(1) * lanes + tl.arange(0, lanes)
    first, second, third, fourth = tl.rand4x(seed, draw)
    _drop_part(x, out, row * x_stride, row * out_stride, lane, width, first, share, scale, add)
    _drop_part(x, out, row * x_stride, row * out_stride, lane + lanes, width, second, share, scale, add)
    _drop_part(x, out, row * x_stride, row * out_stride, lane + 2 * lanes, width, third, share, scale, add)
    _drop_part(x, out, row * x_stride, row * out_stride, lane + 3 * lanes, width, fourth, share, scale, add)


@triton.jit
def _drop_part(x, out, x_row, out_row, column, width, random, share, scale, add: tl.constexpr):
    inside = column < width
    value = tl.load(x + x_row + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(random >= share, value * scale, 0.0)
    if add:
        value += tl.load(out + out_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + out_row + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _cross_entropy(logits, labels, losses, stride, width, backward: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    label = tl.load(labels + row)
    highest = tl.full((block,), float("-inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    for offset in range(0, width, block):
        column = offset + tl.arange(0, block)
        value = tl.load(start + column, mask=column < width, other=float("-inf")).to(tl.float32)
        raised = tl.maximum(tl.maximum(highest, value), -3.0e38)
        total = total * tl.exp(highest - raised) + tl.exp(value - raised)
        highest = raised
    peak = tl.max(highest)
    partition = peak + tl.log(tl.sum(total * tl.exp(highest - peak)))
    tl.store(losses + row, partition - tl.load(start + label).to(tl.float32))
    if backward:
        tl.debug_barrier()  # the label's logit is read before its place is overwritten
        for offset in range(0, width, block):
            column = offset + tl.arange(0, block)
            value = tl.load(start + column, mask=column < width, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(value - partition) - tl.where(column == label, 1.0, 0.0)
            tl.store(start + column, gradient.to(logits.dtype.element_ty), mask=column < width)


@triton.jit
def _dequantise(
    packed, scales, scale_code, outer_scales, offset, code, out, out_stride, blocks, blocks_per_row, outer_block,
    nested: tl.constexpr, half_block: tl.constexpr, programs_blocks: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) * programs_blocks + tl.arange(0, programs_blocks)
    known = block < blocks
    if nested:
        scale = tl.load(scale_code + tl.load(scales + block, mask=known, other=0).to(tl.int32))
        scale = scale * tl.load(outer_scales + block // outer_block, mask=known, other=0.0) + tl.load(offset)
    else:
        scale = tl.load(scales + block, mask=known, other=0.0)
    byte = tl.arange(0, half_block)[None, :]
    pair = tl.load(packed + block.to(tl.int64)[:, None] * half_block + byte, mask=known[:, None], other=0).to(tl.int32)
    high = tl.load(code + (pair >> 4)) * scale[:, None]
    low = tl.load(code + (pair & 15)) * scale[:, None]
    values = tl.reshape(tl.join(high, low), (programs_blocks, 2 * half_block))
    start = (block // blocks_per_row).to(tl.int64) * out_stride + (block % blocks_per_row) * 2 * half_block
    at = start[:, None] + tl.arange(0, 2 * half_block)[None, :]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=known[:, None])


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
    rows, width = x.shape
    _rms_norm[(rows,)](
        x, weight, out, x.stride(0), out.stride(0), width, epsilon, block=triton.next_power_of_2(width), num_warps=8
    )


def rms_norm_backward(
    x: Tensor, weight: Tensor, epsilon: float, gradient: Tensor, residual: Tensor, out: Tensor
) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _rms_norm_backward[(rows,)](x, weight, gradient, residual, out, width, epsilon, block=block, num_warps=8)


def rotate(source: Tensor, target: Tensor, cos: Tensor, sin: Tensor, sign: float) -> None:
    batch, places, heads, size = source.shape
    _rotate[(batch * places,)](
        source, source.stride(0), source.stride(1), source.stride(2), target, target.stride(0), cos, sin,
        places, heads, size // 2, cos.shape[0], cos.stride(0), sign,
        block_heads=triton.next_power_of_2(heads), block_half=triton.next_power_of_2(size // 2),
    )  # fmt: skip


def swiglu(gate_up: Tensor, out: Tensor) -> None:
    rows, width = out.shape
    grid = (rows, triton.cdiv(width, _COLUMNS))
    _swiglu[grid](gate_up, out, gate_up.stride(0), out.stride(0), width, block=_COLUMNS)


def swiglu_backward(gate_up: Tensor, gradient: Tensor) -> None:
    rows, width = gradient.shape
    grid = (rows, triton.cdiv(width, _COLUMNS))
    _swiglu_backward[grid](gate_up, gradient, gate_up.stride(0), gradient.stride(0), width, block=_COLUMNS)


def dropped(x: Tensor, out: Tensor, share: float, seed: int, *, add: bool) -> None:
    rows, width = x.shape
    grid = (rows, triton.cdiv(width, 4 * _DROPOUT_LANES))
    _dropped[grid](
        x, out, x.stride(0), out.stride(0), width, seed, share, 1 / (1 - share), add=add, lanes=_DROPOUT_LANES
    )


def cross_entropy(logits: Tensor, labels: Tensor, losses: Tensor, *, backward: bool) -> None:
    rows, width = logits.shape
    block = min(_VOCABULARY_BLOCK, triton.next_power_of_2(width))
    _cross_entropy[(rows,)](
        logits, labels, losses, logits.stride(0), width, backward=backward, block=block, num_warps=16
    )


def dequantise(
    packed: Tensor,
    scales: Tensor,
    nested: tuple[Tensor, Tensor, Tensor, int] | None,
    code: Tensor,
    size: int,
    out: Tensor,
) -> None:
    blocks = out.numel() // size
    scale_code, outer, offset, outer_block = nested or (scales, scales, scales, 1)
    _dequantise[(triton.cdiv(blocks, _NF4_BLOCKS),)](
        packed, scales, scale_code, outer, offset, code, out, out.stride(0), blocks, out.shape[1] // size, outer_block,
        nested=nested is not None, half_block=size // 2, programs_blocks=_NF4_BLOCKS,
    )  # fmt: skip
