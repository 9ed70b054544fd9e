"""What is done when memory runs out, in this order: halve the batch, recompute activations, 4-bit weights, offload."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU_SIGNS = ("can't allocate memory", "not enough memory", "cannot allocate memory")
"""of torch's CPU allocator, which raises a plain RuntimeError"""


@dataclass(frozen=True, slots=True)
class Thrift:
    """How memory is saved. `micro_tokens` are those of one forward pass; the step's gradient stays the same."""

    micro_tokens: int
    checkpointing: bool = False
    four_bit: bool = False
    offload: bool = False

    def halved(self, held: int) -> Thrift:
        """With half of the `held` tokens that were too many."""
        return dataclasses.replace(self, micro_tokens=max(1, min(self.micro_tokens, held) // 2))

    def next(self, *, on_gpu: bool, may_quantise: bool) -> Thrift | None:
        """The next way of saving, once a single row is too much; None when all are in use."""
        if not self.checkpointing:
            return dataclasses.replace(self, checkpointing=True)
        if on_gpu and may_quantise and not self.four_bit:
            return dataclasses.replace(self, four_bit=True)
        if on_gpu and not self.offload:
            return dataclasses.replace(self, offload=True)
        return None

    def __str__(self) -> str:
        ways = [f"{self.micro_tokens} tokens at once"]
        ways += ["checkpointing"] if self.checkpointing else []
        ways += ["4-bit weights"] if self.four_bit else []
        ways += ["activations on the host"] if self.offload else []
        return ", ".join(ways)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or on the host."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in CPU_SIGNS)


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that nobody uses."""
    import torch

    free_memory()
    return torch.cuda.mem_get_info(device)[0]


def free_memory() -> None:
    """Give back what a failed pass left behind."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
