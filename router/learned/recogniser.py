"""A learned agent recogniser that has never seen a task out of scope: one small language model an agent.

A task belongs to the agent whose model explains its words best, unless it is not familiar: neither well explained, nor
much better by one agent than by the next. How familiar is familiar enough comes from held-out tasks of the agent's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from router.features import tokens
from router.learned.store import Array, Part, RouterModelInvalid

UNSEEN_WORDS = 50_000
"""words that share the probability of what an agent's model has not seen"""
UNSEEN_SHARE = 0.1
PAIR_BELIEF = 20.0
"""occurrences of a word from which on pairs that begin with it are believed more than the words alone"""
LEAST_LOG = -14.0
"""of one word; bounds what a single odd word can do to a short task"""
REFUSED = 0.015
"""share of an agent's own tasks that may be refused; in-scope tasks sent to the base cost less than strangers' tasks
sent to an adapter, but each is one that the adapter would have done better"""
FOLDS = 3
MOST_WORDS, MOST_PAIRS = 50_000, 200_000
"""the commonest; a version stays in the memory of every worker"""
LEAST_PAIRS = 2
"""occurrences of a pair over all agents, below which it is forgotten"""


class FamiliarityRecogniser:
    """Word and word-pair models of the agents, side by side in arrays with a column an agent.

    With s(a) the mean log probability of the task's words under agent a, and the best two agents a and b, familiarity
    is s(a) + (s(a) - s(b)) in nats a word. The confidence is a logistic function of it, 0.5 at the agent's threshold.
    """

    KIND = "familiarity"

    def __init__(self, agents: Sequence[str], models: _Models, thresholds: Array, width: float) -> None:
        self._agents = list(agents)
        self._models = models
        self._thresholds = thresholds
        self._width = width

    @property
    def agents(self) -> Sequence[str]:
        """Those that it was fitted on."""
        return self._agents

    def recognise(self, text: str) -> tuple[str | None, float]:
        """Give the likeliest agent, or None where the task is not familiar, and the confidence in that agent."""
        best, familiarity = familiar(self._models.explain(tokens(text)))
        confidence = _logistic((familiarity - float(self._thresholds[best])) / self._width)
        return (self._agents[best] if confidence >= 0.5 else None), confidence

    @classmethod
    def fit(cls, texts: Sequence[str], agents: Sequence[str], *, seed: int = 0) -> FamiliarityRecogniser:
        """Fit on tasks and their agents, two agents at least."""
        names = sorted(set(agents))
        places = {name: place for place, name in enumerate(names)}
        agent = np.array([places[name] for name in agents])
        words = [tokens(text) for text in texts]
        best, familiarity = _held_out(words, agent, len(names), seed)
        right = best == agent
        thresholds = np.array(
            [_quantile(familiarity[right & (agent == place)], REFUSED) for place in range(len(names))]
        )
        width = _fit_width(familiarity - thresholds[best], right)
        return cls(names, _Models.fit(words, agent, len(names)), thresholds.astype(np.float32), width)

    def part(self) -> Part:
        """To save."""
        models = self._models.part()
        settings = {**models.settings, "agents": self._agents, "width": self._width}
        return Part(self.KIND, settings, {**models.arrays, "thresholds": self._thresholds})

    @classmethod
    def from_part(cls, part: Part) -> FamiliarityRecogniser:
        """From what was saved. Raises RouterModelInvalid."""
        agents, width = part.setting("agents", list), part.setting("width", float)
        if len(agents) < 2 or not all(isinstance(agent, str) for agent in agents) or not 0 < width < math.inf:
            raise RouterModelInvalid("the recogniser knows fewer than two agents, or no finite width")
        return cls(agents, _Models.from_part(part, len(agents)), part.array("thresholds", len(agents)), width)


