"""Signatures of prompts as the database keeps them, and the keys under which near duplicates meet there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from training.casebank.duplicates import PERMUTATIONS, THRESHOLD, signatures

BANDS, ROWS = 12, 5
"""two prompts of similarity .8 share one of the keys with probability .991, of .9 with .99998"""
_DTYPE = np.dtype("<u4")


def sign(texts: Iterable[str]) -> list[bytes]:
    """The signatures of `texts`, 512 bytes each."""
    return [np.asarray(signature).astype(_DTYPE).tobytes() for signature in signatures(texts)]


def keys_of(agent: str | None, signature: bytes) -> set[int]:
    """Signed 64-bit keys, one a band; those of two agents never meet."""
    scope, width = (agent or "").encode(), _DTYPE.itemsize * ROWS
    keys = set()
    for band in range(BANDS):
        rows = signature[band * width : (band + 1) * width]
        digest = hashlib.blake2b(rows, digest_size=8, person=band.to_bytes(16, "big"), key=scope[:64])
        keys.add(int.from_bytes(digest.digest(), "big", signed=True))
    return keys


def similar(signature: bytes, others: Sequence[bytes]) -> list[int]:
    """The positions of the near duplicates among `others`, the nearest first."""
    if not others:
        return []
    stacked = np.frombuffer(b"".join(others), _DTYPE).reshape(-1, PERMUTATIONS)
    shared = np.mean(stacked == np.frombuffer(signature, _DTYPE), axis=1)
    return [int(at) for at in np.argsort(-shared, kind="stable") if shared[at] >= THRESHOLD]
