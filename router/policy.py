"""The policy: a task and a snapshot go in, a decision comes out. Pure, deterministic, no I/O.

After DAAO (arXiv 2509.11079): difficulty from the query, then the candidate of the highest utility (see
`router.utility`) among those that session and budget leave. Explicit routes are not weighed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from adapters_registry.model import AdapterVersion
from configs.agents import AgentPreset
from router.agents import AgentRecogniser, KeywordRecogniser, RecogniserBeside
from router.decision import Candidate, Decision, Reason, SessionRoute, UnknownModel
from router.difficulty import RuleDifficulty
from router.features import Features, extract
from router.learned import RouterModel
from router.names import Wanted, clean_agent, nearest_names, resolve_model
from router.sessions import is_lost, no_weaker, recall, remember, switching_s
from router.share import ShareCall
from router.snapshot import RouterSnapshot
from router.standing import Standing, agent_of, home_of
from router.success import LearnedSuccess, Outlook, PriorSuccess, SuccessModel
from router.task import Task
from router.utility import Size, Terms, Wishes

COLD_LOAD_S = 0.3
"""expected wait for an adapter that is not resident"""
RULES = "rules"
"""version of the router that nobody fitted"""


class _View(NamedTuple):
    """One task as it is weighed; `band` is its difficulty on the scale of the evidence."""

    task: Task
    agent: Standing
    outlook: Outlook
    band: float
    terms: Terms
    before: SessionRoute | None
    snapshot: RouterSnapshot


class Router:
    """The estimators of one router version, and the policy over them. Immutable: a refit makes another one."""

    def __init__(self, success: SuccessModel, recogniser: AgentRecogniser, version: str = RULES) -> None:
        self.version = version
        self._success = success
        self.recogniser = recogniser
        self._rules = RuleDifficulty()

    @classmethod
    def from_presets(cls, presets: Mapping[str, AgentPreset]) -> Router:
        """Rules and priors alone, for as long as nothing has been learned."""
        return cls(PriorSuccess(RuleDifficulty()), KeywordRecogniser(presets))

    @classmethod
    def from_model(cls, model: RouterModel, presets: Mapping[str, AgentPreset]) -> Router:
        """What was learned, and rules and priors for what was not."""
        success = LearnedSuccess(model.outcomes) if model.outcomes else PriorSuccess(RuleDifficulty())
        keywords = KeywordRecogniser(presets)
        recogniser = RecogniserBeside(model.recogniser, keywords) if model.recogniser else keywords
        return cls(success, recogniser, model.version)

    def outlook(self, task: Task) -> Outlook:
        """Difficulty and success as this version predicts them, before any evidence."""
        return self._success.outlook(extract(task), task.text)

    def decide(self, task: Task, snapshot: RouterSnapshot) -> Decision:
        """Choose the route of `task`. Raises UnknownModel, and nothing else whatever the task holds."""
        wanted = resolve_model(task.model, snapshot)
        features = extract(task)
        outlook = self._success.outlook(features, task.text)
        if wanted.tier is not None or wanted.version is not None:
            return self._explicit(task, wanted, snapshot, features, outlook.difficulty)
        before = recall(task, snapshot)
        agent = agent_of(task, wanted.agent, before, self.recogniser, snapshot)
        terms = Terms.of(task.wishes.over(Wishes.of(agent.routing)), snapshot.routing)
        band = self._rules.estimate(features, task.text)
        view = _View(task, agent, outlook, band, terms, before, snapshot)
        candidates = _weigh(view)
        chosen, reason, share = _choose(candidates, view)
        return Decision(
            model=task.model,
            agent=agent.name,
            adapter=chosen.adapter,
            base=chosen.base,
            tier=chosen.tier,
            difficulty=outlook.difficulty,
            reason=reason,
            confidence=agent.confidence,
            features=features,
            router=self.version,
            candidates=tuple(candidates),
            terms=terms,
            session_route=remember(task, agent.name, chosen, reason, before=before, snapshot=snapshot),
            share=share,
        )

    def _explicit(
        self, task: Task, wanted: Wanted, snapshot: RouterSnapshot, features: Features, difficulty: float
    ) -> Decision:
        """Go where the client said, also where that engine is down: a 503 is honest, another's answer is not."""
        version = wanted.version
        index = wanted.tier if version is None else home_of(version, snapshot)
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
            router=self.version,
            exact_version=wanted.exact,
        )