class _Models:
    """P(word | agent), P(word | word before, agent), and how much the second is believed; a column an agent."""

    def __init__(self, words: Sequence[str], pairs: Sequence[str], word: Array, pair: Array, belief: Array) -> None:
        self._words = list(words)
        self._pairs = list(pairs)
        self._word_place = {each: place for place, each in enumerate(self._words, start=1)}
        self._pair_place = {each: place for place, each in enumerate(self._pairs, start=1)}
        # row 0 is for what is not known
        self._word, self._pair, self._belief = word, pair, belief

    def explain(self, words: Sequence[str]) -> Array:
        """Mean log probability a word under each agent; shape (agents,). That of a task without words is the least."""
        if not words:
            return np.full(self._word.shape[1], LEAST_LOG)
        known, paired = self._word_place, self._pair_place
        places = np.array([known.get(word, 0) for word in words])
        pairs = np.array([0] + [paired.get(f"{left} {right}", 0) for left, right in pairwise(words)])
        before = np.concatenate([[0], places[:-1]])
        belief = self._belief[before]
        probability = belief * self._pair[pairs] + (1 - belief) * self._word[places]
        return np.asarray(np.maximum(np.log(probability), LEAST_LOG).mean(axis=0))

    @classmethod
    def fit(cls, texts: Sequence[Sequence[str]], agent: Array, agents: int) -> _Models:
        """Count words and pairs."""
        words: Counter[tuple[str, int]] = Counter()
        pairs: Counter[tuple[str, int]] = Counter()
        for text, owner in zip(texts, agent.tolist(), strict=True):
            words.update((word, owner) for word in text)
            pairs.update((f"{left} {right}", owner) for left, right in pairwise(text))
        vocabulary, counts = _table(words, agents, least=1, most=MOST_WORDS)
        kept = frozenset(vocabulary)
        pairs = Counter({key: count for key, count in pairs.items() if key[0].split(" ", 1)[0] in kept})
        known, pair_counts = _table(pairs, agents, least=LEAST_PAIRS, most=MOST_PAIRS)
        place = {word: row for row, word in enumerate(vocabulary, start=1)}
        first = np.array([0] + [place[pair.split(" ", 1)[0]] for pair in known])
        total = np.maximum(counts.sum(axis=0), 1)
        return cls(
            vocabulary,
            known,
            ((1 - UNSEEN_SHARE) * counts / total + UNSEEN_SHARE / UNSEEN_WORDS).astype(np.float32),
            (pair_counts / np.maximum(counts[first], 1)).astype(np.float32),
            (counts / (counts + PAIR_BELIEF)).astype(np.float32),
        )

    def part(self) -> Part:
        """To save, as a share of the recogniser's part."""
        arrays = {"word": self._word, "pair": self._pair, "belief": self._belief}
        return Part("language-models", {"words": self._words, "pairs": self._pairs}, arrays)

    @classmethod
    def from_part(cls, part: Part, agents: int) -> _Models:
        """From what was saved. Raises RouterModelInvalid."""
        words, pairs = part.setting("words", list), part.setting("pairs", list)
        if not all(isinstance(each, str) for each in (*words, *pairs)):
            raise RouterModelInvalid("the recogniser's words hold what is no text")
        word = part.array("word", len(words) + 1, agents)
        if not (word > 0).all():
            raise RouterModelInvalid("the recogniser holds words of no probability")
        belief, pair = part.array("belief", len(words) + 1, agents), part.array("pair", len(pairs) + 1, agents)
        if not all(((each >= 0) & (each <= 1)).all() for each in (word, belief, pair)):
            raise RouterModelInvalid("the recogniser holds probabilities that are none")
        return cls(words, pairs, word, pair, belief)


def familiar(explained: Array) -> tuple[int, float]:
    """The best agent and the familiarity, see `FamiliarityRecogniser`; at least two agents."""
    second, best = np.argsort(explained)[-2:]
    return int(best), float(2 * explained[best] - explained[second])


def _held_out(words: Sequence[Sequence[str]], agent: Array, agents: int, seed: int) -> tuple[Array, Array]:
    """Best agent and familiarity of each text under models that have not seen it, nor its repeats."""
    _, same = np.unique([" ".join(text) for text in words], return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(same.max() + 1) % FOLDS)[same]
    best, familiarity = np.zeros(len(words), int), np.zeros(len(words))
    for number in range(FOLDS):
        seen = np.flatnonzero(fold != number)
        models = _Models.fit([words[place] for place in seen], agent[seen], agents)
        for place in np.flatnonzero(fold == number):
            best[place], familiarity[place] = familiar(models.explain(words[place]))
    return best, familiarity


def _table(counts: Counter[tuple[str, int]], agents: int, *, least: int, most: int) -> tuple[list[str], Array]:
    """Names in order, and their counts by agent with an empty row ahead.

    Those that occur less than `least` go, and all but the `most` commonest.
    """
    totals: Counter[str] = Counter()
    for (name, _), count in counts.items():
        totals[name] += count
    often = sorted((name for name, total in totals.items() if total >= least), key=lambda name: (-totals[name], name))
    names = sorted(often[:most])
    place = {name: row for row, name in enumerate(names, start=1)}
    table = np.zeros((len(names) + 1, agents))
    for (name, owner), count in counts.items():
        if name in place:
            table[place[name], owner] = count
    return names, table


def _quantile(values: Array, share: float) -> float:
    """The value under which `share` of them lie; where there are none, nothing is familiar."""
    return float(np.quantile(values, share)) if len(values) else 0.0


def _fit_width(above: Array, right: Array) -> float:
    """Width of the logistic function with which the mean confidence in what is decided is the share that is right.

    `above` is the distance from the threshold. What is decided of a held-out task is its own agent or, under the
    threshold, out of scope, which is wrong for each of them.
    """
    share = (right & (above >= 0)).mean()
    low, high = 1e-3, 20.0
    for _ in range(40):
        width = math.sqrt(low * high)
        sure = (1 / (1 + np.exp(-np.minimum(np.abs(above) / width, 50)))).mean()
        low, high = (width, high) if sure > share else (low, width)
    return width


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, value))))
