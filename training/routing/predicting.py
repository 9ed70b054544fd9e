"""What a router version would have predicted for the candidate that a case was given to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from configs.agents import AgentPreset, Routing
from router import Router, Task, resolve_agent
from router.difficulty import RuleDifficulty
from router.evidence import band_of
from router.features import extract
from router.snapshot import ranks


class Asked(NamedTuple):
    """A task of the past: its prompt, the agent or "", and who answered; `adapter` None is the base alone."""

    messages: Sequence[Mapping[str, Any]]
    has_tools: bool
    agent: str
    adapter: str | None
    base: str

    @property
    def candidate(self) -> str:
        """As evidence names it."""
        return self.adapter or self.base

    @property
    def task(self) -> Task:
        """As the router saw it."""
        return Task.from_messages(self.messages, has_tools=self.has_tools)


class Prediction(NamedTuple):
    """Difficulty by the rules, and the success probability of who answered, before any evidence."""

    difficulty: float
    probability: float

    @property
    def band(self) -> int:
        """The band of evidence."""
        return band_of(self.difficulty)


_SEPARATOR = ":"


def version_of(basis: str) -> str:
    """The router version that predicted on this basis."""
    return basis.partition(_SEPARATOR)[0]


class Predictor:
    """One router version among the tiers (their bases' names, the weakest first) and presets that it serves with.

    `basis` names all that predictions depend on, the version first (see `version_of`): what was predicted on another
    basis has to be predicted again.
    """

    def __init__(self, router: Router, presets: Mapping[str, AgentPreset], bases: Sequence[str]) -> None:
        self.router = router
        self._rules = RuleDifficulty()
        self._strengths = dict(zip(bases, ranks(len(bases)), strict=True))
        self._lifts = {name: preset.routing.adapter_lift for name, preset in presets.items()}
        told = json.dumps([router.version, list(bases), sorted(self._lifts.items())])
        self.basis = f"{router.version}{_SEPARATOR}{hashlib.sha256(told.encode()).hexdigest()[:40]}"

    def predict(self, asked: Asked) -> Prediction:
        """Predict; the base of a tier that is no more counts as the weakest."""
        task = asked.task
        outlook = self.router.outlook(task)
        strength = self._strengths.get(asked.base, 0.0)
        if asked.adapter is None:
            probability = outlook.base(strength)
        else:
            preset = resolve_agent(asked.agent, self._lifts)
            lift = self._lifts[preset] if preset else Routing().adapter_lift
            probability = outlook.adapter(strength, lift)
        return Prediction(self._rules.estimate(extract(task), task.text), probability)
