from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs import embedded
from tests.training.trainer.conftest import line
from training.trainer import TrainingRefused
from training.trainer.rows import ChatFormat, read_lines


@pytest.fixture
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded.BASE)


@pytest.fixture
def chats(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer)


def test_the_prompt_is_what_the_engine_makes_of_it_and_only_the_answer_counts(
    tokenizer: Any, chats: ChatFormat
) -> None:
    row = line("Where is my parcel?", "order_tracking")
    (encoded,) = chats.encode([row], 256).rows
    served = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=True)
    assert encoded.ids[: encoded.prompt].tolist() == served["input_ids"]
    assert tokenizer.decode(encoded.ids[encoded.prompt :]) == "order_tracking<|im_end|>"


def test_rows_longer_than_the_limit_are_left_out_and_counted(chats: ChatFormat) -> None:
    encoded = chats.encode([line("short", "a"), line("long " * 200, "b")], 64)
    assert (len(encoded.rows), encoded.too_long) == (1, 1)
    assert encoded.facts().rows == 1


def test_text_parts_and_calls_are_read_as_served(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    parts = [{"type": "text", "text": "Is it"}, {"type": "text", "text": "cold?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    (row,) = ChatFormat(tokenizer).encode([line("", "yes", messages=messages)], 256).rows
    text = tokenizer.decode(row.ids)
    assert text == "<user>Is it\ncold?<|im_end|><assistant>Oslo<|im_end|><assistant>yes<|im_end|>"


def test_a_template_that_trims_answers_or_adds_a_newline_changes_nothing(tokenizer: Any) -> None:
    turns = "{% for m in messages %}[{{ m.content | trim }}]<|im_end|>\n{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}:{% endif %}"
    (row,) = ChatFormat(tokenizer).encode([line("a", "b")], 256).rows
    assert tokenizer.decode(row.ids[row.prompt :]) == "b]<|im_end|>"


def test_a_base_without_a_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(TrainingRefused, match="the base has no chat template"):
        ChatFormat(tokenizer)


def test_messages_that_the_template_refuses_are_refused_with_their_line(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    bad = line("a", "b", messages=[{"role": "system", "content": "s"}])
    with pytest.raises(TrainingRefused, match="line 2: the base's chat template refuses the messages: no system role"):
        ChatFormat(tokenizer).encode([line("a", "b"), bad], 256)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", r"train\.jsonl, line 2: not JSON"),
        ('{"messages": []}', "line 2: needs messages and a completion"),
        ("[]", "line 2: needs messages and a completion"),
    ],
)
def test_malformed_lines_are_refused_with_their_number(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "a"}], "completion": "b"}\n' + text + "\n")
    with pytest.raises(TrainingRefused, match=reason):
        list(read_lines(file))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingRefused, match=r"cannot read .*train\.jsonl: No such file"):
        list(read_lines(tmp_path / "train.jsonl"))