def _weigh(view: _View) -> list[Candidate]:
    """Weigh the champion, and every tier that is up (all, where none is) on its own."""
    snapshot, agent = view.snapshot, view.agent
    options: list[tuple[int, AdapterVersion | None]] = [(index, None) for index in snapshot.up]
    if agent.home in snapshot.up:
        options.insert(0, (agent.home, agent.champion))
    size = Size.of(view.task.prompt_chars, view.task.max_tokens)
    evidence = snapshot.evidence_of(view.task.owner)
    candidates = []
    for index, adapter in options:
        tier, cost, strength = snapshot.tiers[index], snapshot.prices[index], snapshot.strengths[index]
        adapted = adapter is not None
        predicted = (
            view.outlook.adapter(strength, agent.routing.adapter_lift) if adapted else view.outlook.base(strength)
        )
        name = adapter.engine_name if adapter is not None else tier.base_name
        probability, cases = evidence.corrected(agent.name, name, predicted, view.band)
        wait_s = size.answer_s(tier.tokens_per_s) + switching_s(view.before, agent.name, tier.name, adapted=adapted)
        if adapter is not None and not snapshot.is_warm(adapter):
            wait_s += COLD_LOAD_S
        candidates.append(
            Candidate(
                base=tier.base_name,
                adapter=adapter,
                tier=tier.name,
                strength=strength,
                probability=probability,
                cost=cost,
                cost_usd=size.cost_usd(tier.cost_per_mtok),
                wait_s=wait_s,
                utility=view.terms.utility(probability, cost, wait_s),
                cases=cases,
            )
        )
    return candidates


def _choose(candidates: list[Candidate], view: _View) -> tuple[Candidate, Reason, ShareCall | None]:
    """The choice, and its reason: what the task alone would have got, then what the session asks, then the budget."""
    call = _share_call(candidates, view)
    eligible = _eligible(candidates, view)
    alone = _best(eligible, view, call)
    held = _best(no_weaker(view.before, view.agent.name, eligible, candidates), view, call)
    chosen = held
    if view.terms.max_cost is not None and held.cost_usd > view.terms.max_cost:
        affordable = [each for each in candidates if each.cost_usd <= view.terms.max_cost]
        within = [each for each in eligible if each in affordable] or [min(eligible, key=_by_cost)]
        chosen = _best(no_weaker(view.before, view.agent.name, within, affordable), view, call)
    if chosen is not held:
        reason = Reason.BUDGET
    else:
        kept = held is not alone or (view.agent.from_session and held.adapter is not None)
        reason = _reason(held, view, kept=kept)
    return chosen, reason, call and call._replace(is_strong=chosen is candidates[-1])


def _eligible(candidates: list[Candidate], view: _View) -> list[Candidate]:
    """Narrow the bases as the agent's preset says: the strongest for hard tasks, else its default base."""
    agent = view.agent
    strong_above = agent.routing.strong_above
    if strong_above is not None and view.outlook.difficulty >= strong_above:
        return [each for each in candidates[:-1] if each.adapter is not None] + candidates[-1:]
    base = agent.preset.base if agent.preset else None
    if base is None or view.before is not None or candidates[0].adapter is not None:
        return candidates
    return [each for each in candidates if each.base == base] or candidates


def _share_call(candidates: list[Candidate], view: _View) -> ShareCall | None:
    """How the strongest tier stands in this call, where its share is held, it is up, and there is another choice."""
    own, strongest = view.agent.routing.strong_share, candidates[-1]
    target = view.snapshot.routing.strong_share if own is None else own
    if target is None or len(candidates) == 1 or strongest.strength < 1.0:
        return None
    key = (view.task.owner, "" if own is None else view.agent.name or "")
    gain = strongest.utility - max(map(_by_utility, candidates[:-1]))
    return ShareCall(key, target, view.snapshot.share_of(key).threshold, gain, is_strong=False)


def _best(candidates: Sequence[Candidate], view: _View, call: ShareCall | None) -> Candidate:
    """The candidate of the highest utility; the strongest tier by the threshold of its share, where one is held."""
    if call is None or view.terms.quality != "balanced" or len(candidates) == 1 or candidates[-1].strength < 1.0:
        return max(candidates, key=_by_utility)
    return candidates[-1] if call.gain > call.threshold else max(candidates[:-1], key=_by_utility)


def _reason(chosen: Candidate, view: _View, *, kept: bool) -> Reason:
    agent, snapshot = view.agent, view.snapshot
    if agent.tries_canary and chosen.adapter is not None:
        return Reason.CANARY
    if kept or chosen.adapter is not None:
        return Reason.SESSION if kept else Reason.CHAMPION
    home_is_down = agent.champion is not None and (agent.home is None or not snapshot.tiers[agent.home].ready)
    if home_is_down or is_lost(view.before, chosen, snapshot):
        return Reason.ENGINE_DOWN
    if not agent.in_scope:
        return Reason.OUT_OF_SCOPE
    return Reason.NO_ADAPTER if agent.champion is None else Reason.TIER


def _by_utility(candidate: Candidate) -> float:
    return candidate.utility


def _by_cost(candidate: Candidate) -> float:
    return candidate.cost_usd
