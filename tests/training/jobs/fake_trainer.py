"""A trainer that obeys: `python -m tests.training.jobs.fake_trainer JOB_FOLDER`, told by the folder's config.json.

It counts steps as a real one does (status, checkpoint, result), and fails where it is told to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    stopping = []
    if config.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    if config.get("child"):
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
            (folder / "child").write_text(str(child.pid))
            return work(folder, config, stopping)
    return work(folder, config, stopping)


def work(folder: Path, config: dict[str, object], stopping: list[int]) -> int:
    checkpoint = folder / "checkpoint"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    with (folder / "starts").open("a") as starts:
        starts.write(f"{step} {os.environ['CUDA_VISIBLE_DEVICES']!r}\n")
    for now in range(step + 1, int(str(config.get("steps", 5))) + 1):
        status = {"step": now, "total_steps": config.get("steps", 5), "loss": 1.0, "error": None}
        if now == config.get("fail_at"):
            status["error"] = "the disk is full"
        (folder / "status.part").write_text(json.dumps(status))
        (folder / "status.part").replace(folder / "training-status.json")
        if status["error"]:
            return int(str(config.get("code", 1)))
        checkpoint.write_text(str(now))
        time.sleep(float(str(config.get("step_s", 0.0))))
        if stopping:
            return 0
    (folder / "result.json").write_text(json.dumps({"steps": config.get("steps", 5), "adapter": "a"}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
