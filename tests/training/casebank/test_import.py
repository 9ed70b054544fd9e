"""Files in every format become the same cases; bad rows are told, good ones kept, all in one transaction."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters_registry import DatabaseError
from tests.training.casebank.conftest import case
from training.casebank import CaseBank, ImportFailed
from training.casebank.formats import FORMATS
from training.casebank.importing import ImportReport

Load = Callable[..., ImportReport]
TURN = ("What is it?", "A fish.")


@pytest.fixture
def load(bank: CaseBank, tmp_path: Path) -> Load:
    def run(content: str | bytes, form: str | None = None, name: str = "rows", **more: Any) -> ImportReport:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return bank.import_file(file, form, "a", **more)

    return run


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


ONE_TURN = {
    "messages": {"messages": [{"role": "user", "content": TURN[0]}, {"role": "assistant", "content": TURN[1]}]},
    "sharegpt": {"conversations": [{"from": "human", "value": TURN[0]}, {"from": "gpt", "value": TURN[1]}]},
    "alpaca": {"instruction": TURN[0], "input": "", "output": TURN[1]},
    "chatml": {"text": f"<|im_start|>user\n{TURN[0]}<|im_end|>\n<|im_start|>assistant\n{TURN[1]}<|im_end|>\n"},
    "prompt-completion": {"prompt": TURN[0], "completion": TURN[1]},
    "chat": {"user": TURN[0], "assistant": TURN[1]},
    "instruction": {"instruction": TURN[0], "output": TURN[1]},
    "classification": {"text": TURN[0], "label": TURN[1]},
    "summarization": {"document": TURN[0], "summary": TURN[1]},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["lines", "array", "csv", "tsv"])
def test_every_format_is_read_from_every_kind_of_file(bank: CaseBank, load: Load, form: str, kind: str) -> None:
    row = ONE_TURN[form]
    cells = [json.dumps(value) if isinstance(value, list) else value for value in row.values()]
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    content = {
        "lines": lines(row),
        "array": json.dumps([row], indent=2),
        "csv": ",".join(row) + "\n" + ",".join(quoted) + "\n",
        "tsv": "\t".join(row) + "\r\n" + "\t".join(quoted) + "\r\n",
    }[kind]
    report = load(content, form)
    assert (report.rows, report.added, report.bad) == (1, 1, 0), report.problems
    found = bank.list()[0]
    assert (found.messages, found.target) == ([{"role": "user", "content": TURN[0]}], TURN[1])
    assert (found.source, found.reward, found.agent, found.import_id) == ("import", 1.0, "a", report.id)
    guessed = load(content)
    assert guessed.duplicates == 1
    assert guessed.format == {"alpaca": "instruction"}.get(form, form)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("chat", ("prompt", "response")),
        ("chat", ("question", "answer")),
        ("chat", ("input", "output")),
        ("summarization", ("text", "summary")),
        ("summarization", ("article", "highlights")),
        ("instruction", ("Instruction", "Response")),
    ],
)
def test_columns_go_by_the_names_that_people_give_them(
    bank: CaseBank, load: Load, form: str, names: tuple[str, str]
) -> None:
    assert load(f"{names[0]},{names[1]}\n{TURN[0]},{TURN[1]}\n", form).added == 1
    assert (bank.list()[0].prompt_text, bank.list()[0].target) == TURN


def test_every_answer_of_a_conversation_is_a_case_of_one_episode(bank: CaseBank, load: Load) -> None:
    said = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "And?"), ("assistant", "Bye")]
    messages = [{"role": role, "content": content} for role, content in said]
    report = load(lines({"messages": messages, "tools": [{"type": "function"}]}))
    assert (report.rows, report.cases, report.added) == (1, 2, 2)
    second, first = bank.list()
    assert (first.messages, first.target) == (messages[:2], "Hello")
    assert (second.messages, second.target) == (messages[:4], "Bye")
    assert first.episode == second.episode != None  # noqa: E711 - both at once
    assert (first.split, first.tools) == (second.split, [{"type": "function"}])
    messages[2]["weight"] = 0
    assert load(lines({"messages": messages})).cases == 1


def test_instructions_take_inputs_systems_and_histories(bank: CaseBank, load: Load) -> None:
    row = {"instruction": "Sum up", "input": "a b", "output": "c", "system": "S", "history": [["q", "a"]]}
    assert load(lines(row), "alpaca").added == 1
    assert [(each["role"], each["content"]) for each in bank.list()[0].messages] == [
        ("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "Sum up\n\na b"),
    ]  # fmt: skip


def test_prompt_and_completion_may_be_messages(bank: CaseBank, load: Load) -> None:
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1"},
    ]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "2"}]}
    assert load(lines(row)).cases == 1
    assert (bank.list()[0].messages, bank.list()[0].target) == (prompt, "2")


def test_tool_calls_can_be_the_answer(bank: CaseBank, load: Load) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": "Do"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert load(lines({"messages": messages})).added == 1
    found = bank.list()[0]
    assert found.response is not None
    assert (found.target, found.response["tool_calls"]) == (None, [call])


def test_chatml_text_needs_no_quoting(bank: CaseBank, load: Load) -> None:
    turn = "<|im_start|>user\nq{0}\n\nmore<|im_end|>\n<|im_start|>assistant\na{0}<|im_end|>\n"
    report = load(f"{turn.format(1)}\n{turn.format(2)}<|im_start|>system\ns<|im_end|>\n{turn.format(3)}", name="t.txt")
    assert (report.format, report.rows, report.added) == ("chatml", 3, 3)
    assert [each.prompt_text for each in bank.cases("a")] == ["q1\n\nmore", "q2\n\nmore", "q3\n\nmore"]


def test_rows_tell_reward_split_and_whose_they_are(bank: CaseBank, load: Load) -> None:
    header = "text,label,reward,split,session,user_id,task_type\n"
    rows = "one,A,,,s1,u1,\ntwo,B,0.25,test,,,\nthree,C,none,train,,,intent\n"
    assert load(header + rows).bad == 0
    one, two, three = bank.cases("a")
    assert (one.reward, one.session, one.user, one.task_type) == (1.0, "s1", "u1", "classification")
    assert (two.reward, two.split) == (0.25, "holdout")
    assert (three.reward, three.split, three.task_type) == (None, "train", "intent")
    assert bank.count_eligible("a") == 1


def test_bad_rows_are_told_by_their_lines_and_the_others_kept(load: Load) -> None:
    content = (
        "text,label,reward,split\n"  # 1
        '"a\nb",A,1,train\n'  # 2-3
        ",A,1,train\n"  # 4
        "x,A,2,train\n"  # 5
        "x,A,high,train\n"  # 6
        '"c\n\nd",,1,train\n'  # 7-9
        "x,A,1,never\n"  # 10
        "x,A\n"  # 11
        "\n"  # 12
        "y,B,1,test\n"  # 13
    )
    report = load(content)
    assert (report.rows, report.added, report.bad) == (8, 2, 6)
    assert [(problem.line, problem.reason) for problem in report.problems] == [
        (4, "'text' is empty"),
        (5, "reward '2' is not between 0 and 1"),
        (6, "reward 'high' is no number"),
        (7, "'label' is empty"),
        (10, "split 'never' is neither train nor test"),
        (11, "2 cells, but the header has 4"),
    ]


def test_bad_lines_of_json_are_told(load: Load) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    bad: list[Any] = [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]},
        {"messages": [{"role": "user"}]},
        [1],
    ]
    report = load(
        (lines(good, *bad) + '{"messages": [\n\n').encode() + b'{"messages": "\xff"}\n' + lines(good).encode()
    )
    assert (report.added, report.duplicates, report.bad) == (1, 1, len(bad) + 2)
    assert [problem.line for problem in report.problems] == [*range(2, len(bad) + 3), len(bad) + 4]
    assert report.problems[-1].reason == "not UTF-8"


def test_a_broken_array_keeps_what_comes_before(load: Load) -> None:
    good = json.dumps(ONE_TURN["chat"])
    report = load(f"[\n{good},\n 5,\n {{broken\n", "chat")
    assert (report.added, [problem.line for problem in report.problems]) == (1, [3, 4])


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "named-otherwise"])
def test_compression_is_seen_whatever_the_name(load: Load, name: str) -> None:
    content = b"\xef\xbb\xbftext,label\na,b\n"
    assert load(gzip.compress(content) if name != "rows.csv" else content, name=name).added == 1


def test_nothing_stays_of_an_import_that_breaks_off(
    bank: CaseBank, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = gzip.compress(("text,label\n" + "".join(f"t{n},l\n" for n in range(2000))).encode())[:-500]
    with pytest.raises(ImportFailed):
        load(broken)
    real, calls = bank.place, iter(range(10))

    def fails_late(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise DatabaseError("the disk is full")
        return real(*arguments)

    monkeypatch.setattr(bank, "place", fails_late)
    with pytest.raises(DatabaseError):
        load("text,label\n" + "".join(f"t{n},l\n" for n in range(1200)))
    assert bank.list() == []


def test_a_trial_tells_the_same_and_stores_nothing(bank: CaseBank, load: Load) -> None:
    content = "text,label\na,b\na,b\n"
    tried = load(content, dry_run=True)
    assert (tried.added, tried.duplicates, bank.list()) == (1, 1, [])
    done = load(content)
    assert (done.added, done.duplicates) == (1, 1)


def test_progress_goes_from_reading_to_writing(load: Load) -> None:
    told: list[tuple[str, float]] = []
    load("text,label\n" + "".join(f"t{n},l\n" for n in range(1200)), on_progress=lambda *each: told.append(each))
    assert {stage for stage, _ in told} == {"reading", "writing"}
    assert told[-1] == ("writing", 1.0)
    assert all(0 <= share <= 1 for _, share in told)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["out.jsonl", "out.csv.gz"])
def test_what_is_exported_comes_back(bank: CaseBank, tmp_path: Path, form: str, name: str) -> None:
    bank.add([
        case("q, with\n\"quotes\"", "a\nb", reward=0.5, session="s", user="u", split="holdout"),
        case("unrewarded", "x", split="train"),
        case("corrected", "x", correction="y", reward=1.0, split="train"),
    ])  # fmt: skip
    bank.export_file(tmp_path / name, form, "support")
    report = bank.import_file(tmp_path / name, form, "copy")
    assert (report.added, report.bad) == (3, 0), report.problems

    def content(agent: str) -> list[tuple[Any, ...]]:
        return [
            (each.messages, each.target, each.reward, each.split, each.session, each.user)
            for each in bank.cases(agent)
        ]  # fmt: skip

    assert content("copy") == content("support")


def test_conversations_with_tools_fit_some_formats_only(bank: CaseBank, load: Load, tmp_path: Path) -> None:
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "And?"), ("assistant", "Bye")]
    load(lines({"messages": [{"role": role, "content": content} for role, content in said]}))
    assert bank.export_file(tmp_path / "c.csv", "chat", "a").to_dict() == {
        "file": str(tmp_path / "c.csv"), "agent": "a", "format": "chat", "written": 1, "left_out": 1,
    }  # fmt: skip
    for form in ("messages", "sharegpt"):
        assert bank.export_file(tmp_path / "c.jsonl", form, "a").left_out == 0
        report = bank.import_file(tmp_path / "c.jsonl", form, "a")
        assert (report.cases, report.duplicates) == (2, 2)


def test_real_data_is_imported_in_time(bank: CaseBank, data: Callable[[str], Path]) -> None:
    began = time.process_time()
    report = bank.import_file(data("support_banking77_train.csv.gz"), None, "support")
    assert time.process_time() - began < 20
    assert (report.format, report.rows, report.bad) == ("classification", 10003, 0)
    assert report.added + report.duplicates == 10003
    assert 0.15 < bank.stats("support")[0].holdout / report.added < 0.25


def test_a_split_of_real_data_is_kept(bank: CaseBank, data: Callable[[str], Path]) -> None:
    report = bank.import_file(data("legal_cuad.csv.gz"), "classification", "legal")
    assert (report.added, report.bad) == (4479, 0)
    assert sum(1 for _ in bank.cases("legal", split="holdout")) == 916
    again = bank.import_file(data("legal_cuad.csv.gz"), None, "legal")
    assert (again.added, again.duplicates) == (0, 4479)
