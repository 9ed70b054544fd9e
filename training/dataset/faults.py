"""What in a text spoils training: control tokens of chat templates, broken encodings, invisible and mixed letters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from training.casebank.case import Case, text_of

CONTROL = re.compile(
    r"<\|[a-zA-Z][\w ]{0,40}\|>|<\uff5c[^\uff5c<>]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?s>"
)
"""tokens that tell a model who speaks: a tokenizer would read them as such inside a text"""
_BROKEN = re.compile("\ufffd|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\u00c3[\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u2122]")
"""lost characters, control characters, UTF-8 that was read as Latin-1 or Windows-1252"""
_INVISIBLE = re.compile("[\u00ad\u200b\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufeff]")
_WORD = re.compile(r"[^\W\d_]{2,}")
_MIXED = frozenset({"LATIN", "CYRILLIC", "GREEK"})


def has_control_token(text: str) -> bool:
    """Whether a token of a chat template stands in `text`."""
    return CONTROL.search(text) is not None


def oddities(text: str) -> set[str]:
    """Codes of what is odd about `text`: `broken_encoding`, `invisible_characters`, `mixed_scripts`."""
    found = set()
    if _BROKEN.search(text):
        found.add("broken_encoding")
    if _INVISIBLE.search(text):
        found.add("invisible_characters")
    if not text.isascii() and any(len(_scripts(word) & _MIXED) > 1 for word in _WORD.findall(text)):
        found.add("mixed_scripts")
    return found


def main_script(texts: Iterable[str]) -> str | None:
    """The script of most letters among the first 400 of each text (`LATIN`, `CJK`, ...); None without letters."""
    counts: dict[str, int] = {}
    for text in texts:
        for character in text[:400]:
            if character.isalpha():
                script = _script(character)
                counts[script] = counts.get(script, 0) + 1
    return max(counts, key=lambda script: (counts[script], script), default=None)


def texts_of(case: Case) -> list[str]:
    """All texts of a case: of every message, and the one to learn."""
    return [*(text_of(message.get("content")) for message in case.messages), case.target or ""]


def has_other_media(case: Case) -> bool:
    """Whether a message holds images, audio or files."""
    parts = (part for message in case.messages if isinstance(c := message.get("content"), list) for part in c)
    return any(isinstance(part, dict) and "text" not in part for part in parts)


def _scripts(word: str) -> set[str]:
    return set() if word.isascii() else {_script(character) for character in word}


@lru_cache(65_536)
def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]
