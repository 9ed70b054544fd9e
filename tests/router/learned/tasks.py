"""Made-up tasks whose outcomes follow from what they say, so that only an estimator that reads them can predict."""

from __future__ import annotations

import numpy as np

from router.learned import RouteRow

HARD = ("prove", "derive", "integrate", "converges", "manifold", "lemma")
EASY = ("colour", "breakfast", "garden", "holiday", "weather", "kitten")
FILLER = ("please", "tell", "me", "about", "the", "one", "with", "some", "that", "we", "saw", "there", "and", "then")


def route_rows(number: int, *, seed: int = 0, groups: int = 0) -> list[RouteRow]:
    """Hard tasks, of which the weak tier does one in ten and the strong one nine, and easy ones, which both do."""
    rng = np.random.default_rng(seed)
    rows = []
    for place in range(number):
        hard = bool(rng.random() < 0.4)
        words = [*rng.choice(HARD if hard else EASY, 3), *rng.choice(FILLER, 6)]
        prompt = " ".join(rng.permutation(words)) + f" case {place}"
        weak, strong = (rng.random() < (0.1 if hard else 0.95)), (rng.random() < 0.95)
        rows.append(RouteRow(prompt, float(weak), float(strong), f"kind {place % groups}" if groups else None))
    return rows


def agent_texts(number: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """Tasks of two agents, each with words of its own between common ones."""
    rng = np.random.default_rng(seed)
    own = {
        "legal": ("clause", "liability", "indemnity", "termination", "party", "agreement", "governing", "law"),
        "support": ("card", "payment", "refund", "transfer", "account", "pin", "declined", "topup"),
    }
    texts, agents = [], []
    for place in range(number):
        agent = ("legal", "support")[place % 2]
        words = [*rng.choice(own[agent], 5), *rng.choice(FILLER, 5)]
        texts.append(" ".join(rng.permutation(words)))
        agents.append(agent)
    return texts, agents


def strangers(number: int, *, seed: int = 0) -> list[str]:
    """Tasks of no agent."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.permutation([*rng.choice((*HARD, *EASY), 5), *rng.choice(FILLER, 5)])) for _ in range(number)]
