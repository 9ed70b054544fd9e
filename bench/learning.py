"""What the whole loop is worth on real data: import, train, gate, promote, then the test split through the endpoint.

    python -m bench.learning --data FOLDER [--sets support,legal,security] [--rank 32] [--holdout-share 0.1]
        [--base FOLDER] [--learning-rate 1e-3] [--batch-tokens 2048] [--out bench/results/learning.json]

FOLDER holds the public sets that `SETS` names (gzip CSV with text, label and for some split); they are not part of this
project. Only training rows are imported; the test split is read by `loradock adapters bench` alone. Beside the adapter
stand its base, the majority class, and TF-IDF of words and word pairs with logistic regression (C=10). The base is the
embedded one, or `--base`, such as `bench.larger_base` makes.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table

from bench.environment import ROOT
from bench.report import Bar, publish, result
from bench.server import served
from configs.embedded import BASE_NAME
from serving.engine.hardware import nvidia_gpus

TRAIN_TIMEOUT_S = 4 * 3600.0
GPU_SHARE = 0.3
"""of a GPU's memory for the engine on a base of one's own; training takes place beside it"""


@dataclass(frozen=True, slots=True)
class DataSet:
    """One set: its files, and the agent that learns it."""

    agent: str
    train: str
    test: str


SETS = {
    "support": DataSet("banking-agent", "support_banking77_train.csv.gz", "support_banking77_test.csv.gz"),
    "legal": DataSet("clauses-agent", "legal_cuad.csv.gz", "legal_cuad.csv.gz"),
    "security": DataSet("cwe-agent", "security_vulnrichment.csv.gz", "security_vulnrichment.csv.gz"),
}
LEAST_RIGHT = {"support": 0.8}

Rows = list[tuple[str, str]]


def read(path: Path, split: str) -> Rows:
    """Texts and labels of one split; every row where the file has no column `split`."""
    with gzip.open(path, "rt", newline="", encoding="utf-8") as stream:
        return [(row["text"], row["label"]) for row in csv.DictReader(stream) if row.get("split", split) == split]


def write(path: Path, rows: Rows) -> Path:
    """A gzip CSV with the columns that imports and benches read."""
    with gzip.open(path, "wt", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    return path


def baselines(train: Rows, test: Rows) -> dict[str, dict[str, float]]:
    """Accuracy and macro-F1 of the majority class and of TF-IDF with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    truth = [label for _, label in test]
    majority = Counter(label for _, label in train).most_common(1)[0][0]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit([text for text, _ in train], [label for _, label in train])
    return {
        "majority": _scores(truth, [majority] * len(truth)),
        "tfidf": _scores(truth, list(model.predict([text for text, _ in test]))),
    }


