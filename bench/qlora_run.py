"""One run of the QLoRA benchmark in its own process: `python -m bench.qlora_run '{"target": ..., ...}'` prints JSON.

All targets train the same rank on the same base with rows of random tokens, each token but the first with a label.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.qlora_base import LENGTH, MODULES, load, lora

WARM_UP = 4
"""steps before the clock starts: compilation, the allocator, the clocks of the card"""
RATE = 2e-4
CLIP = 1.0


class Clock:
    """Times steps after the warm-up; ours and the trainers' callback call `tick` after each."""

    def __init__(self) -> None:
        self.steps = 0
        self.times: list[float] = []

    def tick(self) -> None:
        """A step is over."""
        import torch

        self.steps += 1
        if self.steps >= WARM_UP:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    def rate(self, tokens: int) -> float:
        """Tokens a second over all timed steps."""
        return tokens * (len(self.times) - 1) / (self.times[-1] - self.times[0])


def rows(count: int, vocabulary: int, length: int) -> Any:
    """Random tokens [count, length]."""
    import torch

    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(0))


def ours(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """The fast path, or with `plain` what PEFT does, in a plain loop: fp32 adapters, AdamW, clipping, bf16 autocast."""
    import torch
    from peft import get_peft_model

    from training.trainer.fast import accelerate_model

    model = load(Path(job["base"]))
    model = get_peft_model(model, lora(job.get("dropout", 0.0))).train()
    place = model.device
    if job.get("plain"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        done = accelerate_model(
            model, kept_layers=job.get("kept", 0), host_embedding=job.get("host", False), devices=(place.type,)
        )
        assert done.active, done.reason
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.dtype == torch.float32 for parameter in learned)
    optimiser = torch.optim.AdamW(learned, lr=RATE, fused=place.type == "cuda")
    total = WARM_UP + job["steps"]
    data = rows(total * job["batch"], model.config.vocab_size, job["length"]).view(total, job["batch"], -1)
    losses = []
    with profiled(job) as profile:
        for ids in data.to(place):
            with torch.autocast(place.type, torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, CLIP)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.detach())
            clock.tick()
            if profile is not None:
                profile.step()
    return {"losses": [round(x.item(), 4) for x in losses]}


@contextlib.contextmanager
def profiled(job: dict[str, Any]) -> Any:
    """Profile two steps: the costliest kernels, ms and calls a step, to the file that `job["profile"]` names."""
    if not job.get("profile"):
        yield None
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    steps = schedule(wait=WARM_UP, warmup=1, active=2)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], schedule=steps) as made:
        yield made
    costly = sorted(made.key_averages(), key=lambda event: -event.self_device_time_total)[:40]
    lines = [
        f"{event.self_device_time_total / 2000:9.3f} ms {event.count // 2:5d} {event.key[:100]}" for event in costly
    ]
    Path(job["profile"]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def trl(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """TRL's SFTTrainer with its defaults: bf16, checkpointing, AdamW."""
    model = load(Path(job["base"]))
    return _sft(model, job, clock, peft_config=lora())


def unsloth(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Unsloth's model and checkpointing under the same SFTTrainer."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        job["base"], max_seq_length=job["length"], load_in_4bit=True, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, target_modules=MODULES, use_gradient_checkpointing="unsloth"
    )
    return _sft(model, job, clock)


def _sft(model: Any, job: dict[str, Any], clock: Clock, **options: Any) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Ticking(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    total = WARM_UP + job["steps"]
    data = rows(total * job["batch"], model.config.vocab_size, job["length"]).tolist()
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=job["batch"],
            max_steps=total,
            learning_rate=RATE,
            max_grad_norm=CLIP,
            max_length=job["length"],
            use_liger_kernel=job.get("liger", False),
            logging_steps=total,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model,
            args=arguments,
            train_dataset=Dataset.from_dict({"input_ids": data}),
            processing_class=tokenizer,
            callbacks=[Ticking()],
            **options,
        )
        outcome = trainer.train()
    return {"losses": [round(outcome.training_loss, 4)]}


TARGETS = {"ours": ours, "trl": trl, "unsloth": unsloth}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """What one job measured: tokens a second, peak memory of PyTorch's allocator with the weights, losses."""
    import torch

    job = {"length": LENGTH, **job}
    clock = Clock()
    with contextlib.redirect_stdout(sys.stderr):
        told = TARGETS[job["target"]](job, clock)
    peak = {}
    if torch.cuda.is_available():
        peak = {
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
        }
    return {**job, "tokens_per_s": round(clock.rate(job["batch"] * job["length"])), **peak, **told}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
