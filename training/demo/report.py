"""What was measured, kept beside the model: loss curves, `measures.json`, and the model card made of them."""

from __future__ import annotations

import csv
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from configs.embedded import BASE_NAME
from training.demo.loop import Run
from training.demo.recipe import AGENTS, Recipe

MEASURES = "measures.json"
CURVES = "loss"
PICTURE = "loss.png"
CARD = "MODEL_CARD.md"
CARD_TEMPLATE = Path(__file__).parent / "texts" / "model_card.md"
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def read_measures(out: Path) -> dict[str, Any]:
    """All measures so far, by section; empty before the first."""
    file = out / MEASURES
    measures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return measures


def record(out: Path, section: str, values: dict[str, Any]) -> None:
    """Add `values` to a section of the measures."""
    measures = read_measures(out)
    measures.setdefault(section, {}).update(values)
    out.mkdir(parents=True, exist_ok=True)
    (out / MEASURES).write_text(json.dumps(measures, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def record_run(out: Path, name: str, run: Run, recipe: Recipe) -> None:
    """Keep the loss curve of a training as CSV, and its summary."""
    file = out / CURVES / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(("step", "loss", "rate"))
        writer.writerows((point.step, f"{point.loss:.4f}", f"{point.rate:.3g}") for point in run.curve)
    summary = {
        "steps": len(run.curve),
        "tokens": run.tokens,
        "seconds": round(run.seconds, 1),
        "first_loss": round(run.curve[0].loss, 4),
        "last_loss": round(run.last_loss(), 4),
    }
    record(out, "trainings", {name: summary})
    record(out, "made_with", {"seed": recipe.seed, "threads": recipe.threads, **_machine()})


def _machine() -> dict[str, str]:
    import torch

    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def _machine_in_words(made: dict[str, Any]) -> str:
    processor = f"{made['processor']}, {made['cores']} cores"
    return processor if made["device"] == "cpu" else f"one {made['device']} ({processor})"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def record_sizes(out: Path) -> None:
    """Count parameters and bytes of what lies in `out`."""
    from safetensors import safe_open

    parameters = {}
    for name, folder in _folders(out).items():
        weights = next(folder.glob("*.safetensors"))
        with safe_open(weights, framework="numpy") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118  # not a mapping
        parameters[name] = sum(_product(shape) for shape in shapes)
    sizes = {name: sum(file.stat().st_size for file in folder.iterdir()) for name, folder in _folders(out).items()}
    record(out, "parameters", parameters)
    record(out, "bytes", sizes)


def _folders(out: Path) -> dict[str, Path]:
    adapters = sorted(path for path in (out / "adapters").glob("*") if path.is_dir())
    return {BASE_NAME: out / "base"} | {path.name: path for path in adapters}


def _product(shape: list[int]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


def draw_curves(out: Path) -> None:
    """Draw all loss curves into one small picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=90)
    for file in sorted((out / CURVES).glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as source:
            rows = list(csv.DictReader(source))
        losses = [float(row["loss"]) for row in rows]
        axes.plot([int(row["step"]) for row in rows], losses, label=file.stem, linewidth=0.9)
    axes.set(xlabel="step", ylabel="loss (nats a token)", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(out / PICTURE, metadata={"Software": None})
    pyplot.close(figure)


def write_card(out: Path) -> None:
    """Write the model card from the measures. Raises KeyError if a step has not been run."""
    measures = read_measures(out)
    made = measures["made_with"]
    text = Template(CARD_TEMPLATE.read_text(encoding="utf-8")).substitute(
        parameters=f"{measures['parameters'][BASE_NAME]:,}",
        adapter_parameters=f"{measures['parameters'][f'{AGENTS[0]}-agent']:,}",
        total_mb=f"{sum(measures['bytes'].values()) / 1e6:.1f}",
        accuracy_rows="\n".join(_accuracy_row(agent, measures) for agent in AGENTS),
        general=f"{100 * measures['general']['base']:.1f}",
        training_rows="\n".join(_training_row(name, run) for name, run in measures["trainings"].items()),
        machine=_machine_in_words(made),
        versions=", ".join(f"{name} {made[name]}" for name in ("python", *LIBRARIES)),
        seed=made["seed"],
    )
    (out / CARD).write_text(text, encoding="utf-8")


def _accuracy_row(agent: str, measures: dict[str, Any]) -> str:
    result = measures["holdout"][agent]
    adapter, base = 100 * result["adapter"], 100 * result["base"]
    return f"| {agent}-agent | {result['labels']} | {result['cases']} | {adapter:.1f} % | {base:.1f} % |"


def _training_row(name: str, run: dict[str, Any]) -> str:
    losses = f"{run['first_loss']:.2f} | {run['last_loss']:.3f}"
    return f"| {name} | {run['steps']} | {run['tokens']:,} | {losses} | {run['seconds']:.0f} |"
