"""Fit DAAO's variational head (arXiv 2509.11079). Needs torch; `router.learned.daao` runs what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from router.features import excerpt
from router.learned import RouteRow
from router.learned.daao import HIDDEN, LATENT, VariationalOutcomes, forward
from router.learned.encode import Encoder
from router.learned.logistic import fit_line
from router.learned.store import Array
from router.learned.terms import MIN_TEXTS

STEP = 0.1
"""how far from the present difficulty the target lies: below where the weak tier was right, above where it was wrong"""
KL_WEIGHT = 0.01
STEPS = 800
BATCH = 128
LEARNING_RATE = 3e-3


def fit_daao(rows: Sequence[RouteRow], seed: int = 0) -> VariationalOutcomes:
    """Fit the head, then each tier's outcome as a function of the difficulty. Raises ImportError without torch."""
    encoder, encoded = Encoder.fit([excerpt(row.prompt) for row in rows], min_texts=MIN_TEXTS, seed=seed)
    embedding = np.concatenate([encoded.form, encoded.topics], axis=1)
    weights = np.array([row.weight for row in rows])
    weak, strong = np.array([row.weak for row in rows]), np.array([row.strong for row in rows])
    layers = _train(embedding, weak, weights, seed)
    difficulty = forward(layers, embedding)[:, 0]
    lines = np.array([fit_line(difficulty, outcome, weights) for outcome in (weak, strong)])
    return VariationalOutcomes(encoder, layers, lines)


def _train(embedding: Array, weak: Array, weights: Array, seed: int) -> dict[str, Array]:
    """The layers' weights, as `router.learned.daao` names them."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, log_variance = nn.Linear(embedding.shape[1], LATENT), nn.Linear(embedding.shape[1], LATENT)
        hidden, difficulty = nn.Linear(LATENT, HIDDEN), nn.Linear(HIDDEN, 1)
        parts = nn.ModuleList([mean, log_variance, hidden, difficulty])
        optimiser = torch.optim.Adam(parts.parameters(), lr=LEARNING_RATE)
        inputs, right, weight = (torch.tensor(each, dtype=torch.float32) for each in (embedding, weak, weights))
        for _ in range(STEPS):
            batch = torch.randint(len(inputs), (BATCH,))
            mu, log_var = mean(inputs[batch]), log_variance(inputs[batch])
            z = mu + torch.exp(log_var / 2) * torch.randn_like(mu)
            d = torch.sigmoid(difficulty(torch.relu(hidden(z))))[:, 0]
            # an outcome between right and wrong moves the target by its share
            target = (d + STEP * (1 - 2 * right[batch])).clamp(0, 1).detach()
            kl = -0.5 * (1 + log_var - mu**2 - log_var.exp()).sum(dim=1)
            loss = (weight[batch] * ((d - target) ** 2 + KL_WEIGHT * kl)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    layers: dict[str, Any] = {"z": mean, "hidden": hidden, "difficulty": difficulty}
    return {
        f"{name}_{kind}": np.ascontiguousarray(values.detach().numpy().T)
        for name, layer in layers.items()
        for kind, values in (("weight", layer.weight), ("bias", layer.bias))
    }
