"""How right an answer is: exact match, F1, format. All scores are 0 to 1."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from training.gate.endpoint import Reply
from training.gate.rows import CLASSIFICATION, Row

EXTRACTION = "extraction"
_NO_JSON = object()
_WORD = re.compile(r"\w+|[^\w\s]")


def normalised(text: str) -> str:
    """White space as single blanks, none at the ends. Case stays: labels may differ by it."""
    return " ".join(text.split())


def exact_match(said: str, target: str) -> bool:
    """Whether both are the same but for white space."""
    return normalised(said) == normalised(target)


def token_f1(said: str, target: str) -> float:
    """Harmonic mean of precision and recall of words and signs, whatever their case, as SQuAD counts them.

    Rajpurkar et al., SQuAD (EMNLP 2016), but articles and punctuation count.
    """
    return _f1(Counter(_WORD.findall(said.lower())), Counter(_WORD.findall(target.lower())))


def field_f1(said: str, target: str) -> float:
    """F1 over the leaves of two JSON documents, each leaf with its path; of words where the target is no JSON."""
    wanted = read_json(target)
    if not isinstance(wanted, (dict, list)):
        return token_f1(said, target)
    given = read_json(said)
    return 0.0 if given is _NO_JSON else _f1(Counter(_leaves(given)), Counter(_leaves(wanted)))


def macro_f1(said: Sequence[str], targets: Sequence[str]) -> float:
    """Mean over the labels in `targets` of F1; an answer that is no label counts as a miss."""
    hits = Counter(target for one, target in zip(said, targets, strict=True) if exact_match(one, target))
    of_target, of_said = Counter(map(normalised, targets)), Counter(map(normalised, said))
    scores = [2 * hits[label] / (count + of_said[normalised(label)]) for label, count in Counter(targets).items()]
    return sum(scores) / len(of_target) if of_target else 0.0


def task_score(row: Row, said: str, *, classification: bool) -> float:
    """What the bootstrap compares: the metric of the row's own kind."""
    if row.pattern is not None:
        return float(row.pattern.search(said) is not None)
    if row.schema is not None:
        return float(fits_schema(read_json(said), row.schema))
    if row.accept:
        return float(any(accepted.lower() in said.lower() for accepted in row.accept))
    if classification or row.task_type == CLASSIFICATION:
        return float(exact_match(said, row.target))
    if row.task_type == EXTRACTION or row.tools:
        return field_f1(said, row.target)
    return token_f1(said, row.target)


def format_valid(row: Row, reply: Reply, labels: frozenset[str]) -> bool:
    """Whether an answer has the form of what was asked for, be it right or wrong.

    One of the `labels` where there are any; calls of known tools with valid arguments; JSON where the target is; and
    always something, said to its end.
    """
    if reply.cut_off:
        return False
    if reply.tool_calls:
        return all(_call_valid(call, row.tools) for call in reply.tool_calls)
    said = normalised(reply.text)
    if labels:
        return said in labels
    if row.schema is not None:
        return fits_schema(read_json(said), row.schema)
    if isinstance(read_json(row.target), (dict, list)):
        return isinstance(read_json(said), (dict, list))
    return bool(said)


def said_by(reply: Reply) -> str:
    """The answer as text that compares with a target: its words, else its tool calls as JSON."""
    if not reply.tool_calls:
        return reply.text.strip()
    calls = [{"name": call.get("name"), "arguments": _arguments(call)} for call in reply.tool_calls]
    return json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)


def read_json(text: str) -> Any:
    """The document, or a mark that is no JSON value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NO_JSON


def fits_schema(document: Any, schema: Mapping[str, Any]) -> bool:
    """Whether the document is one, and fits; a schema that is none fits nothing."""
    import jsonschema

    try:
        jsonschema.validate(document, schema)
    except (jsonschema.ValidationError, jsonschema.SchemaError):
        return False
    return document is not _NO_JSON


def _call_valid(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> bool:
    functions = {tool["function"]["name"]: tool["function"] for tool in tools if "function" in tool}
    function = functions.get(str(call.get("name")))
    return function is not None and fits_schema(_arguments(call), function.get("parameters") or {})


def _arguments(call: Mapping[str, Any]) -> Any:
    arguments = call.get("arguments")
    return read_json(arguments) if isinstance(arguments, str) else arguments


def _leaves(document: Any, path: str = "") -> list[str]:
    if isinstance(document, dict):
        return [leaf for key, value in document.items() for leaf in _leaves(value, f"{path}.{key}")]
    if isinstance(document, list):
        return [leaf for value in document for leaf in _leaves(value, f"{path}[]")]
    return [f"{path}={normalised(document) if isinstance(document, str) else json.dumps(document)}"]


def _f1(said: Counter[str], target: Counter[str]) -> float:
    if not said or not target:
        return float(said == target)
    return 2 * (said & target).total() / (said.total() + target.total())
