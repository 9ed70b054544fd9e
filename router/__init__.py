"""The router: which adapter or base model should do a task.

Lifecycle: `Task` is taken from a request, `RouterSnapshot` is built when the registry or an engine changes, and
`Router.decide(task, snapshot)` gives a `Decision`. The estimators behind a router (agent, difficulty and success) are
Protocols: rules and priors, or what was learned (`router.learned`), which the snapshot's `Evidence` corrects.
`route_with_adapter` is the same from Python.
"""

from router.agents import AgentRecogniser, resolve_agent
from router.decision import REASONS, Candidate, Decision, Reason, SessionRoute, UnknownModel
from router.difficulty import DifficultyEstimator
from router.evidence import EVERYONE, Evidence, Tally
from router.features import Features
from router.learnt import NOTHING_LEARNT, Learnt
from router.local import local_snapshot, route_with_adapter
from router.policy import RULES, Router
from router.share import NO_CALLS, Share
from router.snapshot import BaseTier, RouterSnapshot
from router.success import SuccessModel
from router.task import Task
from router.utility import NO_WISHES, Wishes

__all__ = [
    "EVERYONE",
    "NOTHING_LEARNT",
    "NO_CALLS",
    "NO_WISHES",
    "REASONS",
    "RULES",
    "AgentRecogniser",
    "BaseTier",
    "Candidate",
    "Decision",
    "DifficultyEstimator",
    "Evidence",
    "Features",
    "Learnt",
    "Reason",
    "Router",
    "RouterSnapshot",
    "SessionRoute",
    "Share",
    "SuccessModel",
    "Tally",
    "Task",
    "UnknownModel",
    "Wishes",
    "local_snapshot",
    "resolve_agent",
    "route_with_adapter",
]