def _scores(truth: Sequence[str], told: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    macro = f1_score(truth, told, average="macro", zero_division=0)
    return {"accuracy": round(float(accuracy_score(truth, told)), 4), "macro_f1": round(float(macro), 4)}


async def command(env: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    """What a `loradock` command prints with `--json`. Raises RuntimeError with its last lines when it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "serving.cli",
        *arguments,
        "--json",
        cwd=ROOT,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), TRAIN_TIMEOUT_S)
    if process.returncode:
        raise RuntimeError(f"loradock {' '.join(arguments)} failed:\n{err.decode()[-2000:]}")
    answer: dict[str, Any] = json.loads(out)
    return answer


async def learn(
    name: str, data: Path, folder: Path, env: Mapping[str, str], options: Sequence[str] = ()
) -> dict[str, Any]:
    """One set, from import to score; `options` are those of `loradock train run`."""
    chosen = SETS[name]
    train, test = read(data / chosen.train, "train"), read(data / chosen.test, "test")
    train_file, test_file = (
        write(folder / f"{name}-{split}.csv.gz", rows) for split, rows in (("train", train), ("test", test))
    )
    began = time.monotonic()
    imported = await command(
        env, "cases", "import", str(train_file), "--agent", chosen.agent, "--format", "classification"
    )
    import_s = time.monotonic() - began
    trained = await command(env, "train", "run", "--agent", chosen.agent, "--wait", *options)
    scored = None
    if trained["promoted"]:
        scored = await command(env, "adapters", "bench", chosen.agent, "--data", str(test_file))
    return {
        "set": name,
        "train_rows": len(train),
        "test_rows": len(test),
        "labels": len({label for _, label in train}),
        "import_s": round(import_s, 1),
        "imported": {name: value for name, value in imported.items() if name != "file"},
        "trained": trained,
        "adapter": scored,
        **baselines(train, test),
    }


async def measure(
    names: Sequence[str],
    data: Path,
    settings: Mapping[str, str],
    options: Sequence[str] = (),
    training: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Start a server whose own triggers stay still, and learn set after set; `training` goes to the agents' presets."""
    with tempfile.TemporaryDirectory(prefix="loradock-learning-") as temporary:
        folder = Path(temporary)
        chosen = {"COLD_POLICY": "wait", "DEMO": "false", "TRAINING__TRIGGER_MIN_CASES": "1000000000", **settings}
        if training:
            chosen |= write_presets(folder / "agents", names, training)
        async with served(folder, chosen) as client:
            env = _environment(client, folder, chosen)
            return [await learn(name, data, folder, env, options) for name in names]


def on_base(folder: Path) -> dict[str, str]:
    """Settings that serve the base in `folder` as the embedded one is served: in float32 where there is no GPU."""
    gpu = {"dtype": "bfloat16", "gpu_memory_utilization": GPU_SHARE}
    args = gpu if nvidia_gpus(os.environ) else {"dtype": "float32"}
    engine = {"name": "base", "model": str(folder.resolve()), "args": args}
    return {"ENGINES": json.dumps([engine])}


def write_presets(folder: Path, names: Sequence[str], training: Mapping[str, float]) -> dict[str, str]:
    """Presets for the agents of the sets `names` that train as `training` says, and the setting that names them."""
    folder.mkdir()
    for name in names:
        preset = {"description": f"learns the set {name}", "training": dict(training)}
        # YAML holds JSON
        (folder / f"{SETS[name].agent}.yaml").write_text(json.dumps(preset), encoding="utf-8")
    return {"AGENTS_DIR": str(folder)}


def _environment(client: httpx.AsyncClient, folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORADOCK_")}
    own = {"HOME": str(folder / "home"), "PORT": str(client.base_url.port), **settings}
    return kept | {f"LORADOCK_{name}": value for name, value in own.items()}


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Accuracy and macro-F1, a line a set."""
    drawn = Table(title="test split, accuracy / macro-F1 in %", title_justify="left")
    for heading in ("set", "rows", "labels", "adapter", "base", "majority", "TF-IDF + LR", "training"):
        drawn.add_column(heading, justify="left" if heading == "set" else "right")
    for record in records:
        adapter = record["adapter"]
        told = f"{100 * adapter['accuracy']:.1f} / {100 * adapter['macro_f1']:.1f}" if adapter else "refused"
        drawn.add_row(
            record["set"],
            str(record["test_rows"]),
            str(record["labels"]),
            told,
            f"{100 * adapter['base_accuracy']:.1f}" if adapter else "-",
            *(
                f"{100 * record[name]['accuracy']:.1f} / {100 * record[name]['macro_f1']:.1f}"
                for name in ("majority", "tfidf")
            ),
            f"{record['trained']['seconds']:.0f} s",
        )
    return drawn


def _accuracy(record: Mapping[str, Any]) -> float | None:
    """The champion's; None where the gate let none through."""
    adapter = record["adapter"]
    return None if adapter is None else float(adapter["accuracy"])


def bars(records: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """What has to be reached."""
    made = [
        Bar(f"{record['set']}: accuracy", _accuracy(record), LEAST_RIGHT[record["set"]], "", "at least")
        for record in records
        if record["set"] in LEAST_RIGHT
    ]
    gains = [told - record["tfidf"]["accuracy"] for record in records if (told := _accuracy(record)) is not None]
    made.append(Bar("best set: accuracy above TF-IDF", round(max(gains), 4) if gains else None, 0.0, "", "at least"))
    return made


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="bench.learning", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--sets", default=",".join(SETS), help=f"comma-separated, of {', '.join(SETS)}")
    parser.add_argument("--rank", type=int, help="LoRA rank; default: by the cases")
    parser.add_argument("--epochs", type=float, help="passes over the cases; default: by their number")
    parser.add_argument("--method", choices=("qlora", "lora"), help="how to train; default: qlora")
    parser.add_argument("--base", type=Path, help="folder of the base model; default: the embedded one")
    parser.add_argument("--learning-rate", type=float, help="peak; default: by the base")
    parser.add_argument("--batch-tokens", type=int, help="tokens of a step; default: by the cases and the machine")
    parser.add_argument("--holdout-share", type=float, help="share of the training rows kept for the gate")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    names = arguments.sets.split(",")
    if unknown := set(names) - set(SETS):
        parser.error(f"unknown sets: {', '.join(sorted(unknown))}")
    given = {"--rank": arguments.rank, "--epochs": arguments.epochs, "--method": arguments.method}
    options = [word for name, value in given.items() if value for word in (name, str(value))]
    share = arguments.holdout_share
    settings = {"TRAINING__HOLDOUT_SHARE": str(share)} if share else {}
    if arguments.base:
        settings |= on_base(arguments.base)
    preset = {"learning_rate": arguments.learning_rate, "batch_tokens": arguments.batch_tokens}
    training = {name: value for name, value in preset.items() if value}
    records = asyncio.run(measure(names, arguments.data, settings, options, training))
    base = arguments.base.name if arguments.base else BASE_NAME
    chosen = {"sets": names, "base": base, "rank": arguments.rank, "epochs": arguments.epochs, "holdout_share": share}
    chosen |= {"method": arguments.method, **preset}
    publish(result("learning", chosen, {"sets": records}, bars(records)), [table(records)], arguments.out)


if __name__ == "__main__":
    main()
