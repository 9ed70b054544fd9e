"""What is personal or secret is replaced by its kind; what only looks like it stays."""

from __future__ import annotations

import pytest

from tests.training.casebank.conftest import case
from training.casebank import CaseBank
from training.casebank.redaction import redact, redact_text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ann.o'neil+news@mail.example.co.uk", "ann.o'<EMAIL>"),
        ("bob_99@example.org", "<EMAIL>"),
        ("+49 30 901820", "<PHONE>"),
        ("+1 (212) 555-0123", "<PHONE>"),
        ("+44 20 7946 0958", "<PHONE>"),
        ("(212) 555-0123", "<PHONE>"),
        ("212-555-0123", "<PHONE>"),
        ("DE89 3704 0044 0532 0130 00", "<IBAN>"),
        ("GB29NWBK60161331926819", "<IBAN>"),
        ("4111 1111 1111 1111", "<CARD>"),
        ("5500-0000-0000-0004", "<CARD>"),
        ("378282246310005", "<CARD>"),
        ("192.168.10.20", "<IP>"),
        ("2001:db8:0:1::2a", "<IP>"),
        ("sk-proj-abcdefghijklmnop0123456789", "<KEY>"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "<KEY>"),
        ("AKIAIOSFODNN7EXAMPLE", "<KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "<KEY>"),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz", "Authorization: Bearer <KEY>"),
        ("password: hunter2hunter", "password: <KEY>"),
    ],
)
def test_it_is_replaced_by_its_kind(text: str, kind: str) -> None:
    assert redact_text(f"see {text}, please") == f"see {kind}, please"


@pytest.mark.parametrize(
    "text",
    [
        "order 4111111111111112 and order 1234567890123456",  # no card's check digit, no card's first digit
        "invoice 2024-10-24-0001 of 2024-10-24",
        "CVE-2024-12345 in version 10.0.19041.1 before 4.18.2.3000",
        "firmware 1.2.3.4 and v10.20.30.40",
        "it costs 1,234,567.89 EUR or 1234567.89 in all",
        "CWE-79 at 12:34:56, room 212",
        "listening on 127.0.0.1 and 0.0.0.0:8000",
        "ISO 8601 and RFC 2119, section 5.7.1",
        "sha 9f86d081884c7d659a2feaa0c55ad015",
        "a ratio of 16:9 or 4:3:2",
        "std::vector<int>::iterator and key::value::other",
        "@mention and user@localhost",
        "password: required",
        "tracking number 1Z999AA10123456784",
        "0.1234567890123456",
        "DE00 1234 5678 9012 3456 78",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact_text(text) == text


def test_every_text_of_a_case_is_redacted_before_it_is_written(bank: CaseBank) -> None:
    mail = "ann@example.org"
    call = {"id": "c1", "type": "function", "function": {"name": "send", "arguments": f'{{"to": "{mail}"}}'}}
    given = case(f"Write to {mail}", f"I wrote to {mail}", correction=f"No: {mail}", session="s", user=mail)
    given.messages.append({"role": "assistant", "content": [{"type": "text", "text": mail}], "tool_calls": [call]})  # type: ignore[attr-defined]
    redacting = CaseBank(bank.database, redactor=redact)
    redacting.add([given])
    found = bank.list()[0]
    assert mail not in str((found.messages, found.response, found.correction))
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"to": "<EMAIL>"}'
    assert found.user == mail, "or nobody could ask for deletion"
    assert redacting.feedback(found.id, label=mail).label == "<EMAIL>"
