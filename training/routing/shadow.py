"""Shadow scoring: whether another router version would have predicted later cases better than the one that serves.

The estimator: of each later case the candidate that answered is known, and its reward r; no other candidate's is. A
version is scored by the log loss of the probability p that it gives *that* candidate,

    -(r * log(p) + (1 - r) * log(1 - p)),

with p corrected by evidence as it would be in serving, from the earlier cases alone. The difference between two
versions is averaged within sessions, and sessions are resampled (paired bootstrap). That needs no propensities, which
a deterministic policy does not have, and is unbiased for the cases that the serving policy makes. It says nothing of
candidates that did not answer: a version takes over because its predictions are better where they could be checked.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from router import Evidence, Tally
from router.evidence import BANDS, LEAST, MOST, NO_CASES
from training.routing.predicting import Asked, Predictor

RESAMPLES = 2000
LEAST_SESSIONS = 20
"""later sessions without which nothing takes over: the bootstrap of one session has no width, of a few too little"""
ERROR = 0.05
"""how often a version that predicts no better takes over, by the bound"""


class Rewarded(NamedTuple):
    """One rewarded case; `session` is what is resampled."""

    session: str
    asked: Asked
    reward: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean log losses on the later cases, and the lower bound of what the new version gains (per session)."""

    cases: int
    sessions: int
    serving: float
    candidate: float
    gain: float
    lower: float

    @property
    def is_better(self) -> bool:
        """Whether the new version may take over."""
        return self.sessions >= LEAST_SESSIONS and self.lower > 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "cases": self.cases,
            "sessions": self.sessions,
            "log_loss_serving": round(self.serving, 5),
            "log_loss_candidate": round(self.candidate, 5),
            "gain": round(self.gain, 5),
            "gain_lower": round(self.lower, 5),
        }


def compare(
    serving: Predictor,
    candidate: Predictor,
    earlier: Sequence[Rewarded],
    later: Sequence[Rewarded],
    *,
    weight: float,
    seed: int = 0,
) -> Comparison:
    """Compare on the `later` cases (at least one), each with the evidence of the `earlier` ones."""
    old, new = (_losses(each, earlier, later, weight) for each in (serving, candidate))
    gains: dict[str, list[float]] = defaultdict(list)
    for case, before, after in zip(later, old, new, strict=True):
        gains[case.session].append(before - after)
    means = np.array([float(np.mean(each)) for each in gains.values()])
    drawn = np.random.default_rng(seed).integers(0, means.size, size=(RESAMPLES, means.size))
    lower = float(np.quantile(means[drawn].mean(axis=1), ERROR))
    return Comparison(len(later), means.size, float(np.mean(old)), float(np.mean(new)), float(means.mean()), lower)


def evidence_of(predictor: Predictor, cases: Sequence[Rewarded], weight: float) -> Evidence:
    """What `cases` say beyond the predictions."""
    tallies: dict[tuple[str, str], list[Tally]] = defaultdict(lambda: [NO_CASES] * BANDS)
    for case in cases:
        prediction = predictor.predict(case.asked)
        bands = tallies[case.asked.agent, case.asked.candidate]
        sums = bands[prediction.band]
        bands[prediction.band] = Tally(
            sums.cases + 1, sums.reward + case.reward, sums.expected + prediction.probability
        )
    return Evidence(tallies, weight)


def _losses(predictor: Predictor, earlier: Sequence[Rewarded], later: Sequence[Rewarded], weight: float) -> list[float]:
    evidence = evidence_of(predictor, earlier, weight)
    losses = []
    for case in later:
        difficulty, predicted = predictor.predict(case.asked)
        corrected, _ = evidence.corrected(case.asked.agent, case.asked.candidate, predicted, difficulty)
        probability = min(max(corrected, LEAST), MOST)
        losses.append(-(case.reward * math.log(probability) + (1 - case.reward) * math.log(1 - probability)))
    return losses
