"""One decoder layer of the Qwen2/Llama family as one node of the autograd graph.

It saves its input alone and computes the rest again on the way back (all but the last product, whose result nobody
needs), or, if it is `kept`, saves what the matrix products made, so that nothing is multiplied twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.trainer.fast.linears import LinearGroup
from training.trainer.fast.pointwise import rms_norm, rms_norm_backward, rotate, swiglu, swiglu_backward

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""query, key, value [B, heads, S, D] to [B, S, heads, D]"""


@dataclass(slots=True)
class Attention:
    """What the attention half leaves behind: the small graph from q, k, v to `attended`, and the residual after it."""

    inputs: tuple[Tensor, Tensor, Tensor]
    attended: Tensor
    middle: Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of a layer needs beside its input: rotary tables [rows, D], attention with its mask, and a seed.

    Each group of linears draws its dropout from a number of its own at and above `seed`.
    """

    cos: Tensor
    sin: Tensor
    attend: Attend
    seed: int

    @property
    def qkv(self) -> int:
        """Of q, k and v."""
        return self.seed

    @property
    def output(self) -> int:
        """Of attention's output."""
        return self.seed + 1

    @property
    def gate_up(self) -> int:
        """Of gate and up."""
        return self.seed + 2

    @property
    def down(self) -> int:
        """Of down."""
        return self.seed + 3


