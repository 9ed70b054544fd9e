"""From documents to padded batches with a loss mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.demo.corpus import stream
from training.demo.reading import Document, Messages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""label of tokens without loss, as in torch and transformers"""
_BUCKET = 64
"""batches sorted by length together; the order within is shuffled again"""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each whether it counts in the loss."""

    ids: tuple[int, ...]
    counts: tuple[bool, ...]


def encode(tokenizer: PreTrainedTokenizerBase, document: Document, context: int) -> Encoded:
    """All tokens of a text or chat, each counted: how the base learns."""
    if isinstance(document, str):
        ids = [*tokenizer.encode(document), tokenizer.pad_token_id]
    else:
        out: Any = tokenizer.apply_chat_template(document, tokenize=True, return_dict=True)
        ids = out["input_ids"]
    return Encoded(tuple(ids[:context]), (True,) * min(len(ids), context))


def encode_answers(tokenizer: PreTrainedTokenizerBase, chat: Messages, context: int) -> Encoded:
    """The tokens of a chat; only what the assistant says counts, its end of turn included.

    The mask comes from the template's generation block. Raises ValueError if the answer lies past `context`.
    """
    out: Any = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    counts = tuple(bool(flag) for flag in out["assistant_masks"][:context])
    if not any(counts):
        raise ValueError(f"no assistant token within {context} tokens")
    return Encoded(tuple(out["input_ids"][:context]), counts)


def batches(rows: Sequence[Encoded], tokens_per_batch: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches of at most `tokens_per_batch` padded tokens, of rows of like length, reshuffled each epoch."""
    if not rows:
        raise ValueError("no rows to train on")
    epoch = 0
    while True:
        rng = stream("batches", seed, epoch)
        order = list(rows)
        rng.shuffle(order)
        mean = sum(len(row.ids) for row in rows) / len(rows)
        span = max(1, int(_BUCKET * tokens_per_batch / mean))
        for start in range(0, len(order), span):
            group = _split(sorted(order[start : start + span], key=lambda row: len(row.ids)), tokens_per_batch)
            rng.shuffle(group)
            yield from group
        epoch += 1


def _split(rows: Sequence[Encoded], tokens_per_batch: int) -> list[list[Encoded]]:
    """Cut rows of rising length into batches; the longest of a batch is its last."""
    out: list[list[Encoded]] = []
    for row in rows:
        if not out or len(row.ids) * (len(out[-1]) + 1) > tokens_per_batch:
            out.append([])
        out[-1].append(row)
    return out


def collate(rows: Sequence[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels, both int64 of shape (rows, longest row), padded on the right.

    A causal model needs no attention mask then: no token sees the padding behind it.
    """
    import torch

    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        tokens = torch.tensor(row.ids)
        ids[index, : len(row.ids)] = tokens
        labels[index, : len(row.ids)] = torch.where(torch.tensor(row.counts), tokens, IGNORED)
    return ids, labels
