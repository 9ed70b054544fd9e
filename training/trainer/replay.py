"""What the base says by itself, trained on beside many cases, so that it does not forget the rest.

A dataset's general questions are few: over thousands of cases they are learned by heart and hold nothing else. So the
base continues their first words as it likes, and answers what came of it greedily; those questions and answers are
mixed in (Huang et al., Mitigating Catastrophic Forgetting in Large Language Models with Self-Synthesized Rehearsal, ACL
2024). The questions by which the gate measures forgetting are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.embedded import GENERAL_SET
from training.trainer.config import TrainingConfig
from training.trainer.memory import Thrift, free_memory, is_out_of_memory
from training.trainer.model import load_base
from training.trainer.rows import ChatFormat, read_lines

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerBase

FILE = "replay.jsonl"
"""kept in the job's folder: a resumed run needs the same rows"""
ENOUGH_GENERAL = 0.05
"""general questions in the dataset, as a share of its rows, from which on nothing is added"""
SHARE = 0.25
"""rows added, as a share of the dataset's"""
MOST = 2000
LIMIT_S = 300.0
"""a large base on a processor says little in that time, and what it has said is enough then"""
BATCH = 128
QUESTION_TOKENS = 24
ANSWER_TOKENS = 40

Line = Mapping[str, Any]


def general_questions(lines: Iterable[Line]) -> list[str]:
    """The questions of `lines` that are of the project's general set."""
    known = _general_set()
    asked = (_only_question(line) for line in lines)
    return [question for question in asked if question in known]


def rows_wanted(rows: int, general: int) -> int:
    """How many rows to add to a dataset of `rows`, of which `general` are general questions; 0 for few cases."""
    if not general or general >= ENOUGH_GENERAL * rows:
        return 0
    return min(round(SHARE * rows), MOST)


def replayed_lines(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator, stopping: Callable[[], bool]
) -> list[Line]:
    """What the base says for this run: said once, and kept in the job's folder. Raises Stopped and TrainingRefused.

    FSDP and DeepSpeed spread a base that one process need not be able to hold: nothing is said there.
    """
    if not config.replay or config.launcher.strategy != "ddp":
        return []
    lines = list(read_lines(config.dataset / "train.jsonl"))
    seeds = general_questions(lines)
    wanted = rows_wanted(len(lines), len(seeds))
    if not wanted:
        return []
    file = config.output / FILE
    if accelerator.is_main_process and not file.exists():

        def rehearsal() -> Rehearsal:
            four_bit = config.method == "qlora" and accelerator.device.type == "cuda"
            base = load_base(config, Thrift(1, four_bit=four_bit), accelerator.device)
            return Rehearsal(base.eval(), tokenizer, stopping)

        with suppress(Stopped):
            write_lines(file, _said(rehearsal, seeds, wanted, config.seed))
    accelerator.wait_for_everyone()
    if not file.exists():
        raise Stopped
    return list(read_lines(file))


def _said(rehearsal: Callable[[], Rehearsal], seeds: Sequence[str], wanted: int, seed: int) -> list[Line]:
    try:
        return rehearsal().say(seeds, wanted, seed)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return []  # training has ways to save memory that speaking has not
    finally:
        free_memory()


class Stopped(Exception):
    """The run was asked to stop before all was said."""


@dataclass(frozen=True)
class Rehearsal:
    """Has `model`, the base without an adapter, say what is replayed. `stopping` is asked between batches."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    stopping: Callable[[], bool] = lambda: False
    limit_s: float = LIMIT_S
    batch: int = BATCH

    def say(self, seeds: Sequence[str], wanted: int, seed: int) -> list[Line]:
        """At most `wanted` lines of a dataset, no question twice, within `limit_s`. Raises Stopped.

        No line at all where the template ends question and answer with no special token, which would tell the end.
        """
        import torch

        frame = ChatFormat(self.tokenizer).question_frame()
        if frame is None:
            return []
        before, after, end = frame
        torch.manual_seed(seed)
        choose = random.Random(seed)  # noqa: S311 - no secret
        avoided, said = _general_set(), dict[str, str]()
        began = time.monotonic()
        barren = 0
        while len(said) < wanted and time.monotonic() - began < self.limit_s and barren < 3:
            if self.stopping():
                raise Stopped
            starts = [_first_words(choose.choice(seeds), choose) for _ in range(self.batch)]
            continued = self._continue([before + start for start in starts], end, QUESTION_TOKENS, sampled=True)
            questions = {
                (start + rest).strip() for start, rest in zip(starts, continued, strict=True) if rest is not None
            }
            new = sorted(questions - avoided - said.keys())
            answers = self._continue([before + question + after for question in new], end, ANSWER_TOKENS, sampled=False)
            added = {
                question: answer.strip() for question, answer in zip(new, answers, strict=True) if answer is not None
            }
            said |= added
            barren = 0 if added else barren + 1
        return [_line(question, answer) for question, answer in list(said.items())[:wanted]]

    def _continue(self, prompts: Sequence[str], end: int, most: int, *, sampled: bool) -> list[str | None]:
        """What follows each prompt up to the token `end`; None where it does not come within `most` tokens."""
        import torch

        if not prompts:
            return []
        rows: list[list[int]] = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        width = max(map(len, rows))
        model: Any = self.model
        ids = torch.tensor([[end] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        how: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {}
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=most,
                eos_token_id=end,
                pad_token_id=end,
                use_cache=True,
                **({"do_sample": False} | how),
            )
        told: list[list[int]] = out[:, width:].tolist()
        return [str(self.tokenizer.decode(row[: row.index(end)])) if end in row else None for row in told]


def write_lines(file: Path, lines: Iterable[Line]) -> None:
    """Write all of them or nothing."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    partial.replace(file)


def _general_set() -> set[str]:
    with GENERAL_SET.open(encoding="utf-8") as lines:
        return {json.loads(line)["question"] for line in lines}


def _only_question(line: Line) -> str | None:
    messages = line["messages"]
    content = messages[0].get("content") if len(messages) == 1 else None
    return content if isinstance(content, str) else None


def _first_words(question: str, choose: random.Random) -> str:
    """At least half of the words, so that it stays a general question, and never all of them."""
    words = question.split()
    return " ".join(words[: choose.randint((len(words) + 1) // 2, max(1, len(words) - 1))])


def _line(question: str, answer: str) -> Line:
    return {
        "id": "replay-" + hashlib.sha256(question.encode()).hexdigest()[:16],
        "messages": [{"role": "user", "content": question}],
        "completion": answer,
        "tools": None,
        "reward": 1.0,
        "task_type": "general",
    }
