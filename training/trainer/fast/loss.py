"""Cross entropy over a large vocabulary without its logits: a few hundred rows at a time, gradients on the way forward.

Rows without a label never meet the language-model head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
_CHUNK_ELEMENTS = 2**28
"""logits at a time: 512 MiB in 16 bits"""
_CHUNK_STEP = 128


def shifted(labels: Tensor) -> Tensor:
    """Labels [B, S] of the next token: what position i has to predict, `IGNORED` at the end."""
    return torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous()


def token_losses(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    divisor: Tensor | float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The sum of -log p(target) over rows with a target, divided by `divisor`, default: the number of such rows.

    `hidden` [B, S, H] after the last norm, `head` [V, H] frozen, `targets` [B, S], `weights` [B, S] float32 of each
    row's loss, default: 1. Returns a float32 scalar.
    """
    rows = (targets.reshape(-1) != IGNORED).nonzero().squeeze(1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    every = rows.numel() == flat.shape[0]
    chosen, wanted = (flat, targets.reshape(-1)) if every else (flat[rows], targets.reshape(-1)[rows])
    chosen_weights = None if weights is None else weights.reshape(-1)[rows]
    total: Tensor = _Loss.apply(chosen, head, wanted, chosen_weights)  # type: ignore[no-untyped-call]
    return total / (max(rows.numel(), 1) if divisor is None else divisor)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None
        losses = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        step = max(_CHUNK_ELEMENTS // head.shape[0] // _CHUNK_STEP, 1) * _CHUNK_STEP
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                part = slice(start, start + step)
                logits = hidden[part] @ head.t()
                _cross_entropy(logits, targets[part], losses[part], backward=needed)
                if gradient is not None:
                    torch.mm(logits, head, out=gradient[part])
                del logits
        if weights is not None:
            losses *= weights
            if gradient is not None:
                gradient *= weights[:, None].to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale.to(gradient.dtype), None, None, None


def _cross_entropy(logits: Tensor, targets: Tensor, losses: Tensor, *, backward: bool) -> None:
    """Write the losses [T]; with `backward`, the gradient of their sum replaces `logits` [T, V]."""
    if logits.is_cuda:
        from training.trainer.fast import kernels

        return kernels.cross_entropy(logits, targets, losses, backward=backward)
    wide = logits.float()
    partition = wide.logsumexp(-1, keepdim=True)
    losses.copy_((partition - wide.gather(1, targets[:, None])).squeeze(1))
    if backward:
        logits.copy_((wide - partition).exp().scatter_add(1, targets[:, None], -torch.ones_like(partition)))
    return None
