"""Which case goes to which part: decided on what is kept of each case, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from training.casebank.case import Case
from training.casebank.templates import find_template
from training.dataset.config import DatasetConfig
from training.dataset.errors import DatasetEmpty
from training.dataset.leakage import Fingerprint, Held, fingerprint, meetings
from training.dataset.quality import Notes
from training.dataset.rows import Part, user_texts
from training.dataset.selection import (
    CountTokens,
    Record,
    above_quantile,
    balanced,
    by_hash,
    record_of,
    refusal,
    resolve,
)
from training.dataset.splitting import draw_validation

Stream = Callable[[], Iterable[Case]]
"""the agent's cases, anew at each call"""
SUSPICIOUS = 20
"""training prompts, of which most resemble held-out ones, that look like one template"""


@dataclass(slots=True)
class Plan:
    """Parts by case id; `template` marks what prompts share, `held` is what training must not meet."""

    agent: str
    template: frozenset[str]
    held: Held
    notes: Notes
    parts: dict[str, Part] = field(default_factory=dict)


@dataclass(slots=True)
class _Survey:
    """What one reading of all cases left."""

    learnable: list[Record] = field(default_factory=list)
    askable: list[Record] = field(default_factory=list)
    others: list[Fingerprint] = field(default_factory=list)
    cases: int = 0


def plan_dataset(
    stream: Stream,
    agent: str,
    config: DatasetConfig,
    *,
    held_before: frozenset[str] = frozenset(),
    count_tokens: CountTokens | None = None,
) -> Plan:
    """Divide the agent's cases. Those of `held_before` stay held out for good. Raises DatasetEmpty.

    Reads the cases twice, and keeps about 1.5 kB of each in memory.
    """
    template = find_template(user_texts(stream()))
    plan = Plan(agent, template, Held(config.similarity), Notes())
    found = _survey(stream(), plan, config, held_before, count_tokens)
    learned = _learned(found, plan, config)
    if not learned:
        raise DatasetEmpty(_nothing(agent, found.cases, plan.notes), param="agent")
    validation = draw_validation(learned, config.validation_share, config.validation_max)
    for record in learned:
        plan.parts[record.id] = "validation" if record.id in validation else "train"
    for record in by_hash(resolve(found.askable, plan.notes))[: config.holdout_max]:
        plan.parts[record.id] = "holdout"
    return plan


def _survey(
    cases: Iterable[Case],
    plan: Plan,
    config: DatasetConfig,
    held_before: frozenset[str],
    count_tokens: CountTokens | None,
) -> _Survey:
    survey = _Survey()
    for case in cases:
        survey.cases += 1
        moved = case.split != "holdout" and case.id in held_before
        held = moved or case.split == "holdout"
        printed = fingerprint(case, plan.template)
        if held:
            plan.held.add(printed)
        reason = "moved" if moved else refusal(case, config, count_tokens)
        if reason is not None:
            plan.notes.add(reason, case.id)
        if held and not reason:
            survey.askable.append(record_of(case))
        elif not reason:
            survey.learnable.append(record_of(case, printed))
        elif not held:
            survey.others.append(printed)
    return survey


def _learned(found: _Survey, plan: Plan, config: DatasetConfig) -> list[Record]:
    # what cannot be learned may still be the link between a prompt that can and one that is held out
    prints = [record.print for record in found.learnable if record.print is not None]
    met = meetings(plan.held, [*prints, *found.others], config.similarity)
    kept = [record for record in found.learnable if record.id not in met]
    _note_meetings([record.id for record in found.learnable if record.id in met], len(found.learnable), plan.notes)
    kept = above_quantile(resolve(kept, plan.notes), config.reward_quantile, plan.notes)
    return balanced(kept, config.label_ratio, plan.notes)


def _note_meetings(met: Sequence[str], of: int, notes: Notes) -> None:
    for case_id in met:
        notes.add("near_holdout", case_id)
    if of >= SUSPICIOUS and len(met) > of / 2:
        notes.add("template_suspected", count=len(met))


def _nothing(agent: str, cases: int, notes: Notes) -> str:
    if not cases:
        return f"agent '{agent}' has no cases"
    reasons = ", ".join(f"{finding.count} {finding.code.replace('_', ' ')}" for finding in notes.findings())
    return f"agent '{agent}' has nothing to learn from: of {cases} cases {reasons or 'all are held out'}"
