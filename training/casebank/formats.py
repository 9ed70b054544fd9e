"""The formats that people keep training data in: from a row to cases, and from a case to a row.

Each assistant turn of a conversation is a case of its own, with what came before as its prompt; the turns of one
conversation are one episode. OpenAI's `weight: 0` leaves a turn out. Besides what the format asks for, every row may
tell `reward` (0 to 1; absent or empty: 1; `none`: not rewarded), `split` (train, test), `session`, `user_id`,
`episode`, `task_type` and `correction`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from training.casebank.case import Case, Message, Split, text_of
from training.casebank.chats import from_chatml, from_messages, from_sharegpt, to_chatml, to_sharegpt
from training.casebank.errors import CaseInvalid, ImportFailed

UNREWARDED = "none"
_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "validation", "valid", "val", "dev"), "train"),
    **dict.fromkeys(("test", "testing", "holdout", "eval", "evaluation"), "holdout"),
}
_USER = ("user", "prompt", "question", "query", "input", "message", "human", "text")
_ASSISTANT = ("assistant", "response", "answer", "output", "completion", "reply", "target", "gpt", "bot")
_DOCUMENT = ("text", "document", "article", "dialogue", "content", "input", "source")

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    `columns` are alternatives, any of which must be there, for each thing that it needs; `written` are those that
    `dump` fills.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    parse: Callable[[Values], list[Message]]
    dump: Callable[[Case], dict[str, Any]]
    written: tuple[str, ...]
    task_type: str | None = None

    def fits(self, columns: Collection[str]) -> bool:
        """Whether rows with these columns can be in this format."""
        return all(any(name in columns for name in names) for names in self.columns)


def cases_of(form: Format, values: Values, agent: str) -> list[Case]:
    """The cases of a row. Raises CaseInvalid, with the field where one is at fault."""
    conversation = form.parse(values)
    turns = [at for at, message in enumerate(conversation) if _is_learned(message)]
    if not turns:
        raise CaseInvalid("no answer of an assistant in it", param="messages")
    common = _common(form, values) | {"agent": agent, "tools": _json(values, "tools")}
    if len(turns) > 1:
        common["episode"] = common["episode"] or _digest(conversation)
    correction = {"correction": _optional(values, "correction")}
    return [_case(form, conversation, at, common | (correction if at == turns[-1] else {})) for at in turns]


def _case(form: Format, conversation: list[Message], at: int, common: dict[str, Any]) -> Case:
    if not at:
        raise CaseInvalid("nothing comes before the answer", param="messages")
    prompt = [{key: value for key, value in message.items() if key != "weight"} for message in conversation[:at]]
    answer = {key: value for key, value in conversation[at].items() if key != "weight"}
    content = text_of(answer.get("content"))
    if not content.strip() and not answer.get("tool_calls"):
        raise CaseInvalid("the answer is empty")
    label = content if form.name == "classification" else None
    return Case(messages=prompt, response=answer, label=label, source="import", **common)


def format_named(name: str) -> Format:
    """The format called `name`. Raises ImportFailed with those that there are."""
    try:
        return FORMATS[name]
    except KeyError:
        raise ImportFailed(f"format '{name}' is not known: use one of {', '.join(FORMATS)}", param="format") from None


def guess(values: Values) -> Format:
    """The format that a row looks like. Raises ImportFailed."""
    names = set(values)
    if "text" in names and "<|im_start|>" in str(values["text"]):
        return FORMATS["chatml"]
    for name in _GUESSED:
        if FORMATS[name].fits(names):
            return FORMATS[name]
    raise ImportFailed(
        f"no format has the columns {', '.join(map(str, values))}: name one of {', '.join(FORMATS)}", param="format"
    )


def row_of(form: Format, case: Case) -> dict[str, Any]:
    """The row that gives `case` when it is imported, without what is not known of it."""
    told: dict[str, Any] = {
        "tools": case.tools,
        "reward": UNREWARDED if case.reward is None else case.reward,
        "split": "test" if case.split == "holdout" else "train",
        "session": case.session,
        "user_id": case.user,
        "episode": case.episode,
        "task_type": case.task_type if case.task_type != form.task_type else None,
    }
    return form.dump(case) | {name: value for name, value in told.items() if value is not None}


def learned_messages(case: Case) -> list[Message]:
    """The conversation with the answer to learn at its end; answers before it have weight 0."""
    prompt = [
        dict(message, weight=0) if message.get("role") == "assistant" else dict(message) for message in case.messages
    ]
    return [*prompt, learned_answer(case)]


def learned_answer(case: Case) -> Message:
    """The assistant's message to learn. Raises CaseInvalid for a case without one."""
    given = case.correction if case.correction is not None else case.label
    if given is not None:
        return {"role": "assistant", "content": given}
    if case.response is None:
        raise CaseInvalid("there is no answer to learn")
    return {**case.response, "role": "assistant"}


