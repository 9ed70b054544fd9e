"""The byte-level BPE tokenizer and its chat template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from training.demo.reading import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, START, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = Path(__file__).parent / "texts" / "chat_template.jinja"


def train_tokenizer(documents: Iterable[Document], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Learn pieces from `documents`. All 256 bytes are in the vocabulary, so that any text can be written.

    Digits stand alone: order numbers must not fill the vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in (END_OF_TEXT, START, END_OF_TURN)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_plain(documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
    )


def _plain(documents: Iterable[Document]) -> Iterable[str]:
    for document in documents:
        if isinstance(document, str):
            yield document
        else:
            for message in document:
                # The role and the line end are written as in the template, so that each is one piece.
                yield f"{message['role']}\n"
                yield message["content"]
