"""General questions that are mixed into training, so that an adapter does not forget what its base knew.

A quarter of the project's general set, by hash; the gate measures forgetting on the rest (`is_replayed` tells which).
They are few, so they may be as many as the rows learned. Measured on 108 rows and the embedded base, which answers 95 %
of the general set: with a share of 5 % it is 28 % after training; with 50 %, 76 %; with 50 % and the lower rate of
small steps, 96 %. Over thousands of cases they are learned by heart; there the trainer has the base say more.
"""

from __future__ import annotations

import hashlib
import json

from configs.embedded import GENERAL_SET
from training.dataset.rows import GENERAL, Row


def is_replayed(question: str) -> bool:
    """Whether `question` of the general set may be trained on."""
    return hashlib.sha256(question.encode()).digest()[0] % 4 == 0


def general_rows(agent: str, learned: int, share: float) -> list[Row]:
    """So many that they make up at most `share` of all, each once, drawn by the agent's name."""
    wanted = int(learned * share / (1 - share))
    questions = sorted(all_general_rows().values(), key=lambda row: hashlib.sha256((agent + row.id).encode()).digest())
    return sorted(questions[:wanted], key=lambda row: row.id)


def all_general_rows() -> dict[str, Row]:
    """Every general question that may be trained on, by the row's id, which follows from its text."""
    rows = {}
    with GENERAL_SET.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            if is_replayed(entry["question"]):
                row_id = "general-" + hashlib.sha256(line.encode()).hexdigest()[:16]
                message = {"role": "user", "content": entry["question"]}
                rows[row_id] = Row(row_id, [message], entry["answer"], None, 1.0, GENERAL)
    return rows
