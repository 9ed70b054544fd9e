from __future__ import annotations

import pytest

from training.dataset.faults import has_control_token, main_script, oddities


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>",
        "a<|endoftext|>b",
        "[INST] do",
        "[/INST]",
        "<<SYS>>",
        "<start_of_turn>user",
        "</s>",
        "<\uff5cUser\uff5c>",
    ],
)
def test_control_tokens_are_seen(text: str) -> None:
    assert has_control_token(f"before {text} after")


@pytest.mark.parametrize("text", ["<b>bold</b>", "a <| b |> c", "[instance]", "if (a || b) x = y | z;", "<span>"])
def test_markup_and_code_are_none(text: str) -> None:
    assert not has_control_token(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("caf\u00c3\u00a9", {"broken_encoding"}),
        ("it\u00e2\u20ac\u2122s", {"broken_encoding"}),
        ("lost \ufffd", {"broken_encoding"}),
        ("bell \x07", {"broken_encoding"}),
        ("zero\u200bwidth", {"invisible_characters"}),
        ("turned \u202eround", {"invisible_characters"}),
        ("p\u0430ypal", {"mixed_scripts"}),
        ("g\u03bfogle", {"mixed_scripts"}),
        ("the change \u0394G in \u03bcm, 5 k\u03a9", set()),
        ("caf\u00e9 \u00dcbung na\u00efve", set()),
        ("\u0434\u0430 and no", set()),
        ("\u7b2c1\u7ae0 SQL\u6ce8\u5165", set()),
        ("family \U0001f468\u200d\U0001f469\u200d\U0001f467", set()),
        ("line\none\ttab", set()),
    ],
)
def test_oddities(text: str, found: set[str]) -> None:
    assert oddities(text) == found


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("hello", "LATIN"),
        ("12 + 3", None),
        ("\u043f\u0440\u0438\u0432\u0435\u0442 hi", "CYRILLIC"),
        ("\u94f6\u884c", "CJK"),
    ],
)
def test_the_script_of_a_text(text: str, script: str | None) -> None:
    assert main_script(text) == script
