"""The agent of a task, and what there is for it: its preset, its champion or canary, the tier that serves that."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from adapters_registry.model import AdapterVersion
from configs.agents import AgentPreset, Routing
from router.agents import AgentRecogniser, resolve_agent
from router.decision import SessionRoute
from router.names import clean_agent
from router.snapshot import RouterSnapshot
from router.task import Task

_DEFAULT_ROUTING = Routing()


class Standing(NamedTuple):
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


def agent_of(
    task: Task,
    wanted: str | None,
    remembered: SessionRoute | None,
    recogniser: AgentRecogniser,
    snapshot: RouterSnapshot,
) -> Standing:
    """Take the agent that `model` names, else the hint, else what the text looks like, else the session's."""
    if hint := wanted or task.agent:
        return _in_its_arm(_standing(clean_agent(hint), 1.0, snapshot), task, snapshot)
    recognised, confidence = recogniser.recognise(task.text)
    if recognised is None and remembered is not None and remembered.agent is not None:
        standing = _standing(remembered.agent, confidence, snapshot, from_session=True)
    else:
        standing = _standing(recognised, confidence, snapshot, in_scope=recognised is not None)
    return _in_its_arm(standing, task, snapshot)


def home_of(version: AdapterVersion, snapshot: RouterSnapshot) -> int | None:
    """Find the tier that can serve `version`."""
    index = snapshot.tier_of_base(version.base)
    return index if index is not None and snapshot.tiers[index].slots > 0 else None


def _standing(
    name: str | None, confidence: float, snapshot: RouterSnapshot, *, in_scope: bool = True, from_session: bool = False
) -> Standing:
    """Look up what there is for an agent, under the registry's name of it, else the preset's, else the one given."""
    if name is None:
        return Standing(None, confidence, in_scope, from_session, None, None, None)
    preset = resolve_agent(name, snapshot.presets)
    name = resolve_agent(name, snapshot.registry.agents) or preset or name
    champion = snapshot.registry.champion(name)
    home = home_of(champion, snapshot) if champion else None
    return Standing(
        name, confidence, in_scope, from_session, snapshot.presets[preset] if preset else None, champion, home
    )


def _in_its_arm(agent: Standing, task: Task, snapshot: RouterSnapshot) -> Standing:
    """Put the canary in the champion's place for the sessions that try it out."""
    if agent.name is None or agent.champion is None or not snapshot.canary_share:
        return agent
    canary = snapshot.registry.canary(agent.name)
    if canary is None or _draw(task.session_key, canary) >= snapshot.canary_share:
        return agent
    home = home_of(canary, snapshot)
    return agent if home not in snapshot.up else agent._replace(champion=canary, home=home, tries_canary=True)


def _draw(session: tuple[str, str], canary: AdapterVersion) -> float:
    """A number in [0, 1) that a session keeps for as long as this canary lasts."""
    text = "\0".join((*session, canary.digest)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
