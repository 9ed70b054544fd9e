"""The policy: a task and a snapshot go in, a decision comes out. Pure, deterministic, no I/O.

After DAAO (arXiv 2509.11079): difficulty from the query, then the candidate of the highest
`P(success) - COST_WEIGHT * cost - WAIT_WEIGHT * expected wait`. Explicit routes are not weighed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from adapters_registry.model import AdapterVersion
from configs.agents import AgentPreset, Routing
from router.agents import AgentRecogniser, KeywordRecogniser, resolve_agent
from router.decision import Candidate, Decision, Reason, SessionRoute, UnknownModel
from router.difficulty import DifficultyEstimator, RuleDifficulty
from router.features import Features, extract
from router.names import Wanted, clean_agent, nearest_names, resolve_model
from router.snapshot import RouterSnapshot
from router.success import Option, PriorSuccess, SuccessModel
from router.task import Task

COST_WEIGHT = 0.2
"""lambda: success probability that is worth the whole price of the dearest tier"""
WAIT_WEIGHT = 0.02
"""mu: success probability that is worth a second of waiting"""
COLD_LOAD_S = 0.3
"""expected wait for an adapter that is not resident"""


class _Agent(NamedTuple):
    """The task's agent (name None where nobody named or recognised one) and what there is for it.

    `home` is the index of the tier that serves the champion's base, None where there is no such tier.
    """

    name: str | None
    confidence: float
    in_scope: bool
    from_session: bool
    preset: AgentPreset | None
    champion: AdapterVersion | None
    home: int | None
    tries_canary: bool = False
    """whether `champion` is the challenger, and this session one of those that try it out"""

    @property
    def routing(self) -> Routing:
        """The preset's, or the defaults."""
        return self.preset.routing if self.preset else _DEFAULT_ROUTING


_DEFAULT_ROUTING = Routing()


class Router:
    """The estimators of one router version, and the policy over them. Immutable: a refit makes another one."""

    def __init__(self, difficulty: DifficultyEstimator, recogniser: AgentRecogniser, success: SuccessModel) -> None:
        self._difficulty = difficulty
        self._recogniser = recogniser
        self._success = success

    @classmethod
    def from_presets(cls, presets: Mapping[str, AgentPreset]) -> Router:
        """Rules and priors alone, for as long as nothing has been learned."""
        return cls(RuleDifficulty(), KeywordRecogniser(presets), PriorSuccess())

    def decide(self, task: Task, snapshot: RouterSnapshot) -> Decision:
        """Choose the route of `task`. Raises UnknownModel, and nothing else whatever the task holds."""
        wanted = resolve_model(task.model, snapshot)
        features = extract(task)
        difficulty = self._difficulty.estimate(features, task.text)
        if wanted.tier is not None or wanted.version is not None:
            return _explicit(task, wanted, snapshot, features, difficulty)
        remembered = _remembered(task, snapshot)
        agent = _in_its_arm(self._agent(task, wanted, remembered, snapshot), task, snapshot)
        candidates = self._weigh(agent, difficulty, features, snapshot)
        eligible = _eligible(candidates, agent, difficulty, remembered)
        alone = max(eligible, key=_by_utility)
        chosen = max(_at_least(remembered, agent, eligible), key=_by_utility)
        kept = chosen is not alone or (agent.from_session and chosen.adapter is not None)
        return Decision(
            model=task.model,
            agent=agent.name,
            adapter=chosen.adapter,
            base=chosen.base,
            tier=chosen.tier,
            difficulty=difficulty,
            reason=_reason(chosen, agent, snapshot, kept=kept),
            confidence=agent.confidence,
            features=features,
            candidates=tuple(candidates),
        )

    def _agent(self, task: Task, wanted: Wanted, remembered: SessionRoute | None, snapshot: RouterSnapshot) -> _Agent:
        """Take the agent that `model` names, else the hint, else what the text looks like, else the session's."""
        if hint := wanted.agent or task.agent:
            return _standing(clean_agent(hint), 1.0, snapshot)
        recognised, confidence = self._recogniser.recognise(task.text)
        if recognised is None and remembered is not None and remembered.agent is not None:
            return _standing(remembered.agent, confidence, snapshot, from_session=True)
        return _standing(recognised, confidence, snapshot, in_scope=recognised is not None)

    def _weigh(self, agent: _Agent, difficulty: float, features: Features, snapshot: RouterSnapshot) -> list[Candidate]:
        """Weigh the champion, and every tier that is up (all, where none is) on its own."""
        options: list[tuple[int, AdapterVersion | None]] = [(index, None) for index in snapshot.up]
        if agent.home in snapshot.up:
            options.insert(0, (agent.home, agent.champion))
        candidates = []
        for index, adapter in options:
            tier, cost = snapshot.tiers[index], snapshot.prices[index]
            option = Option(tier, adapter, snapshot.strengths[index], agent.routing.adapter_lift)
            probability = self._success.probability(option, difficulty, features)
            wait_s = COLD_LOAD_S if adapter is not None and not snapshot.is_warm(adapter) else 0.0
            utility = probability - COST_WEIGHT * cost - WAIT_WEIGHT * wait_s
            candidates.append(Candidate(tier.base_name, adapter, tier.name, probability, cost, wait_s, utility))
        return candidates


