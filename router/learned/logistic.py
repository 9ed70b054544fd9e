"""The simplest calibration: a probability as a logistic function of one score (Platt 1999)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from router.learned.store import Array

STEPS = 25
RIDGE = 1e-6
"""keeps the curvature invertible where all scores are equal"""
FARTHEST = 30.0


class Line(NamedTuple):
    """P = 1 / (1 + exp(-(bias + slope * score)))."""

    bias: float
    slope: float

    def probability(self, score: float) -> float:
        """P at a score."""
        return 1 / (1 + math.exp(-max(-FARTHEST, min(FARTHEST, self.bias + self.slope * score))))


def fit_line(score: Array, outcome: Array, weights: Array | None = None) -> Line:
    """The likeliest line, by Newton's method; outcomes are in [0, 1], arrays have the shape (rows,)."""
    weights = np.ones(len(score)) if weights is None else weights
    design = np.stack([np.ones(len(score)), score], axis=1)
    line = np.zeros(2)
    for _ in range(STEPS):
        believed = 1 / (1 + np.exp(-np.clip(design @ line, -FARTHEST, FARTHEST)))
        curvature = (design * (weights * believed * (1 - believed))[:, None]).T @ design
        surplus = design.T @ (weights * (outcome - believed))
        line = line + np.linalg.solve(curvature + RIDGE * np.eye(2), surplus)
    return Line(float(line[0]), float(line[1]))
