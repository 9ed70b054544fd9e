"""A larger base than the embedded one, trained from nothing on prose and on what the embedded one has read.

    python -m bench.larger_base --text FILE --out FOLDER [--minutes 8 | --tokens 400000000] [--share-generated 0.15]
        [--hidden 512 --layers 12 ...] [--compile] [--json bench/results/larger_base.json]

FILE holds an object with `text` a line, plain or as .xz, in any order; it is not part of this project. FOLDER becomes a
base in the form of the embedded one: the same shape but for its sizes, its own pieces, the same chat template. What
`training.demo.reading` writes is mixed in, so that it answers the general set, which the gate holds adapters to.
`python -m bench.learning --base FOLDER` trains adapters on it.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import multiprocessing
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from rich.table import Table

from bench.environment import usable_cores
from bench.report import Bar, publish, result
from configs.embedded import GENERAL_SET
from training.demo import evaluate
from training.demo.loop import CLIP, TrainingDiverged, adamw, rate_at
from training.demo.pretrain import load_base, moved, new_model, save
from training.demo.reading import Document, documents
from training.demo.recipe import Recipe
from training.demo.tokenizer import train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

LEAST_GENERAL = 0.9
SAMPLE_CHARACTERS = 40_000_000
"""of the text, from which the pieces are learned; generated documents are a tenth as many characters"""
UNREAD = 0.005
"""share of the text that is kept to measure the loss on"""
PART = 2000
"""documents tokenised at once, on all cores"""
REPORT_S = 20.0
FINE = 100_000
"""steps into which the schedule is cut, whatever its end is counted in"""

Blocks = npt.NDArray[np.int32]
"""tokens, of shape (blocks, length)"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train and on what; it ends after `tokens`, or else after `minutes`.

    `length` is in tokens, `batch` and `micro` are blocks of a step and of one pass on the device.
    """

    minutes: float = 8.0
    tokens: int | None = None
    share_generated: float = 0.15
    generated: int = 300_000
    length: int = 1024
    batch: int = 128
    micro: int = 32
    rate: float = 1e-3
    compile: bool = False

    def progress(self, seconds: float, tokens: int) -> float:
        """0 at the start, 1 or more at the end."""
        return tokens / self.tokens if self.tokens else seconds / (60 * self.minutes)


def read_text(file: Path) -> list[str]:
    """The texts of `file`, in its order."""
    with lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else file.open(encoding="utf-8") as lines:
        return [str(json.loads(line)["text"]) for line in lines]


def generate(count: int, seed: int) -> list[Document]:
    """About `count` documents of `training.demo.reading`, written on all cores."""
    cores = min(usable_cores(), max(1, count // 1000))
    each = math.ceil(count / cores)
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = pool.map(_part, [each] * cores, range(1000 * seed, 1000 * seed + cores))
        return list(chain.from_iterable(parts))


def _part(count: int, seed: int) -> list[Document]:
    return list(documents(count, seed))


def as_others_read(tokenizer: PreTrainedTokenizerBase, model: Qwen2ForCausalLM, folder: Path) -> Any:
    """The tokenizer as trainer and engine load it: transformers may cut a Qwen2's text in its own way before pieces."""
    from transformers import AutoTokenizer

    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def sample(texts: Sequence[str], characters: int, seed: int) -> Iterator[str]:
    """Texts at random until there are `characters` of them, or all."""
    for text in random.Random(seed).sample(texts, len(texts)):
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Document]) -> Iterator[Blocks]:
    """The tokens of each document, and the one that ends documents. Chats are written as the template says."""
    fast: Any = tokenizer.backend_tokenizer
    for start in range(0, len(texts), PART):
        plain = [_plain(tokenizer, document) for document in texts[start : start + PART]]
        for encoding in fast.encode_batch_fast(plain, add_special_tokens=False):
            yield np.array([*encoding.ids, tokenizer.pad_token_id], dtype=np.int32)


def _plain(tokenizer: PreTrainedTokenizerBase, document: Document) -> str:
    if isinstance(document, str):
        return document
    return cast("str", tokenizer.apply_chat_template(document, tokenize=False))


def running(rows: Iterable[Blocks], length: int) -> Blocks:
    """All tokens on end, cut into blocks; what is left at the end is dropped."""
    tokens = np.concatenate(list(rows))
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length)


def from_starts(rows: Iterable[Blocks], length: int) -> Blocks:
    """Blocks that each start with a document, as requests do; the last document of a block is cut off."""
    blocks, block, filled = list[Blocks](), list[Blocks](), 0
    for row in rows:
        block.append(row)
        filled += len(row)
        if filled >= length:
            blocks.append(np.concatenate(block)[:length])
            block, filled = [], 0
    return np.stack(blocks) if blocks else np.empty((0, length), np.int32)


