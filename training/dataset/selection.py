"""Which cases may be learned, and which answer to a prompt counts when there are several.

Records are what is kept of a case in memory, so that a hundred thousand need tens of megabytes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from training.casebank.case import Case
from training.dataset.config import DatasetConfig
from training.dataset.faults import has_control_token, has_other_media, texts_of
from training.dataset.leakage import Fingerprint
from training.dataset.quality import Notes
from training.dataset.rows import prompt_key

CLASSIFICATION = "classification"
CountTokens = Callable[[Case], int]
"""tokens of a case's prompt and answer together"""


@dataclass(frozen=True, slots=True)
class Record:
    """A case that may be learned. `at` is seconds since the epoch, `label` the answer where it is one of a few."""

    id: str
    prompt: bytes
    answer: bytes
    reward: float
    corrected: bool
    at: float
    group: str
    label: str | None
    print: Fingerprint | None = None


def record_of(case: Case, printed: Fingerprint | None = None) -> Record:
    """What is kept of `case`."""
    at = case.rewarded_at or case.created_at
    return Record(
        id=case.id,
        prompt=prompt_key(case),
        answer=hashlib.blake2b((case.target or "").strip().encode("utf-8", "surrogatepass"), digest_size=16).digest(),
        reward=1.0 if case.corrected else case.reward or 0.0,
        corrected=case.corrected or case.correction is not None,
        at=at.timestamp() if at else 0.0,
        group=case.cluster or case.episode or case.id,
        label=label_of(case),
        print=printed,
    )


def label_of(case: Case) -> str | None:
    """The class that a case belongs to, None where its answer is no class."""
    return case.target if case.task_type == CLASSIFICATION or case.label is not None else None


def refusal(case: Case, config: DatasetConfig, count_tokens: CountTokens | None) -> str | None:
    """Why `case` is neither learned nor asked, as a code; None if it may be."""
    if not case.corrected and (case.reward is None or case.reward < config.reward_threshold):
        return "unrewarded" if case.reward is None else "low_reward"
    return _unfit(case) or _too_long(case, config, count_tokens)


def _unfit(case: Case) -> str | None:
    *prompt, answer = texts_of(case)
    given = case.correction is not None or case.label is not None
    faults = {
        "empty_prompt": not any(text.strip() for text in prompt),
        "empty_answer": not answer.strip(),
        "tool_calls": not given and bool((case.response or {}).get("tool_calls")),
        "other_media": has_other_media(case),
        "control_tokens": any(map(has_control_token, (*prompt, answer))),
    }
    return next((code for code, found in faults.items() if found), None)


def _too_long(case: Case, config: DatasetConfig, count_tokens: CountTokens | None) -> str | None:
    if config.max_tokens is None or count_tokens is None or count_tokens(case) <= config.max_tokens:
        return None
    return "too_long"


def resolve(records: Iterable[Record], notes: Notes) -> list[Record]:
    """One record a prompt: the newest correction, else the highest reward, else the newest."""
    prompts: dict[bytes, list[Record]] = defaultdict(list)
    for record in records:
        prompts[record.prompt].append(record)
    kept = []
    for alike in prompts.values():
        best = max(alike, key=_worth)
        for other in alike:
            if other is not best:
                notes.add("duplicates" if other.answer == best.answer else "conflicting", other.id)
        kept.append(best)
    return kept


def _worth(record: Record) -> tuple[bool, float, float, str]:
    # of corrections the newest counts, whatever their rewards
    return record.corrected, 0.0 if record.corrected else record.reward, record.at, record.id


def above_quantile(records: Sequence[Record], quantile: float | None, notes: Notes) -> list[Record]:
    """Those whose reward reaches the quantile of all; corrections always do."""
    if quantile is None or not records:
        return list(records)
    least = float(np.quantile([record.reward for record in records], quantile))
    kept = []
    for record in records:
        if record.corrected or record.reward >= least:
            kept.append(record)
        else:
            notes.add("below_quantile", record.id)
    return kept


def balanced(records: Sequence[Record], ratio: float | None, notes: Notes) -> list[Record]:
    """At most `ratio` times the median label's rows of each label, chosen by hash; rows without a label stay."""
    labels: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.label is not None:
            labels[record.label].append(record)
    if ratio is None or not labels:
        return list(records)
    most = max(1, int(ratio * float(np.median([len(rows) for rows in labels.values()]))))
    surplus = {record.id for rows in labels.values() for record in by_hash(rows)[most:]}
    for each in sorted(surplus):
        notes.add("over_label_ratio", each)
    return [record for record in records if record.id not in surplus]


def by_hash(records: Iterable[Record]) -> list[Record]:
    """In an order that knows neither time nor content, and that new records do not disturb."""
    return sorted(records, key=lambda record: drawn(record.id))


def drawn(key: str) -> bytes:
    """The place of `key` in that order."""
    return hashlib.sha256(f"dataset\0{key}".encode()).digest()