# -- rows of columns -------------------------------------------------------------------------------------------------


def _pair(users: tuple[str, ...], answers: tuple[str, ...]) -> Callable[[Values], list[Message]]:
    def parse(values: Values) -> list[Message]:
        instruction = _optional(values, "instruction") if "instruction" not in users else None
        asked = _text(values, users)
        return _conversation(values, f"{instruction}\n\n{asked}" if instruction else asked, _text(values, answers))

    return parse


def _prompt_completion(values: Values) -> list[Message]:
    prompt, completion = _maybe_json(values.get("prompt")), _maybe_json(values.get("completion"))
    if isinstance(prompt, list) or isinstance(completion, list):
        asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": _text(values, ("prompt",))}]
        given = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        unweighted = [message | {"weight": 0} if _is_learned(message) else message for message in from_messages(asked)]
        return [*unweighted, *from_messages(given)]
    return _conversation(values, _text(values, ("prompt",)), _text(values, ("completion",)))


def _instruction(values: Values) -> list[Message]:
    asked, more = _text(values, ("instruction", "prompt", "question")), _optional(values, "input", "context")
    said: list[Message] = []
    for pair in _json(values, "history") or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise CaseInvalid("'history' must be a list of pairs", param="history")
        said += [{"role": "user", "content": str(pair[0])}, {"role": "assistant", "content": str(pair[1]), "weight": 0}]
    turn = _conversation(values, f"{asked}\n\n{more}" if more else asked, _text(values, ("output", *_ASSISTANT)))
    return [*turn[:-2], *said, *turn[-2:]]


def _conversation(values: Values, asked: str, answered: str) -> list[Message]:
    system = _optional(values, "system", "system_prompt")
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _messages(values: Values) -> list[Message]:
    return from_messages(_json(values, "messages"))


def _sharegpt(values: Values) -> list[Message]:
    return from_sharegpt(_json(values, "conversations"), _optional(values, "system"))


def _chatml(values: Values) -> list[Message]:
    return from_chatml(_text(values, ("text", "chatml", "conversation", "prompt")))


def _dump_columns(user: str, answer: str) -> Callable[[Case], dict[str, Any]]:
    def dump(case: Case) -> dict[str, Any]:
        system, asked = _single_turn(case)
        row = {user: asked, answer: text_of(learned_answer(case).get("content"))}
        return {"system": system} | row if system else row

    return dump


def _single_turn(case: Case) -> tuple[str | None, str]:
    """System prompt and question of a case that two columns can hold. Raises CaseInvalid for any other."""
    rest = list(case.messages)
    system = text_of(rest.pop(0).get("content")) if rest and rest[0].get("role") == "system" else None
    if len(rest) != 1 or rest[0].get("role") != "user" or case.tools or learned_answer(case).get("tool_calls"):
        raise CaseInvalid("conversations and tools fit formats messages, sharegpt and chatml only")
    return system, text_of(rest[0].get("content"))


def _dump_messages(case: Case) -> dict[str, Any]:
    return {"messages": learned_messages(case)}


# -- cells -----------------------------------------------------------------------------------------------------------


def _is_learned(message: Message) -> bool:
    return message.get("role") == "assistant" and message.get("weight") != 0


