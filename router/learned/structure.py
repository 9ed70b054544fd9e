"""The form of a task, whatever it is about: what is asked for, what may be chosen from, how much of it is numbers.

Which words a task holds tells its subject, and a subject that nobody has seen yet has no such words. How it is put
(the choices are numbers, or arrangements of the same words; a case is told before the question; the question denies)
means the same in every subject, so estimators that must work on unseen kinds of task rest on this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, pstdev

from router.features import tokens

_MARK = re.compile(r"^[ \t]*\(?([A-Ha-h]|[1-9])[.)][ \t]", re.MULTILINE)
_TAIL = re.compile(r"\n[ \t]*(?:answer|antwort|réponse|respuesta)[ \t]*:?\Z", re.IGNORECASE)
"""at the end of a stripped text: two runs of blanks beside each other would take quadratic time to refuse"""
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[\s$€£\u2212\u2013+(-]*\d")
_DIGITS = re.compile(r"\d")
_CAPITALS = re.compile(r"[A-Z]")
_SENTENCE = re.compile(r"[.!?]\s")
_DENIED = re.compile(r"\b(?:not|except|least|false|incorrect|never)\b", re.IGNORECASE)
_SHOUTED = frozenset(["NOT", "EXCEPT", "LEAST", "BEST", "MOST", "TRUE", "FALSE"])
_YEARS = frozenset(map(str, range(1500, 2100)))
_OTHERS = re.compile(r"of the above|of these|both \(?[a-d]\b|\ball of|none of|neither", re.IGNORECASE)
_VERDICTS = frozenset(["true", "false", "yes", "no", "wrong", "right", "valid", "invalid"])
_SYMBOLS = "=+^<>*/√π∑∫≤≥\u00d7∈\u222a\u2228∧⊃~≡"
_QUOTES = '"\u201c\u2018'
_LOGIC = frozenset(["if", "then", "not", "or", "and", "all", "some", "every", "any", "unless", "either", "neither"])
_CUES = (
    *("which", "what", "how", "why", "who", "if", "calculate", "find", "suppose", "assume", "best", "most"),
    *("following", "because", "both", "only", "would", "should", "must", "according", "i", "he", "she", "they", "you"),
)
_ASKS = ("what", "which", "who", "when", "where", "how", "why")
_PHRASES = ("which of the following", "refers to", "year-old", "based on", "the passage")

NAMES: tuple[str, ...] = (
    *("chars", "question_chars", "question_words"),
    *("choices", "choice_mean", "choice_min", "choice_max", "choice_spread"),
    *("choice_numbers", "choice_digits", "choice_words", "choice_single", "choice_capitals", "choice_commas"),
    *("choice_points", "choice_first_words", "choice_sets", "choice_vocabulary", "choice_repeats", "arranged"),
    *("likeness_mean", "likeness_max", "overlap_mean", "overlap_max", "overlap_spread", "verdicts", "others"),
    *("digits", "numbers", "symbols", "dollars", "backslashes", "brackets", "blank", "statements", "denied", "shouted"),
    *("ends_asking", "ends_colon", "ends_full", "ends_open", "begins_asking", "sentences", "lines", "quotes", "year"),
    *("word_chars", "choice_word_chars", "long_words", "variety", "foreign", "capitals", "logic"),
    *(f"says_{cue}" for cue in _CUES),
    *(f"says_{phrase.replace(' ', '_')}" for phrase in _PHRASES),
)


def split_choices(text: str) -> tuple[str, list[str]]:
    """The question, and the choices that it ends with (none: an empty list).

    Choices are the last lines that are marked A, B, ... or 1, 2, ... in order, at least two; a choice may have lines.
    """
    if tail := _TAIL.search(text.rstrip()):
        text = text[: tail.start()]
    marks = list(_MARK.finditer(text))
    start = len(marks) - 1
    while start > 0 and ord(marks[start - 1][1]) == ord(marks[start][1]) - 1:
        start -= 1
    run = marks[start:] if start >= 0 else []
    if len(run) < 2 or run[0][1] not in "Aa1":
        return text, []
    ends = [mark.start() for mark in run[1:]] + [len(text)]
    return text[: run[0].start()], [text[mark.end() : end].strip() for mark, end in zip(run, ends, strict=True)]


def structure(text: str) -> list[float]:
    """One number for each of `NAMES`; counts are ln(1 + n). About 300 microseconds for 2,000 characters."""
    question, choices = split_choices(text)
    lowered = question.lower()
    asked = tokens(question)
    offered = [_WORD.findall(choice.lower()) for choice in choices]
    end = question.rstrip()[-1:]
    said = frozenset(asked)
    return [
        *_sizes(text, question, asked, choices),
        *_choices(choices, offered, said),
        *(_log(len(_DIGITS.findall(question))), _log(len([word for word in asked if word[0] <= "9"]))),
        *(_log(sum(map(text.count, _SYMBOLS))), _log(text.count("$")), _log(text.count("\\")), _log(text.count("("))),
        *(float("__" in text), float("statement 1" in lowered or "statement i" in lowered)),
        *(float(_DENIED.search(question[-200:]) is not None), float(any(word in question for word in _SHOUTED))),
        *(float(end == "?"), float(end == ":"), float(end == "."), float(end.isalpha() or end in (",", "_"))),
        float(asked[0] in _ASKS) if asked else 0.0,
        *(_log(len(_SENTENCE.findall(question))), _log(question.count("\n")), _log(sum(map(text.count, _QUOTES)))),
        float(not _YEARS.isdisjoint(asked)),
        *_words(text, asked, offered),
        _log(len([word for word in asked if word in _LOGIC])),
        *(float(cue in said) for cue in _CUES),
        *(float(phrase in lowered) for phrase in _PHRASES),
    ]


def _sizes(text: str, question: str, asked: Sequence[str], choices: Sequence[str]) -> list[float]:
    """Lengths of the whole, the question and the choices."""
    lengths = [len(choice) for choice in choices] or [0]
    sizes = (len(text), len(question), len(asked), len(choices), fmean(lengths), min(lengths), max(lengths))
    return [*map(_log, sizes), _log(pstdev(lengths))]


def _choices(choices: Sequence[str], offered: Sequence[Sequence[str]], said: frozenset[str]) -> list[float]:
    """What the choices look like, and how they resemble each other and the question."""
    if not choices:
        return [0.0] * 19
    number = len(choices)
    sets = [frozenset(words) for words in offered]
    every = frozenset().union(*sets)
    words = sum(map(len, offered))
    likeness = [len(a & b) / (len(a | b) or 1) for a, b in combinations(sets, 2)]
    overlap = [len(each & said) / (len(each) or 1) for each in sets]
    digits = fmean(len(_DIGITS.findall(choice)) / (len(choice) + 1) for choice in choices)
    return [
        *(sum(_NUMBER.match(choice) is not None for choice in choices) / number, digits, _log(words / number)),
        *(sum(len(each) == 1 for each in offered) / number, sum(choice[:1].isupper() for choice in choices) / number),
        *(_marks(choices, ","), _marks(choices, ";:")),
        *(len({each[0] for each in offered if each}) / number, len(set(sets)) / number, _log(len(every))),
        1 - len(every) / words if words else 0.0,
        float(len(every) <= 3 and words >= 6),
        *(fmean(likeness), max(likeness), fmean(overlap), max(overlap), pstdev(overlap)),
        float(any(each[0] in _VERDICTS for each in offered if each)),
        float(_OTHERS.search("\n".join(choices)) is not None),
    ]


def _marks(choices: Sequence[str], marks: str) -> float:
    """Occurrences of any of the marks in a choice, on average, as a logarithm."""
    return _log(sum(choice.count(mark) for choice in choices for mark in marks) / len(choices))


def _words(text: str, asked: Sequence[str], offered: Sequence[Sequence[str]]) -> list[float]:
    """How long, how varied and how foreign the words are."""
    chosen = [word for words in offered for word in words]
    words = [*asked, *chosen]
    if not words:
        return [0.0] * 6
    foreign = 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))
    return [
        sum(map(len, words)) / len(words),
        sum(map(len, chosen)) / len(chosen) if chosen else 0.0,
        len([word for word in words if len(word) >= 9]) / len(words),
        len(set(words)) / len(words),
        _log(foreign),
        len(_CAPITALS.findall(text)) / len(text),
    ]


def _log(number: float) -> float:
    return math.log1p(number)
