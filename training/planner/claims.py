"""What reports often claim about a 9B model, beside what its config says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.planner.memory import GIB, NF4_BITS, memory_of, trained, weight_bytes
from training.planner.recipe import Recipe
from training.planner.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Claim:
    """One figure: as claimed, as it is, and why they differ."""

    what: str
    claimed: str
    true: str
    why: str


def nine_billion(shape: ModelShape, recipe: Recipe) -> tuple[Claim, ...]:
    """The table for `shape` under `recipe` (QLoRA; rank, batch and length are used)."""
    recipe = replace(recipe, method="qlora", loss="fused")
    counts, total = shape.parameters, shape.parameters.total
    half, packed = 2 * total, weight_bytes(shape, recipe)
    learned, size = trained(shape, recipe)
    peak = memory_of(shape, recipe).peak.total
    with_logits = memory_of(shape, replace(recipe, loss="plain")).peak.total
    outside = total - counts.linear_weights
    bare = 4 * total / 8
    return (
        Claim(
            "parameters",
            "9 B",
            f"{total:,}",
            "the name is rounded; every figure below follows from the config",
        ),
        Claim(
            "weights in fp16",
            "16.76 GB",
            f"{half / GIB:.2f} GiB = {half / 1e9:.2f} GB",
            "16.76 is 9.0e9 x 2 bytes in GiB, called GB",
        ),
        Claim(
            "weights in 4 bit",
            "4.19 GB (saves 75 %)",
            f"{packed / GIB:.2f} GiB (saves {1 - packed / half:.0%})",
            f"NF4 takes {NF4_BITS:.3f} bits a parameter with its scales, and {outside / 1e6:,.0f} M parameters "
            f"(embeddings, norms) stay in 16 bits; 4 bits for each would be {bare / GIB:.2f} GiB",
        ),
        Claim(
            "adapter parameters",
            "4.2 M",
            f"{learned / 1e6:.1f} M at rank {recipe.rank} on all linear layers",
            "4.2 M is rank 16 on one 4096 x 4096 projection in each of 32 layers; the usual recipe adapts all seven",
        ),
        Claim(
            "adapter size",
            "8 MB",
            f"{2 * learned / 1e6:.0f} MB in 16 bits, {4 * learned / 1e6:.0f} MB in fp32 as trained",
            "8 MB is 4.2 M x 2 bytes",
        ),
        Claim(
            "adapter share",
            "0.19 %",
            f"{learned / total:.2%} of the parameters",
            "4.2 M of 9 B are 0.047 %; 0.19 % divides the adapter's 16-bit bytes by the base's 4-bit bytes",
        ),
        Claim(
            f"training, batch {recipe.batch} x {recipe.length}",
            "5.89 GB",
            f"{peak / GIB:.2f} GiB ({with_logits / GIB:.2f} GiB if all logits are made at once)",
            "5.89 starts from 4.19, and the layers' checkpoints, one layer's activations, the loss and Adam in "
            f"{2 * size} bytes a parameter need {(peak - packed) / GIB:.2f} GiB beside the weights",
        ),
    )