def _text(values: Values, names: tuple[str, ...]) -> str:
    for name in names:
        value = values.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)  # labels are often numbers
        if isinstance(value, str) and value.strip():
            return value
        if value is not None and not isinstance(value, str):
            raise CaseInvalid(f"'{name}' must be text", param=name)
    present = next((name for name in names if name in values), names[0])
    raise CaseInvalid(f"'{present}' is empty" if present in values else f"'{present}' is missing", param=present)


def _optional(values: Values, *names: str) -> str | None:
    return next((str(values[name]) for name in names if values.get(name) not in (None, "")), None)


def _json(values: Values, name: str) -> Any:
    """A list: as such, or as JSON in a cell."""
    value = _maybe_json(values.get(name))
    if value in (None, ""):
        return None
    if not isinstance(value, list):
        raise CaseInvalid(f"'{name}' must be a list", param=name)
    return value


def _maybe_json(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _common(form: Format, values: Values) -> dict[str, Any]:
    reward = _reward(values)
    return {
        "reward": reward,
        "reward_source": None if reward is None else "import",
        "split": _split(values),
        "session": _optional(values, "session", "session_id"),
        "user": _optional(values, "user_id"),
        "episode": _optional(values, "episode", "episode_id", "conversation_id"),
        "task_type": _optional(values, "task_type") or form.task_type,
    }


def _reward(values: Values) -> float | None:
    given = values.get("reward", values.get("score"))
    if given is None or given == "":
        return 1.0
    if isinstance(given, str) and given.strip().lower() == UNREWARDED:
        return None
    try:
        reward = float(given)
    except (TypeError, ValueError):
        raise CaseInvalid(f"reward {given!r} is no number", param="reward") from None
    if not 0 <= reward <= 1:
        raise CaseInvalid(f"reward {given!r} is not between 0 and 1", param="reward")
    return reward


def _split(values: Values) -> Split | None:
    given = str(values.get("split") or "").strip().lower()
    if given and given not in _SPLITS:
        raise CaseInvalid(f"split '{given}' is neither train nor test", param="split")
    return _SPLITS.get(given)


def _digest(conversation: list[Message]) -> str:
    """One name for all turns of a conversation."""
    return "conversation:" + hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()[:32]


def _columns(
    name: str,
    parse: Callable[[Values], list[Message]],
    columns: tuple[tuple[str, ...], tuple[str, ...]],
    written: tuple[str, str],
    task_type: str | None = None,
) -> Format:
    return Format(name, columns, parse, _dump_columns(*written), ("system", *written), task_type)


_SUMMARY = ("summary", "highlights")
_INSTRUCTED = (("instruction",), ("output", *_ASSISTANT))
FORMATS = {
    form.name: form
    for form in (
        Format("messages", (("messages",),), _messages, _dump_messages, ("messages",)),
        Format(
            "sharegpt",
            (("conversations",),),
            _sharegpt,
            lambda case: to_sharegpt(learned_messages(case)),
            ("conversations",),
        ),
        _columns("alpaca", _instruction, _INSTRUCTED, ("instruction", "output"), "instruction"),
        Format(
            "chatml",
            (("text", "chatml", "conversation", "prompt"),),
            _chatml,
            lambda case: {"text": to_chatml(learned_messages(case))},
            ("text",),
        ),
        _columns("prompt-completion", _prompt_completion, (("prompt",), ("completion",)), ("prompt", "completion")),
        _columns("chat", _pair(_USER, _ASSISTANT), (_USER, _ASSISTANT), ("user", "assistant"), "chat"),
        _columns("instruction", _instruction, _INSTRUCTED, ("instruction", "output"), "instruction"),
        _columns(
            "classification",
            _pair(("text", *_USER), ("label",)),
            (("text", *_USER), ("label",)),
            ("text", "label"),
            "classification",
        ),
        _columns(
            "summarization", _pair(_DOCUMENT, _SUMMARY), (_DOCUMENT, _SUMMARY), ("text", "summary"), "summarization"
        ),
    )
}
_GUESSED = (
    "messages",
    "sharegpt",
    "instruction",
    "prompt-completion",
    "summarization",
    "classification",
    "chat",
)
