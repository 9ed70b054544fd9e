"""How often a model answers right, by greedy decoding with transformers and peft."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.demo.corpus import Case
from training.demo.reading import GeneralQuestion

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

BATCH = 64
LABEL_TOKENS = 24
SENTENCE_TOKENS = 48


def write_cases(file: Path, cases: Iterable[Case]) -> None:
    """Write a CSV with the columns `text` and `label`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows((case.text, case.label) for case in cases)


def read_cases(file: Path) -> list[Case]:
    """The cases of a CSV as `write_cases` writes it."""
    with file.open(encoding="utf-8", newline="") as source:
        return [Case(row["text"], row["label"]) for row in csv.DictReader(source)]


def write_general_set(file: Path, questions: Iterable[GeneralQuestion]) -> None:
    """Write one JSON object a line: `question`, `answer`, `accept`."""
    rows = ({"question": item.question, "answer": item.answer, "accept": list(item.accept)} for item in questions)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_general_set(file: Path) -> list[GeneralQuestion]:
    """The questions of a file as `write_general_set` writes it."""
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [GeneralQuestion(row["question"], row["answer"], tuple(row["accept"])) for row in rows]


def answers(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_tokens: int
) -> list[str]:
    """The greedy answer to each prompt, sent as the only user message, without special tokens."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    out = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        chats = [[{"role": "user", "content": prompts[index]}] for index in chosen]
        inputs: Any = tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        with torch.inference_mode():
            tokens = model.generate(  # type: ignore[operator]  # declared by transformers, not by Module
                **inputs.to(device), do_sample=False, temperature=None, max_new_tokens=max_tokens
            )
        texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            out[index] = text
    return out


def first_line(answer: str) -> str:
    """What is compared with a label."""
    return answer.strip().split("\n", 1)[0].strip()


def label_accuracy(given: Sequence[str], cases: Sequence[Case]) -> float:
    """Share of answers whose first line is the label, in [0, 1]."""
    right = sum(first_line(answer) == case.label for answer, case in zip(given, cases, strict=True))
    return right / len(cases)


def general_accuracy(given: Sequence[str], questions: Sequence[GeneralQuestion]) -> float:
    """Share of answers that contain an accepted string, in [0, 1]."""
    right = sum(
        any(accepted.lower() in answer.lower() for accepted in item.accept)
        for answer, item in zip(given, questions, strict=True)
    )
    return right / len(questions)
