"""Whether training and serving render conversations alike: to the byte, told by the tokens of the same rows.

The trainer records the hash of its chat template and the tokens of a few rows as it rendered them; the gate has the
endpoint render the same rows. A system prompt that one side adds, or a template that an engine was given on its command
line, shows here rather than as an adapter that is worse in service than in training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.gate.endpoint import Connection
from training.gate.errors import RowsInvalid

FILE = "template.json"
SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One row and its tokens in training: those of the prompt, with what opens the answer, and all of them."""

    messages: tuple[Mapping[str, Any], ...]
    completion: str
    tools: tuple[Mapping[str, Any], ...]
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TemplateRecord:
    """How the trainer renders."""

    sha256: str
    samples: tuple[Sample, ...]

    def write(self, folder: Path) -> Path:
        """Write `template.json` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")
        return path


@dataclass(frozen=True, slots=True)
class TemplateCheck:
    """`difference` tells the first row that the endpoint renders otherwise, None where all are alike."""

    sha256: str
    samples: int
    difference: str | None

    @property
    def identical(self) -> bool:
        """Whether all rows are alike."""
        return self.difference is None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"identical": self.identical} | asdict(self)


def record_template(
    template: str, rows: Sequence[Mapping[str, Any]], ids: Sequence[tuple[Iterable[int], Iterable[int]]]
) -> TemplateRecord:
    """Record the trainer's `template`, and for each row (`messages`, `completion`, `tools`) its two kinds of tokens."""
    samples = [
        Sample(
            tuple(row["messages"]),
            str(row["completion"]),
            tuple(row.get("tools") or ()),
            tuple(map(int, prompt)),
            tuple(map(int, whole)),
        )
        for row, (prompt, whole) in zip(rows, ids, strict=True)
    ]
    return TemplateRecord(hashlib.sha256(template.encode()).hexdigest(), tuple(samples))


def read_template(folder: Path) -> TemplateRecord:
    """What `TemplateRecord.write` wrote. Raises RowsInvalid."""
    path = folder / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        samples = tuple(Sample(**{key: _frozen(each[key]) for key in Sample.__slots__}) for each in document["samples"])
        return TemplateRecord(document["sha256"], samples)
    except OSError as error:
        raise RowsInvalid(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RowsInvalid(f"{path} is no record of a template: {error!r}") from None


async def check_template(endpoint: Connection, model: str, record: TemplateRecord) -> TemplateCheck:
    """Have the endpoint render the recorded rows for `model`, and compare."""
    difference = None
    for number, sample in enumerate(record.samples, 1):
        difference = await _difference(endpoint, model, sample)
        if difference is not None:
            difference = f"row {number}: {difference}"
            break
    return TemplateCheck(record.sha256, len(record.samples), difference)


async def _difference(endpoint: Connection, model: str, sample: Sample) -> str | None:
    reply = await endpoint.answer(model, sample.messages, 1, sample.tools)
    if (found := _first_difference(sample.prompt_ids, reply.prompt_ids)) is not None:
        return found
    messages = [*sample.messages, {"role": "assistant", "content": sample.completion}]
    told = await endpoint.likelihood(model, messages, sample.tools)
    # the seam between prompt and answer may be tokenised otherwise where both are one text, but its end is a token
    if sample.ids[-1] not in told.ids[len(sample.prompt_ids) :]:
        return f"the endpoint does not end an answer with token {sample.ids[-1]}, as training does"
    return None


def _first_difference(trained: Sequence[int], served: Sequence[int]) -> str | None:
    if tuple(trained) == tuple(served):
        return None
    pairs = enumerate(zip(trained, served, strict=False))
    place = next((place for place, (one, other) in pairs if one != other), min(len(trained), len(served)))
    lengths = f"{len(trained)} tokens in training and {len(served)} served"
    return f"the prompt has {lengths}; token {place} is the first to differ"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
