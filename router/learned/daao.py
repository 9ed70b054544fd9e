"""DAAO's variational head (arXiv 2509.11079), as it scores a request: embedding, mean of z, MLP, difficulty.

It is fitted by `training.routing.daao`, which needs torch; this side needs numpy alone. The paper embeds the query with
a language model; here, where a request has less than 2 ms, the embedding is the form and the topics of the task.
"""

from __future__ import annotations

import numpy as np

from router.features import Features
from router.learned.encode import Encoder
from router.learned.logistic import Line
from router.learned.outcomes import TierOutcomes
from router.learned.store import Array, Part

LATENT = 32
HIDDEN = 64
LAYERS: dict[str, tuple[int, int]] = {"z": (-1, LATENT), "hidden": (LATENT, HIDDEN), "difficulty": (HIDDEN, 1)}
"""layers by name, with inputs and outputs; of the first, the inputs are the embedding's"""


class VariationalOutcomes:
    """Difficulty d in [0, 1] of a task, and both tiers' outcomes as logistic functions of it.

    `layers` holds an array `<layer>_weight` of the shape (inputs, outputs) and `<layer>_bias` for each of `LAYERS`;
    `lines` has the rows weak and strong, and the columns bias and slope.
    """

    KIND = "daao"

    def __init__(self, encoder: Encoder, layers: dict[str, Array], lines: Array) -> None:
        self._encoder = encoder
        self._layers = layers
        self._lines = lines
        self._weak, self._strong = (Line(*line) for line in lines.tolist())

    def difficulty(self, text: str) -> float:
        """D of one task."""
        task = self._encoder.encode(text)
        return float(forward(self._layers, np.concatenate([task.form, task.topics]))[0])

    def outcomes(self, features: Features, text: str) -> TierOutcomes:
        """What tasks of that difficulty came to."""
        difficulty = self.difficulty(text)
        return TierOutcomes(self._weak.probability(difficulty), self._strong.probability(difficulty))

    def part(self) -> Part:
        """To save."""
        encoder = self._encoder.part()
        return Part(self.KIND, encoder.settings, {**encoder.arrays, **self._layers, "lines": self._lines})

    @classmethod
    def from_part(cls, part: Part) -> VariationalOutcomes:
        """From what was saved. Raises RouterModelInvalid."""
        encoder = Encoder.from_part(part)
        layers = {}
        for name, (inputs, outputs) in LAYERS.items():
            width = encoder.forms + encoder.topics if inputs < 0 else inputs
            layers[f"{name}_weight"] = part.array(f"{name}_weight", width, outputs)
            layers[f"{name}_bias"] = part.array(f"{name}_bias", outputs)
        return cls(encoder, layers, part.array("lines", 2, 2))


def forward(layers: dict[str, Array], embedding: Array) -> Array:
    """Difficulty of one embedding, shape (1,), or of many rows, shape (rows, 1)."""
    z = embedding @ layers["z_weight"] + layers["z_bias"]
    hidden = np.maximum(z @ layers["hidden_weight"] + layers["hidden_bias"], 0)
    score = hidden @ layers["difficulty_weight"] + layers["difficulty_bias"]
    return np.asarray(1 / (1 + np.exp(-np.clip(score, -30, 30))))
