"""The verdict: from the answers of candidate, champion and base to one yes or no, with the reasons.

A candidate passes when

1. the holdout has at least `MIN_ROWS` rows,
2. the lower bound of the paired bootstrap of its task score minus the reference's is above zero; the reference is the
   champion, or the base where the agent has none,
3. it loses at most `general_loss` on the general set, and on each suite of one's own, against the reference; a larger
   loss counts unless it may be chance, which on a hundred questions two are (the upper bound of the paired
   bootstrap at `GUARD_ERROR` is not below zero),
4. its share of answers in a valid format is at most `FORMAT_LOSS` under the reference's,
5. the endpoint renders prompts as the trainer did.

The general set is measured by the share of right answers, as long as the reference can answer at least `ANSWERABLE` of
the questions; a smaller or random base cannot, and then by how likely it finds the right answers: the mean over the
questions of the answer's probability a token (its geometric mean), which is 0 to 1 as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.gate.bootstrap import Bootstrap, paired_bootstrap
from training.gate.evaluate import Evaluation, Scores
from training.gate.rows import GENERAL
from training.gate.template import TemplateCheck

MIN_ROWS = 20
FORMAT_LOSS = 0.01
ANSWERABLE = 0.2
GUARD_ERROR = 0.05
"""how often a candidate that loses nothing is taken to lose something, per set"""


@dataclass(frozen=True, slots=True)
class Guard:
    """What must not be lost: the general set, or a suite. Values by `measure` (`accuracy`, `probability`), 0 to 1."""

    name: str
    measure: str
    candidate: float
    reference: float
    rows: int
    allowed_loss: float
    upper: float
    """upper bound of the change"""

    @property
    def delta(self) -> float:
        """Candidate minus reference."""
        return self.candidate - self.reference

    @property
    def ok(self) -> bool:
        """Whether no more than allowed is lost, or what is lost may be chance."""
        return self.delta >= -self.allowed_loss - 1e-9 or self.upper >= 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "measure": self.measure,
            "candidate": round(self.candidate, 6),
            "reference": round(self.reference, 6),
            "delta": round(self.delta, 6),
            "upper": round(self.upper, 6),
            "allowed_loss": self.allowed_loss,
            "rows": self.rows,
            "ok": self.ok,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` are lines for a person: what speaks against the candidate, or why it passes."""

    passed: bool
    judged: bool
    reasons: tuple[str, ...]
    bootstrap: Bootstrap | None = None
    guards: tuple[Guard, ...] = ()

    @property
    def text(self) -> str:
        """In one line."""
        if not self.judged:
            return f"not judged: {'; '.join(self.reasons)}"
        return f"{'passed' if self.passed else 'refused'}: {'; '.join(self.reasons)}"


def too_small(rows: int) -> Verdict:
    """The verdict on a holdout that tells too little."""
    return Verdict(False, False, (f"the holdout has {rows} rows, and at least {MIN_ROWS} are needed",))


def decide(
    candidate: Evaluation,
    reference: Evaluation,
    guards: Sequence[Guard] = (),
    template: TemplateCheck | None = None,
    *,
    seed: int = 0,
) -> Verdict:
    """Compare the same rows' scores; see the module. Both have judged the same rows, `MIN_ROWS` or more."""
    differences = [one.score - other.score for one, other in zip(candidate.judged, reference.judged, strict=True)]
    bootstrap = paired_bootstrap(differences, seed=seed)
    against = [
        *_gain_against(bootstrap, reference.model),
        *(_lost(guard) for guard in guards if not guard.ok),
        *_format_against(candidate.scores, reference.scores),
        *_template_against(template),
    ]
    if against:
        return Verdict(False, True, tuple(against), bootstrap, tuple(guards))
    at_least = points(bootstrap.lower)
    gain = f"{points(bootstrap.mean)} on {len(differences)} rows against {reference.model}, at least {at_least}"
    return Verdict(True, True, (gain,), bootstrap, tuple(guards))


def measure_general(candidate: Evaluation, reference: Evaluation, allowed_loss: float) -> Guard:
    """Compare both on the general set; see the module."""
    if reference.scores.task >= ANSWERABLE:
        return measure_suite(GENERAL, candidate, reference, allowed_loss)
    pairs = zip(candidate.nll, reference.nll, strict=True)
    known = [(math.exp(-one), math.exp(-other)) for one, other in pairs if one is not None and other is not None]
    return _guard(GENERAL, "probability", known, allowed_loss)


def measure_suite(name: str, candidate: Evaluation, reference: Evaluation, allowed_loss: float) -> Guard:
    """Compare both on a suite, by its own scores."""
    pairs = [(one.score, other.score) for one, other in zip(candidate.judged, reference.judged, strict=True)]
    return _guard(name, "accuracy", pairs, allowed_loss)


def _guard(name: str, measure: str, pairs: Sequence[tuple[float, float]], allowed_loss: float) -> Guard:
    """Of values by candidate and reference; without any, nothing is known to be lost."""
    if not pairs:
        return Guard(name, measure, 0.0, 0.0, 0, allowed_loss, 0.0)
    candidate, reference = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    bounds = paired_bootstrap([one - other for one, other in pairs], error=GUARD_ERROR)
    return Guard(name, measure, candidate, reference, len(pairs), allowed_loss, bounds.upper)


def points(difference: float) -> str:
    """A difference of shares, for people."""
    return f"{100 * difference:+.1f} points"


def _gain_against(bootstrap: Bootstrap, reference: str) -> list[str]:
    if bootstrap.lower > 0:
        return []
    return [
        f"no sure gain over {reference}: {points(bootstrap.mean)}, and it may be {points(bootstrap.lower)}"
        if bootstrap.mean > 0
        else f"no gain over {reference}: {points(bootstrap.mean)}"
    ]


def _lost(guard: Guard) -> str:
    what = "the general set" if guard.name == GENERAL else f"suite {guard.name}"
    fall = f"{guard.measure} {guard.reference:.1%} -> {guard.candidate:.1%}"
    return f"{points(guard.delta)} on {what} ({fall}), and {points(-guard.allowed_loss)} is allowed"


def _format_against(candidate: Scores, reference: Scores) -> list[str]:
    if candidate.format_ok >= reference.format_ok - FORMAT_LOSS - 1e-9:
        return []
    return [f"answers in a valid format fell from {reference.format_ok:.1%} to {candidate.format_ok:.1%}"]


def _template_against(template: TemplateCheck | None) -> list[str]:
    if template is None or template.identical:
        return []
    return [f"served and trained templates differ: {template.difference}"]
