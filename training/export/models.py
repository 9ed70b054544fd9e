"""Models as the check runs them: through transformers, or through llama.cpp where its Python binding is installed."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.export.cases import CaseSet, ExportCase
from training.export.check import Measured, first_line
from training.export.errors import ExportError, ExportRefused

if TYPE_CHECKING:
    import torch

BATCH = 16
SLACK = 8
"""tokens that an answer may be longer than the longest right one"""
LARGE = 2_000_000_000
"""parameters from which on a CPU computes in bfloat16, to save memory"""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation up to the answer, and of the answer with its end of turn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class TransformersModel:
    """A model that `load` brings into memory; `tokenizer` is the base's folder."""

    way: str
    tokenizer: Path
    load: Callable[[], Any]

    def measure(self, cases: CaseSet, *, answer: bool) -> Measured:
        """Score the cases in batches."""
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(self.tokenizer)
        encoded = [_encode(tokenizer, case) for case in cases.cases]
        model = self.load().eval()
        answers = None
        if answer:
            longest = max(len(each.answer) for each in encoded) + SLACK
            answers = tuple(_answers(model, tokenizer, [each.prompt for each in encoded], longest))
        return Measured(_nll(model, encoded), answers, tuple(each.prompt for each in encoded))


@dataclass(frozen=True)
class LlamaCppModel:
    """A GGUF file run by llama.cpp; `tokenizer` is the base's folder, for its chat template alone."""

    file: Path
    tokenizer: Path
    threads: int | None = None

    @property
    def way(self) -> str:
        """The binding and its version."""
        return f"llama.cpp (llama-cpp-python {importlib.import_module('llama_cpp').__version__})"

    def measure(self, cases: CaseSet, *, answer: bool) -> Measured:
        """Score the cases one by one."""
        from transformers import AutoTokenizer

        template: Any = AutoTokenizer.from_pretrained(self.tokenizer)
        longest = max(
            len(_encode(template, case).prompt) + 2 * len(_encode(template, case).answer) for case in cases.cases
        )
        llama: Any = importlib.import_module("llama_cpp").Llama(
            str(self.file), n_ctx=longest + 2 * SLACK, n_threads=self.threads, logits_all=True, verbose=False
        )
        try:
            return _measure_llama(llama, template, cases, answer=answer)
        finally:
            llama.close()


def has_llama_cpp() -> bool:
    """Whether llama.cpp's Python binding is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def adapter_model(base: Path, adapter: Path, parameters: int) -> TransformersModel:
    """The adapter on its unmerged base, in peft."""

    def load() -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(_load(base, parameters), str(adapter))

    return TransformersModel("peft on the unmerged base", base, load)


def merged_model(folder: Path, parameters: int) -> TransformersModel:
    """A merged folder."""
    return TransformersModel("transformers", folder, lambda: _load(folder, parameters))


def dequantised_model(file: Path, base: Path, parameters: int) -> TransformersModel:
    """A GGUF file whose tensors the gguf package turns back into floats, in transformers' own model.

    Shape and tokenizer are the base's: transformers reads neither rotary scaling nor splitting rules from GGUF.
    """

    def load() -> Any:
        import transformers

        arguments: dict[str, Any] = {"config": transformers.AutoConfig.from_pretrained(base)}
        # releases without it have no other way to load than this one
        if hasattr(transformers, "GgufConfig"):
            arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
        return _load(file.parent, parameters, gguf_file=file.name, **arguments)

    return TransformersModel("transformers on dequantised tensors (llama-cpp-python is not installed)", base, load)


def _load(folder: Path, parameters: int, **arguments: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda or parameters >= LARGE else torch.float32
    with _quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, **arguments)
    return model.to("cuda") if cuda else model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars of transformers, which would mix with the command's own."""
    with redirect_stderr(io.StringIO()):
        yield


def _encode(tokenizer: Any, case: ExportCase) -> Encoded:
    prompt = tokenizer(_prompt(tokenizer, case), add_special_tokens=False)["input_ids"]
    answer = tokenizer(case.answer, add_special_tokens=False)["input_ids"]
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return Encoded(tuple(prompt), (*answer, *end))


def _prompt(tokenizer: Any, case: ExportCase) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ExportRefused("the base has no chat template, so the export cannot be checked; --no-check leaves it out")
    messages = [dict(each) for each in case.messages]
    try:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise ExportError(f"the base's chat template does not take a case's messages: {error}") from None
    return text


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of similar lengths."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def _nll(model: Any, encoded: Sequence[Encoded]) -> float:
    """Mean negative log-likelihood per token of the answers."""
    import torch

    total, tokens = 0.0, 0
    for chosen in _batches([len(each.prompt) + len(each.answer) for each in encoded]):
        rows = [encoded[index] for index in chosen]
        ids, mask = _padded([each.prompt + each.answer for each in rows], left=False, device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        for row, each in enumerate(rows):
            begin, wanted = len(each.prompt) - 1, torch.tensor(each.answer, device=model.device)
            found = logits[row, begin : begin + len(each.answer)]
            total -= float(found.gather(1, wanted[:, None]).sum())
            tokens += len(each.answer)
    return total / tokens


def _answers(model: Any, tokenizer: Any, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[str]:
    """First lines of the greedy answers."""
    import torch

    out = [""] * len(prompts)
    for chosen in _batches([len(prompt) for prompt in prompts]):
        ids, mask = _padded([prompts[index] for index in chosen], left=True, device=model.device)
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False,
                temperature=None, top_p=None, top_k=None, pad_token_id=0,
            )  # fmt: skip
        texts = tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            out[index] = first_line(text)
    return out


def _padded(rows: Sequence[tuple[int, ...]], *, left: bool, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both (rows, longest)."""
    import torch

    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)


def _measure_llama(llama: Any, template: Any, cases: CaseSet, *, answer: bool) -> Measured:
    total, tokens, answers, prompts = 0.0, 0, [], []
    for case in cases.cases:
        prompt = llama.tokenize(_prompt(template, case).encode(), add_bos=False, special=True)
        wanted = [*llama.tokenize(case.answer.encode(), add_bos=False, special=False), llama.token_eos()]
        total += _llama_nll(llama, prompt, wanted)
        tokens += len(wanted)
        prompts.append(tuple(prompt))
        if answer:
            answers.append(_llama_answer(llama, prompt, len(wanted) + SLACK))
    return Measured(total / tokens, tuple(answers) if answer else None, tuple(prompts))


def _llama_nll(llama: Any, prompt: list[int], wanted: list[int]) -> float:
    """Sum over the tokens of the answer."""
    import numpy as np

    llama.reset()
    llama.eval(prompt + wanted)
    rows = np.asarray(llama.scores[len(prompt) - 1 : len(prompt) - 1 + len(wanted)], dtype=np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    rows = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return -float(rows[np.arange(len(wanted)), wanted].sum())


def _llama_answer(llama: Any, prompt: list[int], max_tokens: int) -> str:
    llama.reset()
    llama.eval(prompt)
    out: list[int] = []
    while len(out) < max_tokens:
        token = int(llama.scores[llama.n_tokens - 1].argmax())
        if token == llama.token_eos():
            break
        out.append(token)
        llama.eval([token])
    return first_line(llama.detokenize(out).decode(errors="replace"))
