from __future__ import annotations

import subprocess
import sys

import pytest

from router import Task
from router.features import HEAD_CHARS, MAX_CHARS, TAIL_CHARS


def user(content):
    return {"role": "user", "content": content}


def test_the_last_user_turn_is_the_text():
    task = Task.from_messages(
        [
            {"role": "system", "content": "be brief"},
            user("one"),
            {"role": "assistant", "content": None, "tool_calls": [{}]},
            {"role": "tool", "content": "42"},
            user("two"),
        ],
        has_tools=True,
    )
    assert (task.text, task.turns, task.chars) == ("two", 2, 3)
    assert task.has_system
    assert task.has_tools


def test_parts_with_text_count_as_text_and_others_as_media():
    parts = [
        {"type": "text", "text": "what"},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "input_text", "text": "is this"},
        "?",
        7,
        {"type": "text", "text": None},
    ]
    task = Task.from_messages([user(parts)])
    assert (task.text, task.media) == ("what\nis this\n?", 3)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [user(None)],
        [user(7)],
        [user({})],
        [{}],
        [{"role": 7}],
        ["x"],
        [None],
        [{"role": "assistant", "content": "x"}],
    ],
)
def test_messages_of_any_shape_make_a_task(messages):
    task = Task.from_messages(messages)
    assert task.text == ""
    assert task.turns == 1


def test_a_long_turn_is_kept_as_its_head_and_tail():
    text = "a" * 10_000 + "b" * 10_000
    task = Task.from_messages(text)
    assert (len(task.text), task.chars) == (MAX_CHARS, 20_000)
    assert task.text == "a" * HEAD_CHARS + "\n" + "b" * TAIL_CHARS


def test_the_responses_apis_input_and_instructions_are_understood():
    task = Task.from_messages([user([{"type": "input_text", "text": "hi"}])], instructions="be brief")
    assert (task.text, task.has_system) == ("hi", True)
    assert Task.from_messages("hi", instructions="be brief").session == task.session


@pytest.mark.parametrize(
    ("prompt", "text", "chars"),
    [("hi", "hi", 2), (["hi", "ho"], "hi", 2), ([1, 2, 3], "", 12), ([[1, 2], [3]], "", 8), ([], "", 0), ("", "", 0)],
)
def test_prompts_are_text_or_token_ids(prompt, text, chars):
    task = Task.from_prompt(prompt)
    assert (task.text, task.chars) == (text, chars)


def test_a_session_is_the_clients_id_or_a_hash_of_how_the_conversation_began():
    given = Task.from_messages([user("a")], session="mine")
    assert (given.session, given.session_given) == ("mine", True)
    system = {"role": "system", "content": "s"}
    first = Task.from_messages([system, user("a")])
    later = Task.from_messages([system, user("a"), {"role": "assistant", "content": "b"}, user("c")])
    assert first.session == later.session
    assert not first.session_given
    others = [[user("a")], [{"role": "system", "content": "sa"}, user("")], [system, user("b")], [user("sa")]]
    assert len({first.session, *(Task.from_messages(other).session for other in others)}) == 5


def test_the_hash_is_the_same_in_every_process():
    code = "from router import Task; print(Task.from_messages('a\\ud800b').session)"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {Task.from_messages("a\ud800b").session.encode() + b"\n"}
