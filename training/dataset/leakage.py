"""Nothing of the holdout in training: which prompts are too near to a held-out one, and the check that none is left.

Two prompts meet when they belong to one episode or cluster, when they have the same words in any order, or when they
are near duplicates; and a prompt that meets one that is held out takes all with it that it meets in its turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.casebank.duplicates import THRESHOLD, NearDuplicates, Signature, signatures
from training.dataset.errors import Leakage
from training.dataset.rows import Asked, compared_texts, exact_keys

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What of a prompt is compared. `groups` are the episode and the cluster, where they are known."""

    id: str
    exact: tuple[bytes, ...]
    signatures: tuple[Signature, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Meeting:
    """Why a prompt is too near to another: `how` is `group`, `exact` or `near`."""

    id: str
    other: str
    how: str
    similarity: float = 1.0


def fingerprint(asked: Asked, template: frozenset[str] = frozenset()) -> Fingerprint:
    """What of `asked` is compared; what `template` marks does not count."""
    texts = compared_texts(asked, template)
    exact = tuple(key for text in texts for key in exact_keys(text))
    # clusters are made of whole prompts, so a template would put all into one
    names = ("episode",) if template else ("episode", "cluster")
    groups = [(name, getattr(asked, name, None)) for name in names]
    known = tuple(f"{name}:{value}" for name, value in groups if value)
    return Fingerprint(asked.id, exact, tuple(signatures(texts)), known)


class Held:
    """What training must not meet."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._known: dict[bytes | str, str] = {}
        self._near = NearDuplicates(threshold)

    def add(self, held: Fingerprint) -> None:
        """Keep training away from `held`."""
        keys: tuple[bytes | str, ...] = (*held.exact, *held.groups)
        for key in keys:
            self._known.setdefault(key, held.id)
        for signed in held.signatures:
            self._near.add(held.id, signed)

    def meet(self, one: Fingerprint) -> Meeting | None:
        """The first reason why `one` must not be learned."""
        for how, keys in (("exact", one.exact), ("group", one.groups)):
            for key in keys:
                if key in self._known:
                    return Meeting(one.id, self._known[key], how)
        for signed in one.signatures:
            if found := self._near.query(signed):
                return Meeting(one.id, found[0][0], "near", found[0][1])
        return None


def meetings(held: Held, train: Sequence[Fingerprint], threshold: float = THRESHOLD) -> Mapping[str, Meeting]:
    """Every prompt of `train` that meets `held`, or meets one that does, by id."""
    met: dict[str, Meeting] = {}
    left, front = train, held
    while left:
        found = {one.id: meeting for one in left if (meeting := front.meet(one))}
        if not found:
            break
        met |= found
        front = Held(threshold)
        for one in left:
            if one.id in found:  # those in its episode may ask something else
                front.add(Fingerprint(one.id, one.exact, one.signatures))
        left = [one for one in left if one.id not in found]
    return met


def check_leakage(
    train: Iterable[Asked],
    holdout: Iterable[Asked],
    *,
    threshold: float = THRESHOLD,
    template: frozenset[str] = frozenset(),
) -> None:
    """Raise Leakage if a prompt of `train` is one of `holdout`, or a near duplicate of one."""
    held = Held(threshold)
    for asked in holdout:
        held.add(fingerprint(asked, template))
    found = [meeting for asked in train if (meeting := held.meet(fingerprint(asked, template)))]
    if found:
        shown = "; ".join(f"{each.id} is {_said(each)} {each.other}" for each in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise Leakage(f"{len(found)} training rows are held out: {shown}{more}")


def _said(meeting: Meeting) -> str:
    if meeting.how == "near":
        return f"{meeting.similarity:.0%} similar to"
    return "the same as" if meeting.how == "exact" else "of the episode or cluster of"
