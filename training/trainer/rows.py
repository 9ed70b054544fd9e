"""From a dataset's lines to token ids, exactly as the serving engine would make them.

The prompt is the chat template with `add_generation_prompt`; the completion follows as the engine would generate it,
up to the token that ends the turn. Prompt and completion are tokenised apart, as in serving, so that the tokens of the
prompt are those that the engine computes, whatever would merge across the seam.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training.trainer.errors import TrainingRefused
from training.trainer.resolve import DataFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
PROBE = "PROBE-7f3a"
"""text that no template holds"""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Token ids, int32; the first `prompt` of them carry no loss, the loss of the others counts `weight` times."""

    ids: npt.NDArray[np.int32]
    prompt: int
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of one file. `too_long` counts those that were left out."""

    rows: list[Row]
    too_long: int = 0
    task_types: frozenset[str] = field(default=frozenset())

    def facts(self) -> DataFacts:
        """How much there is to learn."""
        prompt = sum(row.prompt for row in self.rows)
        return DataFacts(len(self.rows), prompt, sum(map(len, self.rows)) - prompt, self.task_types)


class ChatFormat:
    """How a base's chat template writes prompts and ends a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise TrainingRefused("the base has no chat template, so the engine could not serve chats with it")
        self._tokenizer = tokenizer
        self._reads_parts = self._template_reads_parts()
        self._turn_end = self._find_turn_end()

    @property
    def template(self) -> str:
        """Its text."""
        return str(self._tokenizer.chat_template)

    def encode(self, lines: Iterable[Mapping[str, Any]], max_length: int) -> Encoded:
        """Rows of at most `max_length` tokens. Raises TrainingRefused for a line that the template does not take."""
        prompts, completions, tasks = [], [], set()
        for number, line in enumerate(lines, 1):
            prompts.append(self._prompt(line, number))
            completions.append(str(line["completion"]) + self._turn_end)
            tasks.add(str(line.get("task_type") or ""))
        pairs = zip(self._ids(prompts), self._ids(completions), strict=True)
        rows = [Row(np.array([*before, *after], dtype=np.int32), len(before)) for before, after in pairs]
        kept = [row for row in rows if len(row) <= max_length]
        return Encoded(kept, len(rows) - len(kept), frozenset(tasks))

    def question_frame(self) -> tuple[str, str, int] | None:
        """What stands before and after a lone question, and the special token that ends both turns."""
        before, found, after = self._render([{"role": "user", "content": PROBE}], add_generation_prompt=True).partition(
            PROBE
        )
        ids = self._ids([after])[0] if found and after else []
        special = set(self._tokenizer.all_special_ids)
        if not ids or ids[0] not in special or self._ids([self._turn_end])[0][-1] != ids[0]:
            return None
        return before, after, ids[0]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _prompt(self, line: Mapping[str, Any], number: int) -> str:
        messages = [self._as_served(message) for message in line["messages"]]
        try:
            return self._render(messages, tools=line.get("tools") or None, add_generation_prompt=True)
        except Exception as error:  # templates raise whatever they like
            reason = " ".join(str(error).split())[:300]
            raise TrainingRefused(f"line {number}: the base's chat template refuses the messages: {reason}") from error

    def _render(self, messages: list[Message], **options: Any) -> str:
        text: Any = self._tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return str(text)

    def _as_served(self, message: Mapping[str, Any]) -> Message:
        """The message as vLLM hands it to the template: text parts joined, arguments of calls as objects."""
        out = dict(message)
        content = out.get("content")
        if isinstance(content, list) and not self._reads_parts:
            out["content"] = "\n".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
        if calls := out.get("tool_calls"):
            out["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        return out

    def _template_reads_parts(self) -> bool:
        try:
            text = self._render([{"role": "user", "content": [{"type": "text", "text": PROBE}]}])
        except Exception:  # templates raise whatever they like
            return False
        return PROBE in text and "'type'" not in text and '"type"' not in text

    def _find_turn_end(self) -> str:
        """What the template writes behind an answer, up to the first token that ends generation."""
        exchange = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        _, found, after = self._render(exchange).partition(PROBE)
        end = str(self._tokenizer.eos_token or "")
        if not end:
            raise TrainingRefused("the base's tokenizer names no token that ends a turn")
        if found and end in after:
            return after[: after.index(end) + len(end)]
        return end


def _with_parsed_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. Raises TrainingRefused for a line that is no training row."""
    try:
        with file.open(encoding="utf-8") as source:
            for number, text in enumerate(source, 1):
                if text.strip():
                    yield _checked(text, file, number)
    except OSError as error:
        raise TrainingRefused(f"cannot read {file}: {error.strerror}") from None


def _checked(text: str, file: Path, number: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise TrainingRefused(f"{file}, line {number}: not JSON: {error}") from None
    if not isinstance(line, dict) or not isinstance(line.get("completion"), str) or not line.get("messages"):
        raise TrainingRefused(f"{file}, line {number}: needs messages and a completion")
    return line