def _explicit(task: Task, wanted: Wanted, snapshot: RouterSnapshot, features: Features, difficulty: float) -> Decision:
    """Go where the client said, also where that engine is down: a 503 is honest, another model's answer is not."""
    version = wanted.version
    index = wanted.tier if version is None else _home(version, snapshot)
    if index is None:
        raise UnknownModel(task.model, nearest_names(task.model, snapshot))
    tier = snapshot.tiers[index]
    return Decision(
        model=task.model,
        agent=version.agent if version else clean_agent(task.agent or ""),
        adapter=version,
        base=tier.base_name,
        tier=tier.name,
        difficulty=difficulty,
        reason=Reason.EXPLICIT,
        confidence=1.0,
        features=features,
        exact_version=wanted.exact,
    )


def _standing(
    name: str | None, confidence: float, snapshot: RouterSnapshot, *, in_scope: bool = True, from_session: bool = False
) -> _Agent:
    """Look up what there is for an agent, under the registry's name of it, else the preset's, else the one given."""
    if name is None:
        return _Agent(None, confidence, in_scope, from_session, None, None, None)
    preset = resolve_agent(name, snapshot.presets)
    name = resolve_agent(name, snapshot.registry.agents) or preset or name
    champion = snapshot.registry.champion(name)
    home = _home(champion, snapshot) if champion else None
    return _Agent(
        name, confidence, in_scope, from_session, snapshot.presets[preset] if preset else None, champion, home
    )


def _in_its_arm(agent: _Agent, task: Task, snapshot: RouterSnapshot) -> _Agent:
    """Put the canary in the champion's place for the sessions that try it out."""
    if agent.name is None or agent.champion is None or not snapshot.canary_share:
        return agent
    canary = snapshot.registry.canary(agent.name)
    if canary is None or _draw(task.session_key, canary) >= snapshot.canary_share:
        return agent
    home = _home(canary, snapshot)
    return agent if home not in snapshot.up else agent._replace(champion=canary, home=home, tries_canary=True)


def _draw(session: tuple[str, str], canary: AdapterVersion) -> float:
    """A number in [0, 1) that a session keeps for as long as this canary lasts."""
    text = "\0".join((*session, canary.digest)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64


def _home(version: AdapterVersion, snapshot: RouterSnapshot) -> int | None:
    """Find the tier that can serve `version`."""
    index = snapshot.tier_of_base(version.base)
    return index if index is not None and snapshot.tiers[index].slots > 0 else None


def _remembered(task: Task, snapshot: RouterSnapshot) -> SessionRoute | None:
    """Recall the session's last route. A first turn that names no session begins one, though others began alike."""
    if task.session_given or task.turns > 1:
        return snapshot.sessions.get(task.session_key)
    return None


def _eligible(
    candidates: list[Candidate], agent: _Agent, difficulty: float, remembered: SessionRoute | None
) -> list[Candidate]:
    """Narrow the bases as the agent's preset says: the strongest for hard tasks, else its default base."""
    strong_above = agent.routing.strong_above
    if strong_above is not None and difficulty >= strong_above:
        return [each for each in candidates[:-1] if each.adapter is not None] + candidates[-1:]
    base = agent.preset.base if agent.preset else None
    if base is None or remembered is not None or candidates[0].adapter is not None:
        return candidates
    return [each for each in candidates if each.base == base] or candidates


def _at_least(remembered: SessionRoute | None, agent: _Agent, eligible: list[Candidate]) -> list[Candidate]:
    """Drop what is less likely to succeed on this task than where the session's last one went."""
    if remembered is None:
        return eligible
    same_tier = [each for each in eligible if each.tier == remembered.tier]
    if not same_tier:
        return eligible
    adapted = remembered.adapted and remembered.agent == agent.name
    last = next((each for each in same_tier if (each.adapter is not None) == adapted), same_tier[-1])
    return [each for each in eligible if each.probability >= last.probability]


def _reason(chosen: Candidate, agent: _Agent, snapshot: RouterSnapshot, *, kept: bool) -> Reason:
    if agent.tries_canary and chosen.adapter is not None:
        return Reason.CANARY
    if kept or chosen.adapter is not None:
        return Reason.SESSION if kept else Reason.CHAMPION
    if not agent.in_scope:
        return Reason.OUT_OF_SCOPE
    if agent.champion is None:
        return Reason.NO_ADAPTER
    if agent.home is None or not snapshot.tiers[agent.home].ready:
        return Reason.ENGINE_DOWN
    return Reason.TIER


def _by_utility(candidate: Candidate) -> float:
    return candidate.utility
