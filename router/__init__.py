"""The router: which adapter or base model should do a task.

Lifecycle: `Task` is taken from a request, `RouterSnapshot` is built when the registry or an engine changes, and
`Router.decide(task, snapshot)` gives a `Decision`. The three estimators behind a router (difficulty, agent, success)
are Protocols: rules and priors today, learned ones behind the same interfaces. `route_with_adapter` is the same from
Python.
"""

from router.agents import AgentRecogniser, resolve_agent
from router.decision import Candidate, Decision, Reason, SessionRoute, UnknownModel
from router.difficulty import DifficultyEstimator
from router.features import Features
from router.local import local_snapshot, route_with_adapter
from router.policy import Router
from router.snapshot import BaseTier, RouterSnapshot
from router.success import SuccessModel
from router.task import Task

__all__ = [
    "AgentRecogniser",
    "BaseTier",
    "Candidate",
    "Decision",
    "DifficultyEstimator",
    "Features",
    "Reason",
    "Router",
    "RouterSnapshot",
    "SessionRoute",
    "SuccessModel",
    "Task",
    "UnknownModel",
    "local_snapshot",
    "resolve_agent",
    "route_with_adapter",
]
