"""Which agent a task belongs to: names of agents, and recognition of tasks that name none."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from configs.agents import AgentPreset
from router.features import tokens

SUFFIX = "-agent"


def resolve_agent(name: str, known: Container[str]) -> str | None:
    """Find the agent of `known` that `name` denotes: the exact name, else the one with or without `-agent`; or None."""
    if name in known:
        return name
    other = name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else name + SUFFIX
    return other if other in known else None


class AgentRecogniser(Protocol):
    """Anything that tells the agent of a task. Called in the request path: no I/O, never raises."""

    @property
    def agents(self) -> Sequence[str]:
        """The agents that it can tell."""
        ...

    def recognise(self, text: str) -> tuple[str | None, float]:
        """Tell agent and confidence in [0, 1]; agent None where out of scope, with the best agent's confidence."""
        ...


@dataclass(frozen=True, slots=True)
class _Term:
    number: int
    agent: int
    weight: float


class KeywordRecogniser:
    """Weighted terms of the presets. Precise rather than complete: a wrong adapter costs more than the base model.

    Each distinct term found adds its weight to its agent; a term within a longer one of the same agent says nothing new
    and does not count. The confidence is m / (m + SLACK + words / WORDS_A_TERM), m being what the best agent has ahead
    of the second; under `THRESHOLD` the task is out of scope. So one strong term or two weak ones are enough in a short
    task, and a long text, which holds some term of every agent, needs more.
    """

    STRONG = 3.0
    WEAK = 1.0
    SLACK = 1.2
    WORDS_A_TERM = 22.0
    THRESHOLD = 0.5

    def __init__(self, presets: Mapping[str, AgentPreset]) -> None:
        self._agents = list(presets)
        self._terms: dict[tuple[str, ...], list[_Term]] = {}
        number = 0
        for agent, preset in enumerate(presets.values()):
            for terms, weight in ((preset.recognise.strong, self.STRONG), (preset.recognise.weak, self.WEAK)):
                for term in dict.fromkeys(tuple(tokens(term)) for term in terms):
                    number += 1
                    for form in _forms(term):
                        self._terms.setdefault(form, []).append(_Term(number, agent, weight))
        lengths: dict[str, set[int]] = {}
        for form in self._terms:
            lengths.setdefault(form[0], set()).add(len(form))
        # of the terms that begin with a word, longest first; a look-up a length costs less than a comparison a term
        self._lengths = {word: sorted(each, reverse=True) for word, each in lengths.items()}

    @property
    def agents(self) -> Sequence[str]:
        """Those of the presets."""
        return self._agents

    def recognise(self, text: str) -> tuple[str | None, float]:
        """See the class."""
        words = tokens(text)
        scores = [0.0] * len(self._agents)
        covered = [0] * len(self._agents)  # up to which word the agent's terms have been found
        seen: set[int] = set()
        terms, lengths = self._terms, self._lengths
        for position, word in enumerate(words):
            if word not in lengths:
                continue
            for length in lengths[word]:
                end = position + length
                for term in terms.get(words[position:end], ()):
                    if end <= covered[term.agent]:
                        continue
                    covered[term.agent] = end
                    if term.number not in seen:
                        seen.add(term.number)
                        scores[term.agent] += term.weight
        if not seen:
            return None, 0.0
        best = max(scores)
        winner = scores.index(best)
        second = max((score for agent, score in enumerate(scores) if agent != winner), default=0.0)
        margin = best - second
        confidence = margin / (margin + self.SLACK + len(words) / self.WORDS_A_TERM)
        return (self._agents[winner] if confidence >= self.THRESHOLD else None), confidence


class RecogniserBeside:
    """A learned recogniser, and another for the agents that the learned one has never seen tasks of."""

    def __init__(self, learned: AgentRecogniser, other: AgentRecogniser) -> None:
        self._learned = learned
        self._other = other
        self._known = frozenset(learned.agents)

    @property
    def agents(self) -> Sequence[str]:
        """Those of both."""
        return [*self._learned.agents, *(agent for agent in self._other.agents if self._is_new(agent))]

    def recognise(self, text: str) -> tuple[str | None, float]:
        """Ask the learned one, and where it knows none, the other."""
        agent, confidence = self._learned.recognise(text)
        if agent is None:
            other, sure = self._other.recognise(text)
            if other is not None and self._is_new(other):
                return other, sure
        return agent, confidence

    def _is_new(self, agent: str) -> bool:
        return resolve_agent(agent, self._known) is None


def _forms(term: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Give the term, and its plural where that is plain."""
    last = term[-1]
    if len(last) < 3 or last.endswith("s"):
        return [term]
    return [term, (*term[:-1], last + "s")]