@dataclass(slots=True)
class FusedLayer:
    """The parts of a decoder layer. Rows are tokens: T = B * S."""

    qkv: LinearGroup
    output: LinearGroup
    gate_up: LinearGroup
    down: LinearGroup
    before_attention: Any
    before_mlp: Any
    head_size: int
    heads: int
    groups: int
    """key-value heads"""
    kept: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All adapters' parameters, in the order of the gradients that `backward` returns."""
        return [p for group in (self.qkv, self.output, self.gate_up, self.down) for p in group.parameters]

    @property
    def dropout(self) -> float:
        """Share of their input that the adapters do not read."""
        return max(group.dropout for group in (self.qkv, self.output, self.gate_up, self.down))

    def attention(self, x: Tensor, shape: tuple[int, int], call: Call, *, anew: bool) -> Attention:
        """The first half: norm, q, k and v, rotation, attention, output, residual. `x` [T, H], `shape` (B, S)."""
        normed = self._normed(self.before_attention, x, self.qkv)
        self.qkv.load(x, anew=anew)
        qkv = self.qkv.forward(normed, call.qkv)
        query, key, value = self._split(qkv, shape)
        rotate(query, qkv[:, : self.heads * self.head_size], call.cos, call.sin)
        rotate(key, self._keys(qkv), call.cos, call.sin)
        with torch.enable_grad():
            leaves = tuple(part.transpose(1, 2).detach().requires_grad_() for part in (query, key, value))
            attended = call.attend(*leaves)
        wide = self.output.input_buffer(x)
        wide[:, : self.output.inputs] = attended.detach().reshape(x.shape[0], -1)
        self.output.load(x, anew=anew)
        return Attention(leaves, attended, self.output.forward(wide, call.output, residual=x))  # type: ignore[arg-type]

    def widen(self, middle: Tensor, call: Call, *, anew: bool) -> Tensor:
        """Gate and up [T, 2 I + R]; the last R columns are room for their gradients."""
        normed = self._normed(self.before_mlp, middle, self.gate_up)
        self.gate_up.load(middle, anew=anew)
        buffer = self.gate_up.output_buffer(middle)
        self.gate_up.forward(normed, call.gate_up, out=buffer[:, : self.gate_up.outputs])
        return buffer

    def narrow(self, gate_up: Tensor, middle: Tensor, call: Call) -> Tensor:
        """The layer's result [T, H]."""
        activated = self.down.input_buffer(middle)
        swiglu(gate_up, activated[:, : self.down.inputs])
        self.down.load(middle, anew=True)
        return self.down.forward(activated, call.down, residual=middle)

    def mlp_backward(
        self, gradient: Tensor, gate_up: Tensor, middle: Tensor, call: Call
    ) -> tuple[Tensor, list[Tensor]]:
        """The gradient of `middle` and of the adapters of gate, up and down; overwrites `gate_up`."""
        self.down.load(middle, anew=False)
        wide = self._output_gradient(self.down, gradient)
        activated = self.down.input_gradient(wide, call.down)
        swiglu_backward(gate_up, activated)
        of_down = self.down.adapter_gradients(wide, activated, call.down)
        del activated
        self.gate_up.load(middle, anew=False)
        through = self.gate_up.input_gradient(gate_up, call.gate_up)
        normed = self._normed(self.before_mlp, middle, self.gate_up)[:, : self.gate_up.inputs]
        of_gate_up = self.gate_up.adapter_gradients(gate_up, normed, call.gate_up)
        norm, out = self.before_mlp, torch.empty_like(middle)
        rms_norm_backward(middle, norm.weight, _epsilon(norm), gradient=through, residual=gradient, out=out)
        return out, of_gate_up + of_down

    def attention_backward(
        self, gradient: Tensor, x: Tensor, half: Attention, shape: tuple[int, int], call: Call, *, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of `x` (in the memory of `gradient`) and of the adapters of q, k, v and output."""
        self.output.load(x, anew=False)
        wide = self._output_gradient(self.output, gradient)
        of_attended = self.output.input_gradient(wide, call.output).view_as(half.attended)
        of_output = self.output.adapter_gradients(wide, half.attended.detach().reshape(x.shape[0], -1), call.output)
        query, key, value = torch.autograd.grad(half.attended, half.inputs, of_attended)
        buffer = self.qkv.output_buffer(x)
        rotate(query.transpose(1, 2), buffer[:, : self.heads * self.head_size], call.cos, call.sin, back=True)
        rotate(key.transpose(1, 2), self._keys(buffer), call.cos, call.sin, back=True)
        self._values(buffer).view(*shape, self.groups, self.head_size).copy_(value.transpose(1, 2))
        self.qkv.load(x, anew=False)
        through = self.qkv.input_gradient(buffer, call.qkv)
        normed = self._normed(self.before_attention, x, self.qkv)[:, : self.qkv.inputs]
        of_qkv = self.qkv.adapter_gradients(buffer, normed, call.qkv)
        if needs_input:
            norm = self.before_attention
            rms_norm_backward(x, norm.weight, _epsilon(norm), gradient=through, residual=gradient, out=gradient)
        return gradient if needs_input else None, of_qkv + of_output

    def _normed(self, norm: Any, x: Tensor, group: LinearGroup) -> Tensor:
        wide = group.input_buffer(x)
        rms_norm(x, norm.weight, _epsilon(norm), wide[:, : group.inputs])
        return wide

    @staticmethod
    def _output_gradient(group: LinearGroup, gradient: Tensor) -> Tensor:
        wide = group.output_buffer(gradient)
        wide[:, : group.outputs] = gradient
        return wide

    def _split(self, qkv: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [B, S, heads, D], views of `qkv`."""
        parts = qkv[:, : self.heads * self.head_size], self._keys(qkv), self._values(qkv)
        query, key, value = (part.unflatten(-1, (-1, self.head_size)).unflatten(0, shape) for part in parts)
        return query, key, value

    def _keys(self, qkv: Tensor) -> Tensor:
        start = self.heads * self.head_size
        return qkv[:, start : start + self.groups * self.head_size]

    def _values(self, qkv: Tensor) -> Tensor:
        start = (self.heads + self.groups) * self.head_size
        return qkv[:, start : start + self.groups * self.head_size]


class LayerFunction(torch.autograd.Function):
    """The node of the autograd graph: `apply(hidden [B, S, H], layer, call, *layer.parameters)`. Runs backward once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: FusedLayer, call: Call, *_adapters: nn.Parameter) -> Tensor:
        """The layer's result [B, S, H]."""
        with torch.autocast(hidden.device.type, enabled=False):
            x = hidden.reshape(-1, hidden.shape[-1])
            half = layer.attention(x, hidden.shape[:2], call, anew=True)  # type: ignore[arg-type]
            gate_up = layer.widen(half.middle, call, anew=True)
            out = layer.narrow(gate_up, half.middle, call)
        ctx.layer, ctx.call = layer, call
        ctx.made = (half, gate_up) if layer.kept and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden)
        return out.view_as(hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `hidden` and of the adapters."""
        (hidden,), layer, call = ctx.saved_tensors, ctx.layer, ctx.call
        shape, width = hidden.shape[:2], hidden.shape[-1]
        x = hidden.reshape(-1, width)
        if ctx.made is None:
            half = layer.attention(x, shape, call, anew=False)
            gate_up = layer.widen(half.middle, call, anew=False)
        else:
            half, gate_up = ctx.made
            ctx.made = None
        incoming = gradient.reshape(-1, width).contiguous()
        of_middle, of_mlp = layer.mlp_backward(incoming, gate_up, half.middle, call)
        del gate_up
        of_x, of_attention = layer.attention_backward(
            of_middle, x, half, shape, call, needs_input=ctx.needs_input_grad[0]
        )
        return None if of_x is None else of_x.view_as(hidden), None, None, *of_attention, *of_mlp


def _epsilon(norm: Any) -> float:
    return float(norm.variance_epsilon)
