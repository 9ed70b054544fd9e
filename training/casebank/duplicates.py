"""Texts that say the same in nearly the same words: exact by normal form, near by MinHash.

`normalise` levels what carries no meaning (case, punctuation, spaces, look-alike characters); `signature` makes 128
numbers of which two texts share about as large a part as they share words and word pairs (Broder 1997); a
`NearDuplicates` index finds the signatures that share at least `threshold`. Signatures are comparable between
processes and versions, so they may be stored.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Signature = NDArray[np.uint32]
"""shape (PERMUTATIONS,)"""

PERMUTATIONS = 128
THRESHOLD = 0.8
BANDS, ROWS = 21, 6
"""two texts of similarity .8 meet in one of 21 bands of 6 with probability .998, of .5 with .28"""
_SEED = 1

# lower-case letters of Cyrillic and Greek that look like Latin ones, or whose capitals do
LOOK_ALIKES = str.maketrans(
    "\u0430\u0432\u0435\u0451\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u04cf"
    "\u03b1\u03b2\u03b5\u03b7\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u03b6\u0131\u0261",
    "abeekmhopctyxijshdqwlabehikvoptyxzig",
)
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""scripts written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese"""
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_COURTESY = re.compile(
    r"\b(?:thank you(?: (?:very|so) much)?|thanks(?: (?:a lot|so much))?|many thanks|in advance"
    r"|(?:kind|best|warm) regards|please|pls|plz|kindly|thx|cheers|hi(?: there)?|hello|hey|sorry|excuse me"
    r"|good (?:morning|afternoon|evening|day)|bitte|danke|hallo|por favor|gracias|hola|merci|bonjour|s il vous plaît)\b"
)


def normalise(text: str) -> str:
    """`text` without what carries no meaning; two texts with one normal form are exact duplicates.

    NFKC and case folded, invisible characters dropped, apostrophes dropped, other punctuation and white space to one
    space, Cyrillic and Greek letters to the Latin ones that they resemble. Signs like + and < stay, since they change
    what is asked. A text of punctuation alone keeps it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_CHARACTERS).split()) or " ".join(folded.split())


class _Characters(dict[int, "str | int | None"]):
    """What becomes of each character, decided on first sight."""

    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        kind = unicodedata.category(character)
        found: str | int | None = LOOK_ALIKES.get(code, code)
        if kind == "Cf" or character in "'\u2019\u02bc`\u00b4":
            found = None
        elif kind[0] in "PZC":
            found = " "
        self[code] = found
        return found


_CHARACTERS = _Characters()


def words(text: str) -> list[str]:
    """The words that two texts are compared by: of the normal form, without greetings, please and thanks.

    Scripts without spaces give one word a character. Nothing but courtesies is kept as it is.
    """
    normal = normalise(text)
    return _WORD.findall(_COURTESY.sub(" ", normal)) or _WORD.findall(normal)


def signature(text: str) -> Signature:
    """The MinHash of the words and word pairs of `text`: shape (128,), uint32. About 0.4 ms for a short text."""
    return next(signatures([text]))


def signatures(texts: Iterable[str]) -> Iterator[Signature]:
    """`signature` of each, as they come."""
    from datasketch import MinHash  # type: ignore[import-untyped]  # takes a second: it imports scipy

    for text in texts:
        sketch = MinHash(num_perm=PERMUTATIONS, seed=_SEED, permutations=_permutations(), scheme="affine32")
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles(text)])
        yield sketch.hashvalues


@lru_cache(1)
def _permutations() -> NDArray[np.uint32]:
    from datasketch import MinHash

    permutations: NDArray[np.uint32] = MinHash(num_perm=PERMUTATIONS, seed=_SEED, scheme="affine32").permutations
    return permutations


def shingles(text: str) -> set[str]:
    """Words and pairs of neighbours, each once. Longer runs would miss a changed word in texts under 20 words."""
    singles = words(text)
    return {*singles, *(f"{first} {second}" for first, second in pairwise(singles))}


class NearDuplicates:
    """An index of signatures by key. Similarities are estimates, with a standard error of .035 at .8.

    About 3 kB a signature. Not safe for several threads that write.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self._keys: list[str] = []
        self._signatures = np.empty((64, PERMUTATIONS), np.uint32)
        self._buckets: dict[int, int | list[int]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, signature: Signature) -> None:
        """Make `signature` findable as `key`. Several may have one key. That of a blank text is never found."""
        if _is_blank(signature):
            return
        position = len(self._keys)
        if position == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[position] = signature
        self._keys.append(key)
        for bucket in _bands(signature):
            present = self._buckets.setdefault(bucket, position)
            if isinstance(present, list):
                present.append(position)
            elif present != position:
                self._buckets[bucket] = [present, position]

    def query(self, signature: Signature) -> list[tuple[str, float]]:
        """Keys at least `threshold` similar and their estimated similarity (0 to 1), most similar first."""
        if _is_blank(signature):
            return []
        met: set[int] = set()
        for bucket in _bands(signature):
            present = self._buckets.get(bucket)
            if isinstance(present, list):
                met.update(present)
            elif present is not None:
                met.add(present)
        if not met:
            return []
        positions = np.fromiter(sorted(met), np.intp, len(met))
        shared = np.count_nonzero(self._signatures[positions] == signature, axis=1) / PERMUTATIONS
        best = np.argsort(-shared, kind="stable")
        return [(self._keys[positions[at]], float(shared[at])) for at in best if shared[at] >= self.threshold]


_FACTORS = np.random.default_rng(_SEED).integers(1, 2**63, (BANDS, ROWS), dtype=np.uint64) | np.uint64(1)


def _bands(signature: Signature) -> list[int]:
    """One number a band, equal where all its rows are; a chance meeting is undone by the comparison that follows."""
    rows = signature[: BANDS * ROWS].reshape(BANDS, ROWS).astype(np.uint64)
    numbers: list[int] = (rows * _FACTORS).sum(axis=1, dtype=np.uint64).tolist()
    return numbers


def _is_blank(signature: Signature) -> bool:
    return bool((signature == np.iinfo(np.uint32).max).all())
