"""Which rows are learned from and which are held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from router.learned import RouteRow

Array = np.ndarray[Any, np.dtype[Any]]


class Split(NamedTuple):
    """Places of rows, in ascending order."""

    train: Array
    test: Array


def splits(rows: Sequence[RouteRow], folds: int, *, seed: int, train_rows: int | None = None) -> Iterator[Split]:
    """Each row is held out once. Rows of one group, or of one prompt where rows have no group, share a fold.

    A prompt that two groups share is not learned from while it is held out. With `train_rows`, only so many of the rows
    to learn from are kept, drawn at random. Raises ValueError where there are fewer units than folds.
    """
    fold = folds_of(rows, folds, seed=seed)
    for number in range(folds):
        test = np.flatnonzero(fold == number)
        asked = {rows[place].prompt for place in test}
        train = np.array([place for place in np.flatnonzero(fold != number) if rows[place].prompt not in asked])
        yield Split(draw(train, train_rows, seed + number), test)


def folds_of(rows: Sequence[RouteRow], folds: int, *, seed: int) -> Array:
    """The fold of each row; shape (rows,)."""
    names = [row.prompt if row.group is None else row.group for row in rows]
    units, unit = np.unique(names, return_inverse=True)
    if len(units) < folds:
        what = "prompts" if rows[0].group is None else "groups"
        raise ValueError(f"{len(units)} different {what} cannot fill {folds} folds")
    fold_of_unit = np.random.default_rng(seed).permutation(len(units)) % folds
    return np.asarray(fold_of_unit[unit])


def draw(places: Array, number: int | None, seed: int) -> Array:
    """`number` of the places at random, or all where that is None or more than there are."""
    if number is None or number >= len(places):
        return places
    return np.sort(np.random.default_rng(seed).choice(places, number, replace=False))
