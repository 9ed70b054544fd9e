"""How well a recogniser tells the agents of tasks that it has not learned from, strangers' tasks among them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from router.agents import AgentRecogniser
from router.evaluation.files import OUT_OF_SCOPE
from router.evaluation.metrics import Array, ece
from router.features import excerpt, tokens


class AgentFigures(NamedTuple):
    """Shares in [0, 1]; `p99_ms` is of one core's CPU time.

    `accuracy` and `macro_f1` are of tasks that belong to an agent, a refused one counting as wrong; an agent's F1 falls
    with every stranger's task that it is given. `oos_recall` is the share of strangers' tasks that were refused
    (None without any), `in_scope_false_oos` the share of agents' tasks that were. `ece` is of the confidence in what
    was decided, refusals too.
    """

    accuracy: float
    macro_f1: float
    oos_recall: float | None
    in_scope_false_oos: float
    ece: float
    p99_ms: float


def judge_recogniser(recogniser: AgentRecogniser, texts: Sequence[str], agents: Sequence[str]) -> AgentFigures:
    """Recognise every text and compare with its agent. Raises ValueError where no task belongs to an agent."""
    truth = np.array(agents)
    inside = truth != OUT_OF_SCOPE
    if not inside.any():
        raise ValueError("no task of the test belongs to an agent")
    said, sure, spent = [], np.empty(len(texts)), np.empty(len(texts))
    for place, text in enumerate(texts):
        seen = excerpt(text)
        tokens.cache_clear()  # every request brings a new text
        began = time.thread_time_ns()
        agent, confidence = recogniser.recognise(seen)
        spent[place] = time.thread_time_ns() - began
        said.append(agent or OUT_OF_SCOPE)
        sure[place] = confidence if agent else 1 - confidence
    answers = np.array(said)
    right = answers == truth
    refused = answers == OUT_OF_SCOPE
    return AgentFigures(
        accuracy=float(right[inside].mean()),
        macro_f1=float(np.mean([_f1(answers == name, truth == name) for name in np.unique(truth[inside])])),
        oos_recall=float(refused[~inside].mean()) if not inside.all() else None,
        in_scope_false_oos=float(refused[inside].mean()),
        ece=ece(sure, right.astype(float)),
        p99_ms=float(np.percentile(spent, 99) / 1e6),
    )


def _f1(said: Array, true: Array) -> float:
    return float(2 * (said & true).sum() / max(1, said.sum() + true.sum()))
