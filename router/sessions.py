"""Sessions: what is remembered of them, and how they keep a conversation from falling to something weaker.

A session has a floor: where its last task went. On each task, whatever is weaker than the floor is left out: what is
less likely to succeed on it, and bases of a lower tier, which is how a user would call it whatever the estimate. What
took a task below the floor against the router's will (a budget, an engine that is down) does not lower it.

Switching costs: the engine that answered has read the conversation so far and keeps it in its prefix cache, another has
to read it all. That counts as wait, in proportion to the prompt's length, against all but the one that answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.decision import Candidate, Reason, SessionRoute
from router.snapshot import RouterSnapshot
from router.task import Task
from router.utility import CHARS_PER_TOKEN

PREFILL_TOKENS_S = 4000.0
"""prompt tokens that an engine is taken to read in a second"""
_KEEPS_FLOOR = frozenset({Reason.BUDGET, Reason.ENGINE_DOWN})


def recall(task: Task, snapshot: RouterSnapshot) -> SessionRoute | None:
    """The session's last route. A first turn that names no session begins one, though others began alike."""
    if task.session_given or task.continues:
        return snapshot.sessions.get(task.session_key)
    return None


def remember(
    task: Task,
    agent: str | None,
    chosen: Candidate,
    reason: Reason,
    *,
    before: SessionRoute | None,
    snapshot: RouterSnapshot,
) -> SessionRoute:
    """What to remember after `chosen`."""
    if before is not None and reason in _KEEPS_FLOOR and _is_below(before, chosen, snapshot):
        return SessionRoute(before.agent, before.tier, before.adapted, task.prompt_chars)
    return SessionRoute(agent, chosen.tier, chosen.adapter is not None, task.prompt_chars)


def switching_s(before: SessionRoute | None, agent: str | None, tier: str, *, adapted: bool) -> float:
    """Seconds that an engine needs to read what another has in its cache; 0 for the one that answered last."""
    if before is None or (tier == before.tier and adapted == (before.adapted and before.agent == agent)):
        return 0.0
    return before.prompt_chars / CHARS_PER_TOKEN / PREFILL_TOKENS_S


def no_weaker(
    before: SessionRoute | None, agent: str | None, eligible: Sequence[Candidate], candidates: Sequence[Candidate]
) -> Sequence[Candidate]:
    """Those of `eligible` that are not below the session's floor, else the floor; all where `candidates` have no floor.

    What the agent's preset leaves out of `candidates` may still be the floor.
    """
    if before is None:
        return eligible
    same_tier = [each for each in candidates if each.tier == before.tier]
    if not same_tier:
        return eligible
    adapted = before.adapted and before.agent == agent
    floor = next((each for each in same_tier if (each.adapter is not None) == adapted), same_tier[-1])
    return [each for each in eligible if each is floor or not _is_weaker(each, floor)] or [floor]


def is_lost(before: SessionRoute | None, chosen: Candidate, snapshot: RouterSnapshot) -> bool:
    """Whether the session's tier is down, and `chosen` a base of a lower one."""
    index = None if before is None else snapshot.tier_named(before.tier)
    if index is None or index in snapshot.up or chosen.adapter is not None:
        return False
    return chosen.strength < snapshot.strengths[index]


def _is_below(before: SessionRoute, chosen: Candidate, snapshot: RouterSnapshot) -> bool:
    """Whether a base of a lower tier, or the base alone of the same one, has answered."""
    index = snapshot.tier_named(before.tier)
    if index is None or chosen.adapter is not None:
        return False
    return chosen.strength < snapshot.strengths[index] or (before.adapted and chosen.tier == before.tier)


def _is_weaker(candidate: Candidate, floor: Candidate) -> bool:
    if candidate.probability < floor.probability:
        return True
    return candidate.adapter is None and candidate.strength < floor.strength
