"""The figures of a dataset, gathered row by row while it is written."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from training.casebank.case import Case
from training.casebank.redaction import redact_text
from training.dataset.faults import main_script, oddities, texts_of
from training.dataset.quality import Notes
from training.dataset.rows import PARTS, Part
from training.dataset.selection import CountTokens, label_of

PERCENTILES = (50, 90, 99, 100)
MOST_LABELS = 1000
"""different answers from which on they are no labels"""
IMBALANCE = 10
RARE = 5
FEW, SMALL_HOLDOUT = 100, 30


class Tally:
    """Counts the rows of each part. Lengths are characters, tokens those of prompt and answer together."""

    def __init__(self, notes: Notes, count_tokens: CountTokens | None = None) -> None:
        self._notes = notes
        self._count_tokens = count_tokens
        self.rows: Counter[Part] = Counter()
        self._labels: dict[str, Counter[Part]] = defaultdict(Counter)
        self._task_types: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._corrected = 0
        self._prompts = array("L")
        self._answers = array("L")
        self._tokens = array("L")
        self._rewards = array("d")
        self._scripts: Counter[str] = Counter()

    def add(self, case: Case, part: Part) -> None:
        """Count `case` as a row of `part`."""
        self.rows[part] += 1
        label = label_of(case)
        if label is not None:
            self._labels[label][part] += 1
        self._task_types[case.task_type or "none"] += 1
        self._sources[case.source] += 1
        self._corrected += case.corrected or case.correction is not None
        texts = texts_of(case)
        self._prompts.append(sum(map(len, texts[:-1])))
        self._answers.append(len(texts[-1]))
        self._rewards.append(1.0 if case.corrected else case.reward or 0.0)
        if self._count_tokens is not None:
            self._tokens.append(self._count_tokens(case))
        self._look_at(case.id, texts)

    def _look_at(self, case_id: str, texts: list[str]) -> None:
        for oddity in sorted({oddity for text in texts for oddity in oddities(text)}):
            self._notes.add(oddity, case_id)
        if any(redact_text(text) != text for text in texts):
            self._notes.add("personal_data", case_id)
        script = main_script("\n".join(texts))
        if script is not None:
            self._scripts[script] += 1

    def statistics(self, general: int) -> dict[str, Any]:
        """All figures, as JSON."""
        total = sum(self.rows.values())
        return {
            "rows": {part: self.rows[part] for part in PARTS} | {"general": general},
            "characters": {"prompt": _percentiles(self._prompts), "answer": _percentiles(self._answers)},
            "tokens": {"sum": sum(self._tokens)} | _percentiles(self._tokens) if self._tokens else None,
            "labels": self.labels(),
            "rewards": _rewards(self._rewards),
            "task_types": dict(self._task_types.most_common()),
            "sources": dict(self._sources.most_common()),
            "corrections_share": self._corrected / total if total else 0.0,
        }

    def labels(self) -> dict[str, dict[str, int]]:
        """Rows of each label by part; empty where answers are no labels."""
        if len(self._labels) > MOST_LABELS:
            return {}
        return {label: {part: counts[part] for part in PARTS} for label, counts in sorted(self._labels.items())}

    def note_whole(self) -> None:
        """Note what only all rows together tell."""
        self._note_balance()
        for script, rows in self._scripts.most_common()[1:]:
            self._notes.add("other_script", count=rows, names=(script,))

    def _note_balance(self) -> None:
        learned = {label: counts["train"] for label, counts in self.labels().items()}
        if unlearned := tuple(label for label, rows in learned.items() if not rows):
            self._notes.add("unlearned_labels", count=len(unlearned), names=unlearned)
        seen = {label: rows for label, rows in learned.items() if rows}
        if rare := tuple(label for label, rows in seen.items() if rows < RARE):
            self._notes.add("rare_labels", count=len(rare), names=rare)
        if len(seen) > 1 and (largest := max(seen, key=seen.__getitem__)) is not None:
            smallest = min(seen, key=seen.__getitem__)
            if seen[largest] > IMBALANCE * seen[smallest]:
                self._notes.add("imbalanced", names=(largest, smallest))
        if self.rows["train"] < FEW:
            self._notes.add("few_rows", count=self.rows["train"])
        if not self.rows["holdout"]:
            self._notes.add("no_holdout")
        elif self.rows["holdout"] < SMALL_HOLDOUT:
            self._notes.add("small_holdout", count=self.rows["holdout"])


def _percentiles(values: array[int]) -> dict[str, int]:
    if not values:
        return {}
    found = np.percentile(np.asarray(values), PERCENTILES, method="higher")
    return {f"p{share}" if share < 100 else "max": int(value) for share, value in zip(PERCENTILES, found, strict=True)}


def _rewards(values: array[float]) -> dict[str, Any]:
    if not values:
        return {}
    counts, _ = np.histogram(np.asarray(values), bins=10, range=(0.0, 1.0))
    return {"mean": float(np.mean(np.asarray(values))), "tenths": counts.tolist()}
