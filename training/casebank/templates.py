"""Prompts that share a fixed text, such as an instruction above each input, and differ in what fills it.

As whole texts they are near duplicates of each other. `fill_one_template` tells two of them from true near duplicates;
`find_template` learns the fixed text from many, and `without_template` takes it away.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from training.casebank.duplicates import THRESHOLD, normalise, shingles

STEP = 16
"""words of an opening or closing that two texts do not share by chance; longer ones are told to the next step"""
LONGEST = 512
EDIT = 2
"""words that differ in an edited text; where more do, and nothing else, something else is asked"""
_REMEMBERED = 100_000
"""parts of which the rests are remembered"""


def fill_one_template(one: str, other: str, threshold: float = THRESHOLD) -> bool:
    """Whether two texts, in normal form, resemble each other only in how they begin and end."""
    first, second = one.split(), other.split()
    opening = _shared(first, second)
    closing = _shared(first[opening:][::-1], second[opening:][::-1])
    if opening + closing < STEP:
        return False
    rests = [words[opening : len(words) - closing] for words in (first, second)]
    if min(map(len, rests)) <= EDIT:
        return False
    left, right = (shingles(" ".join(rest)) for rest in rests)
    return len(left & right) < threshold * len(left | right)


def _shared(one: list[str], other: list[str]) -> int:
    """How many words both begin with."""
    for count, (first, second) in enumerate(zip(one, other, strict=False)):
        if first != second:
            return count
    return min(len(one), len(other))


def find_template(texts: Iterable[str], least: int = 20, share: float = 0.05) -> frozenset[str]:
    """Marks of the lines, openings and closings that `share` of the texts have, with `least` or more different rests.

    Parts that are seldom seen are forgotten on the way, so that memory stays bounded (lossy counting, Manku and Motwani
    2002).
    """
    rests: dict[str, set[int]] = {}
    seen: Counter[str] = Counter()
    limit, count = _REMEMBERED, 0
    for count, text in enumerate(texts, 1):  # noqa: B007 - counts them
        for mark, rest in _parts(text):
            seen[mark] += 1
            known = rests.setdefault(mark, set())
            if len(known) < least:
                known.add(rest)
        if len(rests) > limit:
            rests = {mark: known for mark, known in rests.items() if len(known) > 1}
            seen = Counter({mark: seen[mark] for mark in rests})
            limit = max(_REMEMBERED, 2 * len(rests))
    return frozenset(mark for mark, known in rests.items() if len(known) >= least and seen[mark] >= share * count)


def without_template(text: str, template: frozenset[str]) -> str:
    """`text` without what `template` marks; all of it when nothing else is left."""
    if not template:
        return text
    kept = " ".join(line for line in _lines(text) if _mark("line", line) not in template).split()
    for kind, way in (("opening", 1), ("closing", -1)):
        marks = [mark for mark, _ in _edges(kind, kept[::way])]
        found = max((length for length, mark in enumerate(marks, 1) if mark in template), default=0)
        kept = kept[::way][found * STEP :][::way]
    return " ".join(kept) or text


def _parts(text: str) -> Iterator[tuple[str, int]]:
    """What may be fixed in `text`, by its mark, with a hash of the rest."""
    lines = {line: hash(line) for line in _lines(text)}
    whole = sum(lines.values())
    if len(lines) > 1:
        yield from ((_mark("line", line), whole - own) for line, own in lines.items())
    words = " ".join(_lines(text)).split()
    yield from _edges("opening", words)
    yield from _edges("closing", words[::-1])


def _edges(kind: str, words: list[str]) -> Iterator[tuple[str, int]]:
    """The beginnings of `words` that leave something over, the shortest first, with a hash of what is left."""
    digest = hashlib.blake2b(kind.encode(), digest_size=12)
    for end in range(STEP, min(len(words), LONGEST + 1), STEP):
        digest.update("\0".join(("", *words[end - STEP : end])).encode("utf-8", "surrogatepass"))
        yield digest.hexdigest(), hash(tuple(words[end : end + STEP]))


def _mark(kind: str, text: str) -> str:
    return hashlib.blake2b(f"{kind}\0{text}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _lines(text: str) -> list[str]:
    return [normal for line in text.splitlines() if line.strip() and (normal := normalise(line))]
