"""What in a text spoils training: control tokens of chat templates, broken encodings, invisible and mixed letters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

from training.casebank.case import Case, text_of
from training.casebank.duplicates import LOOK_ALIKES

CONTROL = re.compile(
    r"<\|[a-zA-Z][\w ]{0,40}\|>|<\uff5c[^\uff5c<>]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?s>"
)
"""tokens that tell a model who speaks: a tokenizer would read them as such inside a text"""
_BROKEN = re.compile("\ufffd|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\u00c3[\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u2122]")
"""lost characters, control characters, UTF-8 that was read as Latin-1 or Windows-1252"""
_INVISIBLE = re.compile("[\u00ad\u200b\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufeff]")
LEAST_LATIN = 3
"""Latin letters of a word in which a Greek one is no sign of mathematics"""
_WORD = re.compile(r"[^\W\d_]{2,}")


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
    if not text.isascii() and any(map(_is_mixed, _WORD.findall(text))):
        found.add("mixed_scripts")
    return found


def main_script(text: str) -> str | None:
    """The script of most of the first 400 letters (`LATIN`, `CJK`, ...); None without letters."""
    start = text[:400]
    if start.isascii():
        return "LATIN" if any(map(str.isalpha, start)) else None
    counts = Counter(_script(character) for character in start if character.isalpha())
    return max(counts, key=lambda script: (counts[script], script), default=None)


def texts_of(case: Case) -> list[str]:
    """All texts of a case: of every message, and the one to learn."""
    return [*(text_of(message.get("content")) for message in case.messages), case.target or ""]


def has_other_media(case: Case) -> bool:
    """Whether a message holds images, audio or files."""
    parts = (part for message in case.messages if isinstance(c := message.get("content"), list) for part in c)
    return any(isinstance(part, dict) and "text" not in part for part in parts)


def _is_mixed(word: str) -> bool:
    """Whether letters of another script pass for Latin ones. A sign beside a word, as in \u0394t, is common."""
    if word.isascii():
        return False
    scripts = [_script(character) for character in word]
    if "CYRILLIC" in scripts:
        return "LATIN" in scripts or "GREEK" in scripts
    disguised = any(ord(character.lower()) in LOOK_ALIKES for character in word)
    return "GREEK" in scripts and scripts.count("LATIN") >= LEAST_LATIN and disguised


@lru_cache(65_536)
def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]
