"""All numbers of the recipe, in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

AGENTS = ("legal", "security", "support")
"""agents with a demo adapter; each has a file in `texts/`"""


@dataclass(frozen=True)
class Recipe:
    """Sizes, steps and rates. `tokens_per_batch` counts padded tokens; rates are peaks of a cosine schedule."""

    seed: int = 20

    vocab_size: int = 3072
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 768
    context: int = 2048

    base_documents: int = 90_000
    base_steps: int = 1000
    base_rate: float = 2e-3
    tokens_per_batch: int = 4096

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1
    adapter_steps: int = 450
    adapter_rate: float = 2e-3

    holdout_per_label: int = 26
    threads: int = 2

    def scaled(self, factor: float) -> Recipe:
        """The same with `factor` times the steps and documents, for a quick look."""
        return replace(
            self,
            base_documents=max(400, int(self.base_documents * factor)),
            base_steps=max(4, int(self.base_steps * factor)),
            adapter_steps=max(4, int(self.adapter_steps * factor)),
        )
