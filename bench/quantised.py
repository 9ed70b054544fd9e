"""What training on a 4-bit base costs where the adapter is served on the 16-bit one.

    python -m bench.quantised [--agents support,security] [--rows 600] [--out bench/results/quantised.json]

For each agent, the trainer makes two adapters from the same generated cases with the same seed: one on the base's own
weights, one on those weights after NF4 with double quantisation and back, which is all that QLoRA's forward pass sees
of them. Both are scored on the agent's held-out cases on the base's own weights, as the engine serves them; the second
on the 4-bit weights too, where it learned. Runs on a processor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.environment import ROOT
from bench.report import Bar, publish, result
from configs.embedded import BASE, BASE_NAME, holdout
from training.dataset.rows import Row
from training.demo.corpus import Case, load_domain, training_cases
from training.demo.evaluate import LABEL_TOKENS, answers, label_accuracy, read_cases

SEED = 20
EPOCHS = 10.0
VALIDATION = 60
MOST_LOST = 0.02
"""share of held-out cases that may be answered worse"""
WAYS = {"16-bit": ("base", "base"), "4-bit": ("nf4", "base"), "4-bit, also served so": ("nf4", "nf4")}
"""which base an adapter learns on, and which it is scored on"""


def write_dataset(agent: str, rows: int, folder: Path) -> Path:
    """Generated cases as the trainer reads them."""
    folder.mkdir(parents=True)
    cases = list(training_cases(load_domain(agent), rows + VALIDATION, SEED))
    for name, part in (("train", cases[VALIDATION:]), ("validation", cases[:VALIDATION])):
        lines = [_row(f"{name}-{number}", case).line() for number, case in enumerate(part)]
        (folder / f"{name}.jsonl").write_bytes(b"".join(lines))
    return folder


def _row(name: str, case: Case) -> Row:
    message = {"role": "user", "content": case.text}
    return Row(name, [message], case.label, None, 1.0, "classification")


def write_rounded(folder: Path) -> Path:
    """The base with every linear layer's weights in NF4 and back; the head and the embedding stay, as in QLoRA."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            packed, state = quantize_4bit(module.weight.data, compress_statistics=True, quant_type="nf4")
            module.weight.data = dequantize_4bit(packed, state)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


def train(base: Path, dataset: Path, folder: Path) -> Path:
    """The adapter that the trainer makes. Raises CalledProcessError."""
    folder.mkdir(parents=True)
    config = {"base": str(base), "base_name": BASE_NAME, "dataset": str(dataset), "device": "cpu", "seed": SEED}
    config |= {"output": str(folder), "epochs": EPOCHS, "report_to": [], "method": "lora"}
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "training.trainer", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    return folder / "adapter"


def score(base: Path, adapter: Path, cases: Sequence[Case]) -> dict[str, float]:
    """Share of right greedy answers, and nats a token of the right ones."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    given = answers(model, tokenizer, [case.text for case in cases], LABEL_TOKENS)
    nll = [_nll(model, tokenizer, case) for case in cases]
    return {"accuracy": round(label_accuracy(given, cases), 4), "nll": round(math.fsum(nll) / len(nll), 5)}


def _nll(model: Any, tokenizer: Any, case: Case) -> float:
    """Mean negative log likelihood of the label's tokens, in nats."""
    import torch

    message = [{"role": "user", "content": case.text}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=True)
    told = tokenizer(case.label, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*prompt["input_ids"], *told]])
    with torch.inference_mode():
        chances = model(input_ids=ids).logits[0, -len(told) - 1 : -1].log_softmax(-1)
    return -float(chances.gather(1, torch.tensor(told)[:, None]).mean())


def measure(agents: Sequence[str], rows: int) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by agent and way."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="loradock-quantised-") as temporary:
        place = Path(temporary)
        bases = {"base": BASE, "nf4": write_rounded(place / "nf4")}
        for agent in agents:
            dataset, cases = write_dataset(agent, rows, place / agent), read_cases(holdout(agent))
            made = {name: train(base, dataset, place / f"{agent}-{name}") for name, base in bases.items()}
            scores[agent] = {way: score(bases[on], made[of], cases) for way, (of, on) in WAYS.items()}
    return scores


def bars(scores: dict[str, dict[str, dict[str, float]]]) -> list[Bar]:
    """What 4-bit training may lose."""
    return [
        Bar(
            f"{agent}: accuracy lost by training in 4 bits",
            round(ways["16-bit"]["accuracy"] - ways["4-bit"]["accuracy"], 4),
            MOST_LOST,
            "",
            "at most",
        )
        for agent, ways in scores.items()
    ]


def table(scores: dict[str, dict[str, dict[str, float]]]) -> Table:
    """A line an agent and way."""
    drawn = Table(title="held-out cases", title_justify="left")
    for heading in ("agent", "trained in", "accuracy", "nats a token"):
        drawn.add_column(heading, justify="left" if heading in {"agent", "trained in"} else "right")
    for agent, ways in scores.items():
        for way, told in ways.items():
            drawn.add_row(agent, way, f"{100 * told['accuracy']:.1f} %", f"{told['nll']:.4f}")
    return drawn


def main() -> None:
    """Train, score, publish."""
    parser = argparse.ArgumentParser(prog="bench.quantised", description=__doc__.splitlines()[0])
    parser.add_argument("--agents", default="support,security", help="comma-separated demo agents")
    parser.add_argument("--rows", type=int, default=600, help="training cases of each")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    scores = measure(arguments.agents.split(","), arguments.rows)
    settings = {"rows": arguments.rows, "epochs": EPOCHS, "seed": SEED, "base": BASE_NAME}
    publish(result("quantised", settings, scores, bars(scores)), [table(scores)], arguments.out)


if __name__ == "__main__":
    main()
