"""Datasets on disk and in the database: named by content, made again from it, gone with their cases."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.training.dataset.make import asked, many, sentence
from training.casebank import CaseBank
from training.dataset import (
    DatasetConfig,
    DatasetCorrupt,
    DatasetEmpty,
    DatasetGone,
    DatasetNotFound,
    build_dataset,
    check_leakage,
    is_replayed,
    list_datasets,
    load_dataset,
    purge,
    read_rows,
    rebuild_dataset,
)

CONFIG = DatasetConfig()


def fill(bank: CaseBank, count: int = 60) -> None:
    bank.add([*many(count, task_type="chat"), *many(count // 4, 10_000, split="holdout")])


def test_a_dataset_has_rows_as_the_trainer_reads_them(any_bank: CaseBank, home: Path) -> None:
    fill(any_bank)
    dataset = build_dataset(any_bank.database, any_bank, "support", CONFIG, home)
    assert dataset.folder == home / "datasets" / dataset.name
    assert dataset.name == f"ds-{dataset.digest[:16]}"
    first = json.loads(dataset.file("train").read_text().splitlines()[0])
    assert first == {
        "id": first["id"],
        "messages": [{"role": "user", "content": sentence(int(first["id"].split("-")[1]))}],
        "completion": f"answer {int(first['id'].split('-')[1])}",
        "tools": None,
        "reward": 1.0,
        "task_type": "chat",
    }
    assert dataset.rows == {"train": 93, "validation": 6, "holdout": 15}
    check_leakage(read_rows(dataset.file("train")), read_rows(dataset.file("holdout")))


def test_the_same_cases_give_the_same_name_and_others_another(any_bank: CaseBank, home: Path) -> None:
    fill(any_bank)
    first = build_dataset(any_bank.database, any_bank, "support", CONFIG, home)
    assert build_dataset(any_bank.database, any_bank, "support", CONFIG, home) == first
    assert build_dataset(any_bank.database, any_bank, "support", DatasetConfig(general_share=0), home) != first
    any_bank.add(many(1, 500))
    later = build_dataset(any_bank.database, any_bank, "support", CONFIG, home)
    assert later.name != first.name
    assert list_datasets(any_bank.database, "support")[0].name == later.name
    assert load_dataset(home, first.name) == first


def test_it_is_made_again_from_its_name_whatever_was_said_since(any_bank: CaseBank, home: Path, tmp_path: Path) -> None:
    fill(any_bank)
    any_bank.add([asked(sentence(800), "wrong", id="judged", reward=0.2, correction="right", corrected=True)])
    dataset = build_dataset(any_bank.database, any_bank, "support", CONFIG, home)
    judged = next(row for row in read_rows(dataset.file("train")) if row.completion == "right")
    any_bank.feedback(judged.id, correction="righter")
    any_bank.feedback(next(row.id for row in read_rows(dataset.file("train")) if row.id != judged.id), reward=0.0)
    again = rebuild_dataset(any_bank.database, any_bank, dataset.name, tmp_path / "elsewhere")
    assert again.digest == dataset.digest
    for part in ("train", "validation", "holdout"):
        assert again.file(part).read_bytes() == dataset.file(part).read_bytes()
    assert build_dataset(any_bank.database, any_bank, "support", CONFIG, home).name != dataset.name


def test_deleted_cases_take_their_datasets_with_them(any_bank: CaseBank, home: Path) -> None:
    fill(any_bank)
    any_bank.add([asked("My number is 123.", "Noted.", id="private", user="ada", label="a secret")])
    dataset = build_dataset(any_bank.database, any_bank, "support", CONFIG, home)
    assert any(b"a secret" in file.read_bytes() for file in dataset.folder.glob("*.jsonl"))
    assert any_bank.delete(user="ada") == 1
    known = list_datasets(any_bank.database, "support")[0]
    assert (known.gone, known.purged_at) == (1, None)
    assert purge(any_bank.database, home) == [dataset.name]
    assert purge(any_bank.database, home) == []
    assert not dataset.folder.exists()
    assert list_datasets(any_bank.database)[0].purged_at is not None
    with pytest.raises(DatasetGone, match=r"1 of its \d+ cases were deleted"):
        rebuild_dataset(any_bank.database, any_bank, dataset.name, home)


def test_a_dataset_of_deleted_cases_is_not_handed_out_before_it_is_purged(bank: CaseBank, home: Path) -> None:
    fill(bank)
    dataset = build_dataset(bank.database, bank, "support", CONFIG, home)
    bank.delete(ids=[next(read_rows(dataset.file("train"))).id])
    with pytest.raises(DatasetGone):
        rebuild_dataset(bank.database, bank, dataset.name, home)


@pytest.mark.parametrize("file", ["train.jsonl", "holdout.jsonl", "dataset.json"])
def test_changed_files_are_seen_and_mended(bank: CaseBank, home: Path, file: str) -> None:
    fill(bank)
    dataset = build_dataset(bank.database, bank, "support", CONFIG, home)
    content = (dataset.folder / file).read_bytes()
    (dataset.folder / file).write_bytes(content.replace(b"answer", b"anwser").replace(b"0.7", b"0.8"))
    with pytest.raises(DatasetCorrupt, match=dataset.name):
        load_dataset(home, dataset.name)
    assert rebuild_dataset(bank.database, bank, dataset.name, home) == dataset


def test_a_missing_file_is_a_clear_error(bank: CaseBank, home: Path) -> None:
    fill(bank)
    dataset = build_dataset(bank.database, bank, "support", CONFIG, home)
    dataset.file("train").unlink()
    with pytest.raises(DatasetCorrupt, match="cannot be read"):
        load_dataset(home, dataset.name)


@pytest.mark.parametrize("name", ["ds-0000000000000000", "../etc", "ds-../../x", ""])
def test_an_unknown_name_is_a_clear_error(bank: CaseBank, home: Path, name: str) -> None:
    with pytest.raises(DatasetNotFound):
        load_dataset(home, name)
    with pytest.raises(DatasetNotFound):
        rebuild_dataset(bank.database, bank, name, home)


def test_nothing_is_left_behind_when_a_build_fails(bank: CaseBank, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bank)
    monkeypatch.setattr("training.dataset.build.publish", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        build_dataset(bank.database, bank, "support", CONFIG, home)
    assert list((home / "datasets").iterdir()) == []
    assert list_datasets(bank.database) == []


def test_several_builders_make_one_dataset(any_bank: CaseBank, home: Path) -> None:
    fill(any_bank)
    with ThreadPoolExecutor(4) as pool:
        build = lambda _: build_dataset(any_bank.database, any_bank, "support", CONFIG, home).name  # noqa: E731
        assert len(set(pool.map(build, range(4)))) == 1
    assert len(list((home / "datasets").iterdir())) == 1
    assert len(list_datasets(any_bank.database)) == 1


def test_a_case_once_held_out_stays_so(bank: CaseBank, home: Path) -> None:
    import sqlalchemy as sa

    fill(bank)
    dataset = build_dataset(bank.database, bank, "support", CONFIG, home)
    held = {row.id for row in read_rows(dataset.file("holdout"))}
    with bank.database.write() as session:  # what a mistake, or a restored backup, might do
        session.execute(sa.text("UPDATE cases SET split = 'train'"))
    later = build_dataset(bank.database, bank, "support", DatasetConfig(validation_share=0), home)
    assert not held & {row.id for row in read_rows(later.file("train"))}
    assert any(finding["code"] == "moved" for finding in later.report["quality"])


def test_general_questions_are_mixed_in_and_most_of_them_never(bank: CaseBank, home: Path) -> None:
    fill(bank, 100)
    config = DatasetConfig(general_share=0.2, validation_share=0)
    dataset = build_dataset(bank.database, bank, "support", config, home)
    rows = list(read_rows(dataset.file("train")))
    general = [row for row in rows if row.task_type == "general"]
    assert len(general) == dataset.report["statistics"]["rows"]["general"] == 25
    assert len(rows) == 125
    assert all(is_replayed(row.messages[0]["content"]) for row in general)


def test_a_general_question_that_is_held_out_is_not_mixed_in(bank: CaseBank, home: Path) -> None:
    from training.dataset.general import all_general_rows

    question = next(iter(all_general_rows().values()))
    held = asked(question.messages[0]["content"], "Paris", id="h", split="holdout")
    bank.add([held, *many(600, 100)])
    dataset = build_dataset(bank.database, bank, "support", DatasetConfig(general_share=0.2), home)
    assert question.id not in {row.id for row in read_rows(dataset.file("train"))}
    assert dataset.report["statistics"]["rows"]["general"] > 20


def test_an_agent_without_cases_is_a_clear_error(bank: CaseBank, home: Path) -> None:
    with pytest.raises(DatasetEmpty, match="agent 'nobody' has no cases"):
        build_dataset(bank.database, bank, "nobody", CONFIG, home)


def test_the_figures_say_what_is_in_it(bank: CaseBank, home: Path) -> None:
    bank.add([asked(sentence(n, 10), at=n, label="ab"[n % 2], task_type="classification") for n in range(100)])
    bank.add([asked(sentence(n), at=n, label="c", task_type="classification", split="holdout") for n in (200, 201)])
    bank.add([asked(sentence(300), "?", at=300, label="a", corrected=True, reward=0.1)])
    bank.add([asked(f"caf\ufffd {sentence(301)}", at=301, label="a"), asked(sentence(302), reward=0.1, at=302)])
    count = lambda case: len(case.prompt_text.split()) + 1  # noqa: E731
    report = build_dataset(bank.database, bank, "support", CONFIG, home, count_tokens=count).report
    figures, found = report["statistics"], {finding["code"]: finding for finding in report["quality"]}
    assert figures["rows"] == {"train": 92, "validation": 10, "holdout": 2, "general": 39}
    assert figures["labels"]["c"] == {"train": 0, "validation": 0, "holdout": 2}
    assert figures["tokens"]["p50"] == 11
    assert figures["tokens"]["max"] == 14
    assert figures["rewards"] == {"mean": 1.0, "tenths": [0] * 9 + [104]}
    assert figures["corrections_share"] == pytest.approx(1 / 104)
    assert found["unlearned_labels"]["names"] == ["c"]
    assert found["broken_encoding"]["count"] == 1
    assert found["low_reward"]["count"] == 1
    assert found["small_holdout"]["severity"] == "warning"


def test_longer_rows_than_allowed_are_left_out(bank: CaseBank, home: Path) -> None:
    bank.add([*many(30), asked(sentence(99, 300), at=99)])
    count = lambda case: len(case.prompt_text.split())  # noqa: E731
    config = DatasetConfig(max_tokens=100)
    report = build_dataset(bank.database, bank, "support", config, home, count_tokens=count).report
    assert {finding["code"]: finding["count"] for finding in report["quality"]}["too_long"] == 1
