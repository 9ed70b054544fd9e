"""A learned agent recogniser: TF-IDF and logistic regression, one against the rest, calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from router.learned.linear import MIN_TEXTS, sparse
from router.learned.store import Array, Part, RouterModelInvalid
from router.learned.terms import Terms

THRESHOLD = 0.5
C = 10.0


class LinearRecogniser:
    """One logistic regression an agent. Under `THRESHOLD` the task is out of scope."""

    KIND = "terms-recogniser"

    def __init__(self, agents: Sequence[str], terms: Terms, weights: Array, bias: Array) -> None:
        self._agents = list(agents)
        self._terms = terms
        self._weights = weights
        self._bias = bias

    def recognise(self, text: str) -> tuple[str | None, float]:
        """Give the likeliest agent, or None, and its probability."""
        found = self._terms.vector(text)
        if not found:
            return None, 0.0
        places = [place for place, _ in found]
        scores = self._bias + np.array([value for _, value in found]) @ self._weights[places]
        best = int(scores.argmax())
        confidence = 1 / (1 + math.exp(-max(-50.0, float(scores[best]))))
        return (self._agents[best] if confidence >= THRESHOLD else None), confidence

    @classmethod
    def fit(cls, texts: Sequence[str], agents: Sequence[str], *, seed: int = 0) -> LinearRecogniser:
        """Fit on texts and their agents."""
        from sklearn.linear_model import LogisticRegression

        terms = Terms.fit(texts, min_texts=MIN_TEXTS)
        matrix = sparse(terms, texts)
        names = sorted(set(agents))
        weights, bias = np.zeros((len(terms), len(names)), np.float32), np.zeros(len(names), np.float32)
        for place, name in enumerate(names):
            model = LogisticRegression(C=C, max_iter=500, random_state=seed)
            model.fit(matrix, np.array([agent == name for agent in agents]))
            weights[:, place], bias[place] = model.coef_[0], model.intercept_[0]
        return cls(names, terms, weights, bias)

    def part(self) -> Part:
        """To save."""
        terms = self._terms.part()
        settings = {**terms.settings, "agents": self._agents}
        return Part(self.KIND, settings, {**terms.arrays, "weights": self._weights, "bias": self._bias})

    @classmethod
    def from_part(cls, part: Part) -> LinearRecogniser:
        """From what was saved. Raises RouterModelInvalid."""
        terms, agents = Terms.from_part(part), part.setting("agents", list)
        if not agents or not all(isinstance(agent, str) for agent in agents):
            raise RouterModelInvalid("the recogniser knows no agents")
        shape = (len(terms), len(agents))
        return cls(agents, terms, part.array("weights", *shape), part.array("bias", len(agents)))
