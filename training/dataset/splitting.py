"""Validation rows out of training rows: whole groups, the same share of every label and reward quartile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from training.dataset.selection import Record, drawn

LEAST = 20
"""rows below which none is spared for validation"""


def draw_validation(records: Sequence[Record], share: float, most: int) -> set[str]:
    """Ids of the rows that validate. A group (episode or cluster) is wholly in or out; the choice is by its hash."""
    if len(records) < LEAST or not share or not most:
        return set()
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.id):
        groups[record.group].append(record)
    strata: dict[tuple[str | None, int], list[str]] = defaultdict(list)
    quartiles = np.quantile([record.reward for record in records], [0.25, 0.5, 0.75])
    for name, members in groups.items():
        strata[members[0].label, int(np.searchsorted(quartiles, members[0].reward))].append(name)
    share = min(share, most / len(records))
    chosen: set[str] = set()
    carried = 0.0  # what a stratum's share leaves over goes to the next, so that small ones give their part too
    for _, names in sorted(strata.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        wanted = share * sum(len(groups[name]) for name in names) + carried
        for name in sorted(names, key=drawn)[:-1]:  # each stratum keeps a group to learn from
            if len(groups[name]) <= wanted + 0.5 and len(chosen) + len(groups[name]) <= most:
                wanted -= len(groups[name])
                chosen.update(record.id for record in groups[name])
        carried = min(max(wanted, -1.0), 1.0)
    return chosen
