"""Compare estimators on rows that they have not learned from, through the code that serves requests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from router.evaluation import metrics
from router.evaluation.baselines import Scorer, seen
from router.evaluation.contenders import BASELINES, REFERENCE, Contenders
from router.evaluation.folds import Split, splits
from router.evaluation.metrics import Array, Interval
from router.features import Features, extract, tokens
from router.learned import RouteRow
from router.share import NO_CALLS, ShareCall
from router.task import Task

ORACLE = "oracle"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""of strong calls, which are wanted in turn"""
INNER_FOLDS = 3
CHOICE_ROWS = 1000
"""training rows that the choice among estimators is made on, at most: it fits each of them so many times more"""
DEARER = 0.1
"""utility that the strong tier costs more, in the choice that is timed"""
PROMPT_CHARS = 2048
"""512 tokens at four characters each"""
TIMED = 400
"""prompts; the 99th percentile is the fifth slowest"""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Predictions:
    """What one estimator said of the rows that were held out from it; each array has the shape (rows,)."""

    score: Array
    weak: Array
    strong: Array


@dataclass(frozen=True)
class Figures:
    """One line of the comparison; None where a figure has no meaning: the oracle believes and computes nothing.

    Shares are in [0, 1], `ece` is that of the worse predicted tier. Times are milliseconds of one core's CPU time for
    features, score and choice of a 512-token prompt.
    """

    apgr: float
    apgr_ci: Interval
    cpt50: float
    cpt80: float
    ece: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    over_reference: Interval | None = None
    """95 % of the paired bootstrap of APGR minus the reference's, on the same resamples"""


@dataclass(frozen=True)
class Comparison:
    """All that came out: `rows` are those that were scored, `predictions` and `figures` go by the estimator's name.

    `chosen` is the learned estimator of the highest APGR in an inner cross-validation of training rows alone; over
    several folds, the one that most folds chose.
    """

    rows: Sequence[RouteRow]
    predictions: Mapping[str, Predictions]
    figures: Mapping[str, Figures]
    chosen: str
    shares: Mapping[str, Array]
    """strong shares of held-out rows, see `replayed`; shape (len(SHARES),)"""

    @property
    def gain(self) -> Array:
        """Strong outcome minus weak outcome; shape (rows,)."""
        return _gain(self.rows)


