"""What a run says about itself: metrics, the bar on a terminal, the picture of the loss."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from rich.console import Console

METRICS = "metrics.jsonl"
PICTURE = "loss.png"
MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}

Values = Mapping[str, float]


class Metrics:
    """`metrics.jsonl`, one object a step; what lies behind the step from which a run goes on is dropped first."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / METRICS

    def resume(self, step: int) -> None:
        """Keep the lines up to `step`."""
        kept = [line for line in self.read() if line["step"] <= step]
        self._file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def read(self) -> list[dict[str, Any]]:
        """All lines; one that a kill cut off is passed over."""
        if not self._file.exists():
            return []
        return list(_parsed(self._file.read_text(encoding="utf-8").splitlines()))

    def add(self, step: int, values: Values) -> None:
        """Append one line."""
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step, **values}) + "\n")


def _parsed(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


class Reporter:
    """Tells metrics to their file, to the trackers and to the bar. Several processes share one; the first speaks."""

    def __init__(self, folder: Path, accelerator: Accelerator, console: Console) -> None:
        self._metrics = Metrics(folder)
        self._accelerator = accelerator
        self._speaks = accelerator.is_main_process
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (self._speaks and console.is_terminal),
        )
        self._task = self._bar.add_task(folder.name, total=None, loss=float("nan"))
        self._console = console

    def begin(self, step: int, steps: int) -> None:
        """The run goes on behind `step`."""
        if self._speaks:
            self._metrics.resume(step)
        self._bar.update(self._task, total=steps, completed=step)
        self._bar.start()

    def step(self, step: int, values: Values, shown_loss: float) -> None:
        """One step is done."""
        if self._speaks:
            self._metrics.add(step, values)
        self._accelerator.log(dict(values), step=step)
        self._bar.update(self._task, completed=step, loss=shown_loss)

    def say(self, text: str) -> None:
        """One line for people, on the terminal or in the job's log."""
        if self._speaks:
            self._console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        """Take the bar down."""
        self._bar.stop()


def installed(trackers: Iterable[str]) -> list[str]:
    """Those of `trackers` whose library is there."""
    return [name for name in trackers if find_spec(MODULES[name]) is not None]


def draw_loss(folder: Path) -> Path:
    """Draw `loss.png` from the metrics of the run in `folder`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = Metrics(folder).read()
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, markersize=3)
    axes.set(xlabel="step", ylabel="nats a counted token", title=folder.name)
    axes.grid(alpha=0.3)
    if lines:
        axes.legend()
    file = folder / PICTURE
    figure.savefig(file, dpi=120)
    return file