def draws(blocks: torch.Tensor, count: int, seed: int) -> Iterator[torch.Tensor]:
    """`count` blocks at a time without end, each block once before any comes again."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < count:
            order = torch.cat([order, torch.randperm(len(blocks), generator=generator)])
        yield blocks[order[:count].to(blocks.device)]
        order = order[count:]


def losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean loss of a batch in nats a token, in bfloat16 where there is a GPU."""
    import torch

    ids = ids.long()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
        loss: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def train(
    model: Qwen2ForCausalLM, text: torch.Tensor, generated: torch.Tensor, plan: Plan, seed: int
) -> dict[str, Any]:
    """Train in place on both kinds of blocks, and tell what it took. Raises TrainingDiverged."""
    import torch

    trained = list(model.parameters())
    optimizer = adamw(trained, plan.rate, fused=text.is_cuda)
    run: Any = torch.compile(model) if plan.compile else model
    share = round(plan.batch * plan.share_generated)
    feed = zip(draws(text, plan.batch - share, seed), draws(generated, share, seed + 1), strict=True)
    model.train()
    steps = tokens = 0
    begun = shown = time.monotonic()
    since: list[torch.Tensor] = []
    while (progress := plan.progress(time.monotonic() - begun, tokens)) < 1:
        rate = rate_at(int(progress * FINE), FINE, plan.rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = torch.cat(next(feed))
        ids = ids[torch.randperm(len(ids), device=ids.device)]
        for part in ids.split(plan.micro):
            loss = losses(run, part) * (len(part) / len(ids))
            loss.backward()
            since.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        tokens += ids.numel()
        now = time.monotonic()
        if steps == 1:  # what is compiled is compiled now
            begun = shown = now
        if now - shown >= REPORT_S:
            mean = float(torch.stack(since).sum()) / (len(since) / len(ids.split(plan.micro)))
            _tell(f"{now - begun:5.0f} s, step {steps}, {tokens / 1e6:.1f} M tokens, loss {mean:.3f}, rate {rate:.1e}")
            if not math.isfinite(mean):
                raise TrainingDiverged(f"loss is {mean} at step {steps}")
            shown, since = now, []
    seconds = time.monotonic() - begun
    return {"steps": steps, "tokens": tokens, "seconds": round(seconds, 1), "tokens_per_s": round(tokens / seconds)}


def unread_loss(model: Qwen2ForCausalLM, blocks: torch.Tensor, micro: int) -> float:
    """Mean loss on blocks in nats a token."""
    import torch

    model.eval()
    with torch.inference_mode():
        return sum(float(losses(model, part)) * len(part) for part in blocks.split(micro)) / len(blocks)


def general(folder: Path, device: str) -> float:
    """Share of the general set that the base in `folder` answers, in [0, 1]."""
    model, tokenizer = load_base(folder, device)
    questions = evaluate.read_general_set(GENERAL_SET)
    given = evaluate.answers(model, tokenizer, [item.question for item in questions], evaluate.SENTENCE_TOKENS)
    return evaluate.general_accuracy(given, questions)


def make(text: Path, folder: Path, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Write a base to `folder`, and tell what it is and what it took.

    Raises TrainingDiverged, and ValueError where there is too little to read.
    """
    import torch

    begun = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    own, texts = generate(plan.generated, recipe.seed), read_text(text)
    _tell(f"{time.monotonic() - begun:.0f} s: {len(texts)} texts, {len(own)} generated documents")
    few = own[: max(1000, len(own) // 15)]
    tokenizer = train_tokenizer(
        chain(few, sample(texts, SAMPLE_CHARACTERS, recipe.seed)), recipe.vocab_size, recipe.context
    )
    _tell(f"{time.monotonic() - begun:.0f} s: {len(tokenizer)} pieces")
    model = moved(new_model(replace(recipe, vocab_size=len(tokenizer)), tokenizer), device)
    cut = as_others_read(tokenizer, model, folder)
    read, generated = running(encoded(cut, texts), plan.length), from_starts(encoded(cut, own), plan.length)
    _tell(f"{time.monotonic() - begun:.0f} s: {read.size / 1e6:.1f} M tokens, {generated.size / 1e6:.1f} M generated")
    kept = max(1, round(len(read) * UNREAD))
    if len(read) <= kept or not len(generated):
        raise ValueError(
            f"too little to read: blocks of {plan.length} tokens want more text, or more generated documents"
        )
    parameters = sum(each.numel() for each in model.parameters())
    blocks = [torch.from_numpy(each).to(device) for each in (read[kept:], generated, read[:kept])]
    _tell(f"{time.monotonic() - begun:.0f} s: training {parameters / 1e6:.1f} M parameters on {device}")
    took = train(model, blocks[0], blocks[1], plan, recipe.seed)
    unread = unread_loss(model, blocks[2], plan.micro)
    if not math.isfinite(unread):
        raise TrainingDiverged(f"loss is {unread} at the end")
    save(model, tokenizer, folder)
    return {
        "parameters": parameters,
        "text_tokens": int(read.size),
        "generated_tokens": int(generated.size),
        **took,
        "unread_nats": round(unread, 4),
        "general": round(general(folder, device), 4),
    }


def _tell(line: str) -> None:
    print(line, flush=True)


def _table(made: dict[str, Any]) -> Table:
    drawn = Table("what", "value", title="the base", title_justify="left")
    for name, value in made.items():
        drawn.add_row(name, f"{value:,}")
    return drawn


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="bench.larger_base", description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="JSON lines with `text`, plain or .xz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the base")
    parser.add_argument("--json", type=Path, help="file for what is printed at the end")
    sizes = {"vocabulary": 16384, "hidden": 512, "layers": 12, "heads": 8, "kv-heads": 4, "intermediate": 1536}
    for name, value in {**sizes, "context": Recipe.context, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in asdict(Plan()).items():
        option = f"--{name.replace('_', '-')}"
        if name == "compile":
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=int if name == "tokens" else type(value), default=value)
    given = parser.parse_args()
    plan = Plan(**{name: getattr(given, name) for name in asdict(Plan())})
    recipe = Recipe(
        seed=given.seed,
        vocab_size=given.vocabulary,
        hidden_size=given.hidden,
        layers=given.layers,
        heads=given.heads,
        kv_heads=given.kv_heads,
        intermediate_size=given.intermediate,
        context=given.context,
    )
    made = make(given.text, given.out, recipe, plan)
    chosen = {name: value for name, value in vars(given).items() if name not in {"text", "out", "json"}}
    bars = [Bar("general set", made["general"], LEAST_GENERAL, "", "at least")]
    publish(result("larger_base", chosen, made, bars), [_table(made)], given.json)


if __name__ == "__main__":
    main()
