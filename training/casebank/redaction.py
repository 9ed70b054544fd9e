"""Personal data and secrets replaced by their kind (`<EMAIL>`) before a case is written.

What is looked for can be told by its form alone, and is checked where the form has a check: card numbers and IBANs by
their check digits, addresses by their ranges. Names and places are not: that takes a language model. Identifiers of a
case (session, user) stay, since deletion needs them.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any

from training.casebank.case import Case

_KEY = re.compile(
    r"\b(?:sk-(?:proj-|ant-)?|pk_live_|sk_live_|rk_live_|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abprs]-|hf_|ld-|npm_)"
    r"[A-Za-z0-9_\-]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[A-Za-z0-9_\-]{35}\b"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)([A-Za-z0-9._~+/\-]{20,}=*)")
_ASSIGNED = re.compile(
    r"(?i)\b((?:api[_-]?key|secret|password|passwd|token)[\"']?\s*[:=]\s*[\"']?)(?!<)([^\s\"',;]{8,})"
)
_EMAIL = re.compile(r"(?<![\w.+\-])[A-Za-z0-9_.+%\-]+@(?:[A-Za-z0-9\-]+\.)+[A-Za-z]{2,24}\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\w.\-])\d(?:[ \-]?\d){12,18}(?![\w\-]|\.\d)")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_PHONE = re.compile(
    r"(?<![\w.\-+])(?:"
    r"\+\d{1,3}(?:[ .\-]?\(?\d{1,4}\)?){2,6}"  # +49 30 1234567
    r"|\(\d{3}\) ?\d{3}[ .\-]\d{4}"  # (212) 555-0123
    r"|\d{3}([.\- ])\d{3}\1\d{4}"  # 212-555-0123
    r")(?![\w\-]|\.\d)"
)
_VERSION_BEFORE = re.compile(r"(?i)(?:version|release|build|firmware|v)\s*$")
_CARD_LENGTHS = {"3": (14, 15), "4": (13, 16, 19), "5": (16,), "2": (16,), "6": (16, 19)}


def redact(case: Case) -> Case:
    """`case` with every text in it redacted: messages, tools' arguments, answer, label, correction."""
    return dataclasses.replace(
        case,
        messages=_everywhere(case.messages),
        response=_everywhere(case.response),
        label=_everywhere(case.label),
        correction=_everywhere(case.correction),
    )


def redact_text(text: str) -> str:
    """`text` with what is personal or secret replaced: KEY, EMAIL, IBAN, CARD, IP, PHONE, in angle brackets."""
    text = _KEY.sub("<KEY>", text)
    text = _BEARER.sub(r"\1<KEY>", text)
    text = _ASSIGNED.sub(_if_secret, text)
    text = _EMAIL.sub("<EMAIL>", text)
    text = _IBAN.sub(_checked("<IBAN>", _is_iban), text)
    text = _CARD.sub(_checked("<CARD>", _is_card), text)
    text = _IPV6.sub(_checked("<IP>", _is_address), text)
    text = _IPV4.sub(_checked("<IP>", _is_address), text)
    return _PHONE.sub(_checked("<PHONE>", _is_phone), text)


def _everywhere(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: each if key in {"role", "type", "id"} else _everywhere(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_everywhere(each) for each in value]
    return value


def _checked(kind: str, is_one: Callable[[re.Match[str]], bool]) -> Callable[[re.Match[str]], str]:
    return lambda match: kind if is_one(match) else match[0]


def _if_secret(match: re.Match[str]) -> str:
    """A value with digits and letters; `password: required` is prose."""
    value = match[2]
    mixed = any(character.isdigit() for character in value) and any(character.isalpha() for character in value)
    return f"{match[1]}<KEY>" if mixed else match[0]


def _is_iban(match: re.Match[str]) -> bool:
    code = match[0].replace(" ", "")
    if not 15 <= len(code) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97 == 1


def _is_card(match: re.Match[str]) -> bool:
    """A length and first digit that cards have, and Luhn's check digit (ISO/IEC 7812-1)."""
    digits = [int(character) for character in match[0] if character.isdigit()]
    if len(digits) not in _CARD_LENGTHS.get(str(digits[0]), ()) or len(set(digits)) == 1:
        return False
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_address(match: re.Match[str]) -> bool:
    """Neither a version number nor an address that is the same on every machine."""
    if _VERSION_BEFORE.search(match.string[max(0, match.start() - 12) : match.start()]):
        return False
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def _is_phone(match: re.Match[str]) -> bool:
    """Seven to fifteen digits, as E.164 has it."""
    return 7 <= sum(character.isdigit() for character in match[0]) <= 15
