"""The model card of an export: what it is, where it came from, how good it is, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapters_registry import AdapterVersion
from configs import embedded
from training.export.check import LossReport

CARD = "README.md"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_LICENSE = re.compile(r"^license:\s*['\"]?([\w.-]+)['\"]?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """What a card tells. `base` is the base as the adapter records it; `file` the model's file for llama.cpp.

    `figures` are tables by title: names and values, as training and gate report them.
    """

    version: AdapterVersion
    base: str
    format: str
    license: str | None = None
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    loss: LossReport | None = None
    file: str | None = None

    def text(self) -> str:
        """The card in Markdown, with the front matter that the Hugging Face Hub reads."""
        return "\n".join([*self._front_matter(), *self._about(), *self._figures(), *self._check(), *self._loading()])

    def _front_matter(self) -> Iterator[str]:
        yield "---"
        yield f"base_model: {json.dumps(self.base)}"
        yield f"library_name: {self._library()}"
        if self.license:
            yield f"license: {json.dumps(self.license)}"
        yield "pipeline_tag: text-generation"
        tags = {"peft": "lora", "merged": "merged"}.get(self.format, "gguf")
        yield f"tags: [loradock, {tags}]"
        yield "---"
        yield ""

    def _about(self) -> Iterator[str]:
        version = self.version
        kinds = {
            "peft": f"A LoRA adapter for `{self.base}`.",
            "merged": f"`{self.base}` with a LoRA adapter merged into its weights.",
        }
        yield f"# {version.name}"
        yield ""
        yield kinds.get(self.format, f"`{self.base}` with a LoRA adapter merged into its weights, as GGUF.")
        yield ""
        yield from _table(
            {
                "agent": version.agent,
                "base": self.base,
                "rank": version.rank,
                "layers adapted": ", ".join(version.target_modules) or "not recorded",
                "version": version.version,
                "digest": f"sha256:{version.digest}",
                "came from": _origin(version.source),
                "registered": f"{version.created_at:%Y-%m-%d %H:%M} UTC",
                "format": self.format,
                "licence": self.license or "not stated; the base model's licence applies to what is made from it",
            }
        )

    def _figures(self) -> Iterator[str]:
        for title, values in self.figures.items():
            yield f"## {title}"
            yield ""
            yield from _table(values)

    def _check(self) -> Iterator[str]:
        if self.format == "peft":
            return
        yield "## Loss by the export"
        yield ""
        if self.loss is None:
            yield "Not checked."
            yield ""
            return
        yield f"Beside the adapter on its unmerged base, on {self.loss.cases} cases ({self.loss.source})."
        yield ""
        yield from _table(
            {
                "right answers, adapter": _percent(self.loss.reference_accuracy),
                "right answers, export": _percent(self.loss.exported_accuracy),
                "same answers": _percent(self.loss.same_answers),
                "log-likelihood per token, adapter": f"{-self.loss.reference_nll:.4f}",
                "log-likelihood per token, export": f"{-self.loss.exported_nll:.4f}",
                "lost": f"{self.loss.lost:.2%} (at most {self.loss.limit:.0%} allowed)",
                "export run by": self.loss.way,
            }
        )

    def _loading(self) -> Iterator[str]:
        yield "## How to load it"
        yield ""
        yield from _code(self._snippet())

    def _library(self) -> str:
        return {"peft": "peft", "merged": "transformers"}.get(self.format, "gguf")

    def _snippet(self) -> tuple[str, ...]:
        if self.format == "peft":
            return (
                "from peft import AutoPeftModelForCausalLM",
                "",
                f"# loads the base, {self.base}, with it",
                'model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")',
                "",
                "# or serve it:",
                f"# loradock adapters add {self.version.name} FOLDER --agent {self.version.agent}",
            )
        if self.format == "merged":
            return (
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")',
                'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
                "",
                "# or serve it as a base model, in loradock.toml:",
                '# engines = [{ name = "merged", model = "FOLDER" }]',
            )
        return (
            "from llama_cpp import Llama",
            "",
            f'llama = Llama("FOLDER/{self.file}", n_ctx=0)',
            'llama.create_chat_completion([{"role": "user", "content": "..."}], temperature=0)',
        )


def license_of(base: Path) -> str | None:
    """The licence that the card beside the base's files states, as the Hub spells it."""
    if base == embedded.BASE:
        return "apache-2.0"
    try:
        front = _FRONT_MATTER.match((base / CARD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    found = _LICENSE.search(front[1]) if front else None
    return found[1] if found else None


def _origin(source: str) -> str:
    """A source as others may read it: of a path on this machine only the last part."""
    path = Path(source)
    return f"a local folder or archive, {path.name}" if path.is_absolute() else source


def _table(values: Mapping[str, Any]) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for name, value in values.items():
        if value is not None:
            yield f"| {_cell(name)} | {_cell(value)} |"
    yield ""


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _code(lines: tuple[str, ...]) -> Iterator[str]:
    yield "```python"
    yield from lines
    yield "```"
    yield ""


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
