"""What is wrong with an agent's cases, for people: findings with their weight and the cases that they are about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SHOWN = 20
"""case ids named in a finding"""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

_MEANINGS: Mapping[str, tuple[Severity, str]] = {
    "template_suspected": (
        "error",
        "most prompts resemble a held-out one; if they share a fixed text, "
        "put it into the system prompt or on lines of its own",
    ),
    "no_holdout": ("error", "nothing is held out, so no candidate can be judged"),
    "control_tokens": ("error", "left out: a chat template's control tokens stand in the text"),
    "unlearned_labels": ("warning", "labels that are held out and never learned"),
    "conflicting": ("warning", "left out: the same prompt has a better or newer answer of other content"),
    "moved": ("warning", "left out: they were held out in an earlier dataset"),
    "tool_calls": ("warning", "left out: the answer calls tools, which is not learned from text"),
    "other_media": ("warning", "left out: images, audio or files in the prompt"),
    "too_long": ("warning", "left out: longer than a training row may be"),
    "empty_prompt": ("warning", "left out: no text in the prompt"),
    "empty_answer": ("warning", "left out: no text to learn"),
    "broken_encoding": ("warning", "lost characters, control characters or wrongly decoded UTF-8"),
    "mixed_scripts": ("warning", "words of Latin, Greek and Cyrillic letters together: look-alikes, or a mistake"),
    "imbalanced": ("warning", "the largest label has over ten times the rows of the smallest"),
    "rare_labels": ("warning", "labels with fewer than five rows to learn"),
    "few_rows": ("warning", "fewer than 100 rows to learn"),
    "small_holdout": ("warning", "fewer than 30 rows are held out: a gate can hardly tell two candidates apart"),
    "personal_data": ("warning", "what looks like personal data"),
    "invisible_characters": ("info", "characters that nobody sees"),
    "other_script": ("info", "written in another script than most"),
    "near_holdout": ("info", "left out: near duplicates of what is held out"),
    "duplicates": ("info", "left out: the same prompt and answer again"),
    "over_label_ratio": ("info", "left out: more rows of one label than label_ratio allows"),
    "below_quantile": ("info", "left out: below the reward quantile"),
    "low_reward": ("info", "left out: below the reward threshold, and not corrected"),
    "unrewarded": ("info", "left out: nobody said what the answer was worth"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the cases. `cases` are ids of at most 20 of them; `names` what else it is about (labels)."""

    code: str
    severity: Severity
    count: int
    message: str
    cases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "count": self.count,
            "message": self.message,
            "cases": list(self.cases),
            "names": list(self.names),
        }


class Notes:
    """Findings in the making: how often each code was noted, and for which cases."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._cases: dict[str, list[str]] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, code: str, case_id: str | None = None, *, count: int = 1, names: tuple[str, ...] = ()) -> None:
        """Note `code` once more."""
        self._counts[code] = self._counts.get(code, 0) + count
        sample = self._cases.setdefault(code, [])
        if case_id is not None and len(sample) < SHOWN:
            sample.append(case_id)
        self._names.setdefault(code, []).extend(names)

    def count(self, code: str) -> int:
        """How often `code` was noted."""
        return self._counts.get(code, 0)

    def findings(self) -> Iterator[Finding]:
        """The gravest first."""
        order = {severity: place for place, severity in enumerate(SEVERITIES)}
        for code in sorted(self._counts, key=lambda code: (order[_MEANINGS[code][0]], -self._counts[code], code)):
            severity, message = _MEANINGS[code]
            yield Finding(
                code, severity, self._counts[code], message, tuple(self._cases[code]), tuple(self._names[code])
            )
