"""The canary and the watch: what users' rewards say of a version that has passed the gate.

A canary answers a share of its agent's sessions beside the champion. It ends

- at once when its rewards are worse beyond doubt (rejected) or better beyond doubt (promoted),
- after `requests` rewarded requests: promoted unless the champion's mean reward is higher, since the gate has shown a
  gain and the rewards have to bear it out,
- after `timeout_s` seconds: then the gate's verdict stands.

A promoted version is watched against what its predecessor's rewards were, and taken back when they are worse beyond
doubt. Nothing is stored here: the registry knows who is a canary, the cases hold the rewards, the job knows since when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from training.gate.sequential import MIN_SESSIONS, Difference, Rewarded, compare

Decision = Literal["continue", "promote", "reject"]


class Rewards(Protocol):
    """Where users' rewards are read."""

    def rewards(
        self, agent: str, adapter: str, since: datetime | None = None, until: datetime | None = None, *, limit: int
    ) -> Sequence[Rewarded]:
        """The latest `limit` rewarded requests to `agent` that `adapter` (`name@version`) answered in that time."""
        ...


@dataclass(frozen=True, slots=True)
class Advance:
    """How a canary or a watch stands; `text` is for a person."""

    decision: Decision
    text: str
    difference: Difference


class Canaries:
    """Decides on canaries and watches. `requests` and `timeout_s` are those of the settings. Thread-safe."""

    MAX_READ = 20_000
    """rewarded requests of one arm that are read; the latest ones"""

    def __init__(self, rewards: Rewards, *, requests: int = 200, timeout_s: float = 86_400) -> None:
        self._rewards = rewards
        self._requests = requests
        self._timeout_s = timeout_s

    def advance(
        self, agent: str, challenger: str, champion: str, began: datetime, *, now: datetime | None = None
    ) -> Advance:
        """What the rewards since `began` say of `challenger` beside `champion` (names as the engine has them)."""
        one = self._read(agent, challenger, since=began)
        other = self._read(agent, champion, since=began)
        difference = compare(one, other, self._requests)
        late = (now or datetime.now(UTC)) - began >= timedelta(seconds=self._timeout_s)
        return Advance(*decide(difference, self._requests, late=late), difference)

    def regressed(self, agent: str, champion: str, before: str, promoted: datetime) -> Advance:
        """Whether `champion` does worse since it was `promoted` than `before` did until then: `reject`, or `continue`.

        The two did not answer at the same time, so a change in what is asked may look like a change in who answers.
        """
        one = self._read(agent, champion, since=promoted)
        other = self._read(agent, before, until=promoted)
        difference = compare(one, other, self._requests)
        return Advance("reject" if difference.is_harm else "continue", difference.text, difference)

    def _read(
        self, agent: str, adapter: str, since: datetime | None = None, until: datetime | None = None
    ) -> Sequence[Rewarded]:
        return self._rewards.rewards(agent, adapter, since, until, limit=self.MAX_READ)


def decide(difference: Difference, requests: int, *, late: bool) -> tuple[Decision, str]:
    """The rules of the module's docstring; the text says which one decided."""
    if difference.is_harm:
        return "reject", f"worse: {difference.text}"
    if difference.is_gain:
        return "promote", f"better: {difference.text}"
    enough = difference.one.requests >= requests and difference.other.sessions >= MIN_SESSIONS
    if enough and difference.value < 0:
        return "reject", f"not borne out after {requests} rewarded requests: {difference.text}"
    if enough:
        return "promote", f"borne out after {requests} rewarded requests: {difference.text}"
    if late:
        return "promote", f"time is up, so the gate's verdict stands: {difference.text}"
    return "continue", difference.text
