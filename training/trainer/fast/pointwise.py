"""What lies between the matrix products of a layer: norm, rotation, SwiGLU, dropout. Triton on a GPU, else PyTorch.

Tensors are two-dimensional, a row a token; rows may have a stride, so that results land inside wider buffers.
The arithmetic is in float32, each result rounded once to the tensor's own type.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
    """Write the RMS norm of `x` [T, H] to `out` [T, H]."""
    if x.is_cuda:
        from training.trainer.fast import kernels

        return kernels.rms_norm(x, weight, epsilon, out)
    out.copy_(weight * (x.float() * _inverse_rms(x, epsilon)).to(x.dtype))
    return None


def rms_norm_backward(
    x: Tensor, weight: Tensor, epsilon: float, *, gradient: Tensor, residual: Tensor, out: Tensor
) -> None:
    """Write `residual` plus the gradient of the norm at `x` to `out`, which may be `residual`; all [T, H], dense."""
    if x.is_cuda:
        from training.trainer.fast import kernels

        return kernels.rms_norm_backward(x, weight, epsilon, gradient, residual, out)
    inverse = _inverse_rms(x, epsilon)
    normed, scaled = x.float() * inverse, gradient.float() * weight.float()
    out.copy_(residual.float() + inverse * (scaled - normed * (scaled * normed).mean(-1, keepdim=True)))
    return None


def rotate(source: Tensor, target: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> None:
    """Turn heads by their rotary angles (`back`: by minus those angles, which is the gradient).

    `source` [B, S, heads, D], dense in its last dimension alone; `target` [B * S, heads * D], which may be the same
    memory; `cos`, `sin` [S or B * S, D], both halves of D alike.
    """
    sign = -1.0 if back else 1.0
    if source.is_cuda:
        from training.trainer.fast import kernels

        return kernels.rotate(source, target, cos, sin, sign)
    batch, places, heads, size = source.shape
    shape = (-1, places, 1, size // 2)
    cosine, sine = cos[:, : size // 2].float().view(shape), sin[:, : size // 2].float().view(shape) * sign
    first, second = source.float().split(size // 2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    target.copy_(turned.reshape(batch * places, heads * size))
    return None


def swiglu(gate_up: Tensor, out: Tensor) -> None:
    """Write silu(gate) * up to `out` [T, I]; `gate_up` [T, >= 2 I] holds gate, then up."""
    if gate_up.is_cuda:
        from training.trainer.fast import kernels

        return kernels.swiglu(gate_up, out)
    width = out.shape[1]
    out.copy_(functional.silu(gate_up[:, :width]) * gate_up[:, width : 2 * width])
    return None


def swiglu_backward(gate_up: Tensor, gradient: Tensor) -> None:
    """In place: gate and up become their gradients, and `gradient` [T, I] becomes silu(gate) * up."""
    if gate_up.is_cuda:
        from training.trainer.fast import kernels

        return kernels.swiglu_backward(gate_up, gradient)
    width = gradient.shape[1]
    gate, up = gate_up[:, :width].float(), gate_up[:, width : 2 * width].float()
    sigmoid, incoming = gate.sigmoid(), gradient.float()
    activated = gate * sigmoid
    product = activated.to(gradient.dtype) * up.to(gradient.dtype)
    of_gate, of_up = incoming * up * (sigmoid + activated * (1 - sigmoid)), incoming * activated
    gate_up[:, :width], gate_up[:, width : 2 * width] = of_gate, of_up
    gradient.copy_(product)
    return None


def dropped(x: Tensor, share: float, seed: int) -> Tensor:
    """`x` [T, K] without a `share` of its elements, the others scaled up; `seed` alone says which."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.is_cuda:
        from training.trainer.fast import kernels

        kernels.dropped(x, out, share, seed, add=False)
        return out
    return torch.mul(x, _dropout_mask(x, share, seed), out=out)


def add_dropped(x: Tensor, out: Tensor, share: float, seed: int) -> None:
    """Add `dropped(x)` to `out` [T, K]."""
    if x.is_cuda:
        from training.trainer.fast import kernels

        return kernels.dropped(x, out, share, seed, add=True)
    out += x * _dropout_mask(x, share, seed)
    return None


def _dropout_mask(x: Tensor, share: float, seed: int) -> Tensor:
    random = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    return (random >= share).to(x.dtype) / (1 - share)


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)


class Norm(torch.autograd.Function):
    """RMS norm with a frozen weight that saves its input alone."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`x` [..., H] to the same shape."""
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon  # type: ignore[attr-defined]
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        rms_norm(x.reshape(-1, x.shape[-1]), weight, epsilon, out.view(-1, x.shape[-1]))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of `x`."""
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        width = x.shape[-1]
        out = torch.zeros_like(x, memory_format=torch.contiguous_format)
        flat, incoming = out.view(-1, width), gradient.reshape(-1, width).contiguous()
        epsilon = ctx.epsilon  # type: ignore[attr-defined]
        rms_norm_backward(x.reshape(-1, width), weight, epsilon, gradient=incoming, residual=flat, out=flat)
        return out, None, None
