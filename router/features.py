"""What makes a task look hard, as numbers: a bounded excerpt of the text goes in, a `Features` tuple comes out.

Work is bounded: `excerpt` keeps the head and the tail of a text, so that a prompt of megabytes costs as much as one of
`MAX_CHARS`. Counts are of the excerpt; `chars` is the length of the whole.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from router.task import Task

HEAD_CHARS = 3072
TAIL_CHARS = 1024
MAX_CHARS = HEAD_CHARS + 1 + TAIL_CHARS

_WORD = re.compile(r"[^\W_]+")
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\(?(?:\d{1,2}|[a-zA-Z])[.)])[ \t]", re.MULTILINE)
_LONG_WORD = 9

_CONSTRAINT, _REASONING, _QUESTION = 0, 1, 2
_LEXICON = {
    _CONSTRAINT: "must only exactly least most without except unless should shall cannot never always avoid ensure "
    "include exclude format json yaml xml csv table schema regex limit maximum minimum between under within "
    "respectively muss müssen mindestens höchstens genau ohne doit exactement moins sans debe exactamente menos sin",
    _REASONING: "prove derive compare contrast analyse analyze evaluate optimise optimize design refactor debug "
    "explain justify calculate compute solve infer deduce estimate determine why assess implement trade tradeoff "
    "tradeoffs simulate integrate differentiate verify argue critique plan diagnose reconcile step steps therefore "
    "assume suppose hence implies complexity algorithm theorem equation probability "
    "beweise erkläre berechne vergleiche warum pourquoi explique expliquez calcule démontre comparez explica calcula "
    "demuestra compara",
    _QUESTION: "what which who whom whose when where how was welche wer wann wo wie quel quelle quand où comment qué "
    "cuál cómo",
}
_CLASS_OF = {word: kind for kind, words in _LEXICON.items() for word in words.split()}
_MATHS = "=+^<>∑∫√≤≥π∞"
_CODE = "{};"


class Features(NamedTuple):
    """Counts and shares; all are non-negative, and each makes a task harder or leaves it as it is."""

    chars: int
    """characters of the whole last user turn"""
    words: int
    turns: int
    """user turns in the conversation"""
    tools: int
    """1 where the request offers tools"""
    system: int
    """1 where a system prompt sets the scene"""
    media: int
    """images, sounds and files"""
    code: int
    """braces and semicolons, eight for a fence"""
    numbers: int
    """words that begin with a digit"""
    maths: int
    """mathematical symbols"""
    constraints: int
    """words such as must, at least, exactly, JSON"""
    reasoning: int
    """words such as prove, compare, optimise, why, step"""
    questions: int
    """question marks, or one for a question word without any"""
    items: int
    """lines that begin as a list's items do: parts of the question, or choices"""
    long_words: float
    """share of words of nine letters or more"""
    foreign: float
    """share of characters outside ASCII"""


def excerpt(text: str) -> str:
    """`text`, or its head and tail where it is longer than `MAX_CHARS`."""
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


@lru_cache(maxsize=4)
def tokens(text: str) -> tuple[str, ...]:
    """Lower-case words of `text`, in order; everything but letters and digits separates them.

    The last few are kept, because each estimator in turn asks for the words of the same task.
    """
    return tuple(_WORD.findall(text.lower()))


def extract(task: Task) -> Features:
    """The features of a task; about 15 microseconds for 300 characters."""
    text = task.text
    words = tokens(text)
    kinds = [_CLASS_OF[word] for word in words if word in _CLASS_OF]
    marks = text.count("?") + text.count("\uff1f")
    return Features(
        chars=task.chars,
        words=len(words),
        turns=task.turns,
        tools=int(task.has_tools),
        system=int(task.has_system),
        media=task.media,
        code=sum(map(text.count, _CODE)) + 8 * text.count("```"),
        numbers=len([word for word in words if word[0] <= "9"]),
        maths=sum(map(text.count, _MATHS)),
        constraints=kinds.count(_CONSTRAINT),
        reasoning=kinds.count(_REASONING),
        questions=marks or int(_QUESTION in kinds),
        items=len(_ITEM.findall(text)),
        long_words=len([word for word in words if len(word) >= _LONG_WORD]) / len(words) if words else 0.0,
        foreign=0.0 if text.isascii() else 1 - len(text.encode("ascii", "ignore")) / len(text),
    )
