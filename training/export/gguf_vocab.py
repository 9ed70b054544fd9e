"""A byte-level BPE tokenizer as GGUF metadata, read from tokenizer.json.

llama.cpp knows the rule that splits text before BPE only by name. The name is found by comparing the tokenizer's own
rule with the rules behind the names, and a rule without a name is refused: a wrong one tokenises wrongly in silence.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.export.checkpoint import read_json
from training.export.errors import ExportRefused

if TYPE_CHECKING:
    import gguf

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    ("bytes",): "gpt-2",
    ("digit", "bytes"): "smollm",
    (rf"{_WORDS}\p{{N}}{_REST}",): "qwen2",
    (rf"{_WORDS}\p{{N}}{{1,3}}{_REST}", "whole words first"): "llama-bpe",
}
"""steps of a splitting rule, and llama.cpp's name for it (read in its `llama-vocab.cpp`)"""
_TRAINING_TAG = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and types by id, merges in order, special ids by role, and the chat template."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    bos: int | None
    eos: int | None
    pad: int | None
    unk: int | None
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None

    @classmethod
    def of(cls, folder: Path, size: int) -> Vocabulary:
        """Read the tokenizer of a model whose embedding has `size` rows. Raises ExportRefused."""
        if not (folder / "tokenizer.json").is_file():
            raise ExportRefused(f"{folder} has no tokenizer.json")
        spec = read_json(folder / "tokenizer.json")
        settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        pre = pre_tokenizer_name(spec)
        tokens, types = _tokens(spec, size)
        ids = {token: index for index, token in enumerate(tokens)}
        special = {role: ids.get(_text(settings.get(f"{role}_token")) or "") for role in ("bos", "eos", "pad", "unk")}
        encoded = _encode(folder, "a")
        return cls(
            tokens=tokens,
            types=types,
            merges=tuple(each if isinstance(each, str) else " ".join(each) for each in spec["model"]["merges"]),
            pre=pre,
            # llama.cpp would take token 11 for one that is not named
            bos=special["bos"] if special["bos"] is not None else special["pad"],
            eos=special["eos"],
            pad=special["pad"],
            unk=special["unk"],
            adds_bos=special["bos"] is not None and encoded[:1] == [special["bos"]],
            adds_eos=special["eos"] is not None and encoded[-1:] == [special["eos"]],
            chat_template=_chat_template(folder, settings),
        )

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Write the metadata."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for value, add in (
            (self.bos, writer.add_bos_token_id),
            (self.eos, writer.add_eos_token_id),
            (self.pad, writer.add_pad_token_id),
            (self.unk, writer.add_unk_token_id),
        ):
            if value is not None:
                add(value)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def pre_tokenizer_name(spec: dict[str, Any]) -> str:
    """llama.cpp's name for the splitting rule of a tokenizer.json. Raises ExportRefused when it has none."""
    model = spec.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ExportRefused("the base's tokenizer is not a byte-level BPE, the only kind written to GGUF")
    if (spec.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        raise ExportRefused(f"the base's tokenizer normalises text ({spec['normalizer']['type']}); llama.cpp would not")
    first = spec.get("pre_tokenizer") or {}
    parts = first.get("pretokenizers", [first])
    steps = [step for part in parts if (step := _step(part)) is not None]
    if model.get("ignore_merges"):
        steps.append("whole words first")
    if tuple(steps) not in PRE_TOKENIZERS:
        raise ExportRefused(f"llama.cpp has no name for how the base's tokenizer splits text ({', '.join(steps)})")
    return PRE_TOKENIZERS[tuple(steps)]


def for_inference(template: str) -> str:
    """The chat template without the tags that mark what is trained on, which llama.cpp's Jinja does not know.

    They become an `if` that always holds, so that the white space around them stays as it is.
    """
    return _TRAINING_TAG.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", template)


def _step(part: dict[str, Any]) -> str | None:
    """One step of a splitting rule as PRE_TOKENIZERS spells it; None for one that splits nothing."""
    match part:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return None
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digit"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
        case _:
            return json.dumps(part, ensure_ascii=False)


def _tokens(spec: dict[str, Any], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tokens and types, filled up to `size`: embeddings often have more rows than the tokenizer has tokens."""
    import gguf

    found: dict[int, tuple[str, int]] = {
        index: (token, gguf.TokenType.NORMAL) for token, index in spec["model"]["vocab"].items()
    }
    for added in spec.get("added_tokens") or []:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        found[added["id"]] = (added["content"], kind)
    if max(found) >= size:
        raise ExportRefused(f"the base's tokenizer has token {max(found)}, but its embedding only {size} rows")
    rows = [found.get(index, (f"[PAD{index}]", gguf.TokenType.UNUSED)) for index in range(size)]
    return tuple(token for token, _ in rows), tuple(int(kind) for _, kind in rows)


def _encode(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return ids


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    found = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}.get("default")
    return for_inference(found) if found else None


def _text(token: Any) -> str | None:
    """A special token, which older files spell as an object."""
    return token.get("content") if isinstance(token, dict) else token
