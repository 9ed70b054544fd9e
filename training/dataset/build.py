"""Building a dataset, making it again from its name, and forgetting what it held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from adapters_registry.database import Database
from training.casebank.case import Case, Split
from training.dataset import members
from training.dataset.config import DatasetConfig
from training.dataset.errors import DatasetCorrupt, DatasetGone, DatasetNotFound
from training.dataset.files import (
    Dataset,
    RowWriter,
    digest_of,
    load_dataset,
    name_of,
    publish,
    remove_files,
    staging,
)
from training.dataset.general import all_general_rows, general_rows
from training.dataset.leakage import check_leakage, fingerprint
from training.dataset.members import Member
from training.dataset.plan import Plan, plan_dataset
from training.dataset.rows import Part, Row, read_rows, row_of
from training.dataset.selection import CountTokens
from training.dataset.statistics import Tally


class Bank(Protocol):
    """What is needed of the CaseBank."""

    def cases(
        self, agent: str, split: Split | None = None, rewarded: bool | None = None, *, repeats: bool = False
    ) -> Iterator[Case]:
        """The agent's cases, oldest first."""
        ...


def build_dataset(
    database: Database,
    bank: Bank,
    agent: str,
    config: DatasetConfig,
    home: Path,
    *,
    count_tokens: CountTokens | None = None,
) -> Dataset:
    """The dataset of the agent's cases as they are now, under `home`/datasets. The same cases give the same one.

    With `count_tokens`, statistics tell tokens and `max_tokens` holds. Raises DatasetEmpty, Leakage, DatabaseError and
    OSError.
    """
    purge(database, home)
    held = members.held_before(database, agent)
    plan = plan_dataset(lambda: bank.cases(agent), agent, config, held_before=held, count_tokens=count_tokens)
    with staging(home) as folder:
        with RowWriter(folder) as writer:
            report, kept = _write(writer, bank.cases(agent), plan, config, count_tokens)
        _verify(folder, plan, config)
        template = tuple(sorted(plan.template))
        digest = digest_of(agent, config, template, writer.hashes())
        card = _card(agent, config, template, digest, report)
        dataset = publish(home, writer, card)
        members.remember(database, dataset, kept)
    return dataset


def rebuild_dataset(database: Database, bank: Bank, name: str, home: Path) -> Dataset:
    """The dataset `name` from the cases that it was made of, whatever was said about them since.

    Raises DatasetNotFound for an unknown name, DatasetGone when cases that it held were deleted.
    """
    known = members.find(database, name)
    if not known.gone:
        try:
            return load_dataset(home, name)
        except (DatasetNotFound, DatasetCorrupt):
            pass
    if known.gone:
        raise DatasetGone(
            f"dataset {name} cannot be made again: {known.gone} of its {known.rows} cases were deleted", param="dataset"
        )
    config, template = DatasetConfig(**known.config), tuple(known.report["template"])
    with staging(home) as folder:
        with RowWriter(folder) as writer:
            _rewrite(writer, bank.cases(known.agent, repeats=True), members.of(database, name))
        digest = digest_of(known.agent, config, template, writer.hashes())
        if digest != known.digest:
            raise DatasetCorrupt(f"the cases of dataset {name} are not what they were", param="dataset")
        return publish(home, writer, _card(known.agent, config, template, digest, known.report))


def purge(database: Database, home: Path) -> list[str]:
    """Delete the files of datasets that held cases which no longer exist, and mark them; returns their names."""
    names = members.incomplete(database)
    for name in names:
        remove_files(home, name)
    members.mark_purged(database, names)
    return names


def _write(
    writer: RowWriter, cases: Iterable[Case], plan: Plan, config: DatasetConfig, count_tokens: CountTokens | None
) -> tuple[dict[str, Any], list[Member]]:
    tally, kept = Tally(plan.notes, count_tokens), []
    for case in cases:
        part = plan.parts.get(case.id)
        if part is not None and case.target is not None:
            tally.add(case, part)
            kept.append(_write_row(writer, row_of(case), part, case.answer))
    general = general_rows(plan.agent, writer.rows["train"], config.general_share)
    general = [row for row in general if plan.held.meet(fingerprint(row, plan.template)) is None]
    kept += [_write_row(writer, row, "train", row.completion) for row in general]
    tally.note_whole()
    return _report(tally, plan, len(general)), kept


def _write_row(writer: RowWriter, row: Row, part: Part, answer: str | None) -> Member:
    given = None if row.completion == answer else row.completion
    return Member(row.id, part, given, row.reward, writer.add(row, part))


def _report(tally: Tally, plan: Plan, general: int) -> dict[str, Any]:
    return {
        "statistics": tally.statistics(general),
        "quality": [finding.to_dict() for finding in plan.notes.findings()],
        "template": sorted(plan.template),
    }


def _verify(folder: Path, plan: Plan, config: DatasetConfig) -> None:
    """Look once more at what was written, as the trainer will read it."""
    train = chain(read_rows(folder / "train.jsonl"), read_rows(folder / "validation.jsonl"))
    holdout = read_rows(folder / "holdout.jsonl")
    check_leakage(train, holdout, threshold=config.similarity, template=plan.template)


def _rewrite(writer: RowWriter, cases: Iterable[Case], kept: Mapping[str, Member]) -> None:
    for case in cases:
        member = kept.get(case.id)
        if member is not None:
            completion = case.answer if member.given is None else member.given
            row = row_of(case, completion)
            writer.add(Row(row.id, row.messages, row.completion, row.tools, member.reward, row.task_type), member.part)
    general = all_general_rows()
    for row_id in sorted(kept):
        if row_id in general:
            writer.add(general[row_id], kept[row_id].part)


def _card(
    agent: str, config: DatasetConfig, template: tuple[str, ...], digest: str, report: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name_of(digest),
        "digest": digest,
        "agent": agent,
        "config": config.model_dump(),
        "template": list(template),
        "report": report,
    }