def compare(
    rows: Sequence[RouteRow],
    parts: Iterable[Split],
    everybody: Contenders,
    *,
    seed: int,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Fit everybody on each split's training rows and score its test rows. Raises TooFewRows and ValueError."""
    parts = list(parts)
    found = {name: np.full((3, len(rows)), np.nan) for name in everybody}
    votes: Counter[str] = Counter()
    scorers: dict[str, Scorer] = {}
    strong: dict[str, list[Array]] = {}
    for number, part in enumerate(parts, start=1):
        train = [rows[place] for place in part.train]
        votes[choose(train, everybody, seed=seed)] += 1
        test = [seen(rows[place].prompt) for place in part.test]
        for name, fit in everybody.items():
            progress(f"fold {number} of {len(parts)}: {name}")
            scorers[name] = scorer = fit(train, seed)
            found[name][:, part.test] = said = _predict(scorer, test)
            strong.setdefault(name, []).append(replayed(said[2] - said[1], seed=seed))
    held = np.sort(np.concatenate([part.test for part in parts]))
    scored = [rows[place] for place in held]
    predictions = {name: Predictions(*values[:, held]) for name, values in found.items()}
    figures = measure(scored, predictions, seed=seed)
    for name, scorer in scorers.items():
        progress(f"timing {name}")
        p50, p99 = timed(scorer, [row.prompt for row in scored])
        figures[name] = Figures(**{**vars(figures[name]), "p50_ms": p50, "p99_ms": p99})
    shares = {name: np.sum(counts, axis=0) / len(scored) for name, counts in strong.items()}
    return Comparison(scored, predictions, figures, votes.most_common(1)[0][0], shares)


def replayed(gain: Array, *, seed: int) -> Array:
    """Strong calls of each of `SHARES`, held as they are when serving; shape (len(SHARES),).

    Rows of those gains arrive in random order at a router that has had no calls, and what it decides moves its
    threshold (see `router.share`).
    """
    arriving = gain[np.random.default_rng(seed).permutation(len(gain))].tolist()
    counts = []
    for target in SHARES:
        state, strong = NO_CALLS, 0
        for each in arriving:
            call = ShareCall(("", ""), target, state.threshold, each, is_strong=each > state.threshold)
            state = state.after(call)
            strong += call.is_strong
        counts.append(strong)
    return np.array(counts)


def choose(train: Sequence[RouteRow], everybody: Contenders, *, seed: int) -> str:
    """Name the learned contender of the highest APGR in a cross-validation within the training rows."""
    places = np.random.default_rng(seed).permutation(len(train))[:CHOICE_ROWS]
    rows = [train[place] for place in places]
    learned = {name: fit for name, fit in everybody.items() if name not in BASELINES}
    scores = {name: np.zeros(len(rows)) for name in learned}
    units = {row.prompt if row.group is None else row.group for row in rows}
    for part in splits(rows, min(INNER_FOLDS, len(units)), seed=seed):
        inner = [rows[place] for place in part.train]
        test = [seen(rows[place].prompt) for place in part.test]
        for name, fit in learned.items():
            scores[name][part.test] = _predict(fit(inner, seed), test)[0]
    gain = _gain(rows)
    return max(learned, key=lambda name: metrics.apgr(gain, metrics.ranking(scores[name], seed)))


def measure(rows: Sequence[RouteRow], predictions: Mapping[str, Predictions], *, seed: int) -> dict[str, Figures]:
    """All figures but the times; the oracle, which knows the gain, comes last."""
    gain = _gain(rows)
    weak, strong = np.array([row.weak for row in rows]), np.array([row.strong for row in rows])
    scores = {name: said.score for name, said in predictions.items()} | {ORACLE: gain}
    orders = {name: metrics.ranking(score, seed) for name, score in scores.items()}
    resampled = dict(
        zip(orders, metrics.resampled_apgr(gain, list(orders.values()), seed=seed, unit=_units(rows)), strict=True)
    )
    figures = {}
    for name, order in orders.items():
        said = predictions.get(name)
        over = resampled[name] - resampled[REFERENCE] if REFERENCE in resampled and name != REFERENCE else None
        figures[name] = Figures(
            apgr=metrics.apgr(gain, order),
            apgr_ci=metrics.interval(resampled[name]),
            cpt50=metrics.cpt(gain, order, 0.5),
            cpt80=metrics.cpt(gain, order, 0.8),
            ece=None if said is None else max(metrics.ece(said.weak, weak), metrics.ece(said.strong, strong)),
            over_reference=None if over is None else metrics.interval(over),
        )
    return figures


def timed(scorer: Scorer, prompts: Sequence[str]) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds of this thread's CPU time, of what a request costs.

    From parsed messages to the choice between two tiers, for texts of `PROMPT_CHARS` made of the prompts.
    """
    texts = list(islice(_long(prompts), TIMED))
    spent = np.empty(len(texts))
    for number, text in enumerate(texts):
        tokens.cache_clear()  # every request brings a new text
        began = time.thread_time_ns()
        task = Task.from_messages(text)
        outcomes = scorer.judge(extract(task), task.text).outcomes
        max((outcomes.weak, outcomes.strong - DEARER))
        spent[number] = time.thread_time_ns() - began
    p50, p99 = np.percentile(spent, [50, 99]) / 1e6
    return float(p50), float(p99)


def _long(prompts: Sequence[str]) -> Iterable[str]:
    """Endless texts of `PROMPT_CHARS`, each of prompts that follow one another."""
    text = ""
    for prompt in cycle(prompts):
        text += prompt + "\n"
        if len(text) >= PROMPT_CHARS:
            yield text[:PROMPT_CHARS]
            text = ""


def _predict(scorer: Scorer, test: Sequence[tuple[Features, str]]) -> Array:
    """Score, weak and strong outcome of each; shape (3, rows)."""
    return np.array([(score, *outcomes) for score, outcomes in (scorer.judge(*each) for each in test)]).T


def _units(rows: Sequence[RouteRow]) -> Array | None:
    """The number of each row's group, None where rows have none."""
    if any(row.group is None for row in rows):
        return None
    return np.asarray(np.unique([str(row.group) for row in rows], return_inverse=True)[1])


def _gain(rows: Sequence[RouteRow]) -> Array:
    return np.array([row.strong - row.weak for row in rows])
