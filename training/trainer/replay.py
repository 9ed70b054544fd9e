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
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.embedded import GENERAL_SET
from training.trainer.batches import loss_weight
from training.trainer.config import TrainingConfig
from training.trainer.memory import Thrift, free_memory, is_out_of_memory
from training.trainer.model import load_base
from training.trainer.rows import ChatFormat, Row, read_lines

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerBase

CHECKPOINTS = "checkpoints"
FILE = "replay.jsonl"
"""kept in the job's folder: a resumed run needs the same rows"""
ENOUGH_GENERAL = 0.05
"""general questions in the dataset, as a share of its rows, from which on nothing is added"""
SHARE = 0.75
"""rows added, as a share of the dataset's"""
MOST = 2500
"""and no more than so many"""
LIMIT_S = 300.0
"""a large base on a processor says little in that time, and what it has said is enough then"""
BATCH = 128
BARREN = 3
"""batches on end without a row, after which a base is taken to have nothing to say"""
LOOK_S = 0.2
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


def weighed_as_cases(said: Sequence[Row], cases: Sequence[Row]) -> list[Row]:
    """What was said, with one weight for all, such that a row counts no more than a case in the mean.

    As labels are short, it would otherwise count several times as much in a step that holds both. A step of said rows
    alone is a step like any other.
    """
    if not said:
        return []
    mean, of_cases = (sum(map(loss_weight, rows)) / len(rows) for rows in (said, cases))
    return [replace(row, weight=min(1.0, of_cases / mean)) for row in said]


def replayed_lines(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator, stopping: Callable[[], bool]
) -> list[Line]:
    """What the base says for this run: said once, and kept in the job's folder. Raises Stopped and TrainingRefused.

    FSDP and DeepSpeed spread a base that one process need not be able to hold: nothing is said there.
    """
    if config.launcher.strategy != "ddp":
        return []
    lines = list(read_lines(config.dataset / "train.jsonl"))
    seeds = general_questions(lines)
    wanted = rows_wanted(len(lines), len(seeds))
    file = config.output / FILE
    if not wanted or (not file.exists() and any((config.output / CHECKPOINTS).glob("step-*"))):
        return []  # a run that began without such rows goes on without them
    if accelerator.is_main_process and not file.exists():

        def rehearsal() -> Rehearsal:
            four_bit = config.method == "qlora" and accelerator.device.type == "cuda"
            base = load_base(config, Thrift(1, four_bit=four_bit), accelerator.device)
            return Rehearsal(base.eval(), tokenizer, stopping, known=_asked(config.dataset))

        write_lines(file, _said(rehearsal, seeds, wanted, config.seed))
    while not file.exists():  # looked for, since a collective call would not wait as long
        if stopping():
            raise Stopped
        time.sleep(LOOK_S)
    return list(read_lines(file))


def _said(rehearsal: Callable[[], Rehearsal], seeds: Sequence[str], wanted: int, seed: int) -> list[Line]:
    import torch

    try:
        return rehearsal().say(seeds, wanted, seed)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return []  # training has ways to save memory that speaking has not
    finally:
        free_memory()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


def _asked(dataset: Path) -> frozenset[str]:
    """What the dataset's own questions are known by; a general question of the gate's among them or not."""
    files = [dataset / f"{part}.jsonl" for part in ("train", "validation", "holdout")]
    asked = (_only_question(line) for file in files if file.exists() for line in read_lines(file))
    return frozenset(_bare(question) for question in asked if question is not None)


class Stopped(Exception):
    """The run was asked to stop before all was said."""


@dataclass(frozen=True)
class Rehearsal:
    """Has `model`, the base without an adapter, say what is replayed. `stopping` is asked at every token.

    `known` are bare questions that are not asked; those of the general set never are.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    stopping: Callable[[], bool] = lambda: False
    limit_s: float = LIMIT_S
    batch: int = BATCH
    known: frozenset[str] = frozenset()

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
        deadline = time.monotonic() + self.limit_s
        known, said = {_bare(question) for question in _general_set()} | self.known, dict[str, str]()
        barren = 0
        while len(said) < wanted and time.monotonic() < deadline and barren < BARREN:
            starts = [before + _first_words(choose.choice(seeds), choose) for _ in range(self.batch)]
            asked = dict[str, str]()
            for text in self._continue(starts, end, QUESTION_TOKENS, deadline, sampled=True):
                if text is not None and _bare(text.removeprefix(before)) not in known:
                    asked.setdefault(_bare(text.removeprefix(before)), text.removeprefix(before).strip())
            prompts = [before + question + after for question in asked.values()]
            answers = self._continue(prompts, end, ANSWER_TOKENS, deadline, sampled=False)
            added = {
                question: text.removeprefix(prompt).strip()
                for question, prompt, text in zip(asked.values(), prompts, answers, strict=True)
                if text is not None and text.removeprefix(prompt).strip()
            }
            known |= asked.keys()
            said |= added
            barren = 0 if added else barren + 1
        return [_line(question, answer) for question, answer in list(said.items())[:wanted]]

    def _continue(
        self, prompts: Sequence[str], end: int, most: int, deadline: float, *, sampled: bool
    ) -> list[str | None]:
        """Each prompt with what follows up to the token `end`; None where that does not come, or comes as no text.

        Prompt and continuation are decoded together, as some tokenizers drop a space at the start.
        """
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

        if not prompts:
            return []

        class Ending(StoppingCriteria):
            def __call__(_, input_ids: torch.Tensor, *_rest: Any, **_more: Any) -> torch.Tensor:  # noqa: N805
                ends = self.stopping() or time.monotonic() >= deadline
                return torch.full((len(input_ids),), ends, dtype=torch.bool, device=input_ids.device)

        rows: list[list[int]] = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        width = max(map(len, rows))
        model: Any = self.model
        ids = torch.tensor([[end] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
        plain = GenerationConfig(max_new_tokens=most, eos_token_id=end, pad_token_id=end, use_cache=True, **how)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=plain,
                stopping_criteria=StoppingCriteriaList([Ending()]),
            )
        if self.stopping():
            raise Stopped
        told: list[list[int]] = out[:, width:].tolist()
        return [self._text(prompt, row, new, end) for prompt, row, new in zip(prompts, rows, told, strict=True)]

    def _text(self, prompt: str, row: Sequence[int], new: Sequence[int], end: int) -> str | None:
        said = list(new[: new.index(end)]) if end in new else []
        if not said or set(said) & set(self.tokenizer.all_special_ids):
            return None
        whole, start = (str(self.tokenizer.decode([*row, *more])) for more in (said, []))
        text = prompt + whole[len(start) :]
        return None if "\ufffd" in text else text


def write_lines(file: Path, lines: Iterable[Line]) -> None:
    """Write all of them, down to the disk, or nothing."""
    partial = file.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)


def _general_set() -> set[str]:
    with GENERAL_SET.open(encoding="utf-8") as lines:
        return {json.loads(line)["question"] for line in lines}


def _only_question(line: Line) -> str | None:
    messages = line["messages"]
    content = messages[0].get("content") if len(messages) == 1 else None
    return content if isinstance(content, str) else None


def _bare(question: str) -> str:
    """The question without what carries no meaning."""
    return " ".join(re.findall(r"\w+", question.lower()))


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
