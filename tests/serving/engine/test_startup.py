from pathlib import Path

import pytest

from serving.engine.startup import MAX_DETAIL, PHASES, LogReader, explain
from serving.engine.worker import protocol


def test_progress_follows_the_log_and_never_goes_back(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("")
    reader = LogReader(log)
    seen = []
    for line in ("noise", "(Core) Starting to load model x", "loradock: phase import", "GPU KV cache size: 1 tokens"):
        with log.open("a") as file:
            file.write(line + "\n")
        seen.append(reader.advance().progress)
    assert seen == sorted(seen)
    assert reader.phase.detail == "profiling and warming up"


def test_a_marker_cut_in_two_by_a_read_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("")
    reader = LogReader(log)
    log.write_text("Starting to lo")
    reader.advance()
    log.write_text("Starting to load model")
    assert reader.advance().detail == "loading weights"


def test_phases_are_in_order() -> None:
    progress = [phase.progress for phase in PHASES]
    assert progress == sorted(set(progress))
    assert progress[-1] < 1


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([f"{protocol.ERROR}no such model", "Traceback", "ValueError: other"], "no such model"),
        (["worker: error: unrecognized arguments: --nonsense=1"], "unrecognized arguments: --nonsense=1"),
        (
            [
                "(EngineCore pid=1) ERROR ValueError: No room for the KV cache",
                "RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "ValueError: No room for the KV cache",
        ),
        (["torch.OutOfMemoryError: CUDA out of memory.", "bye"], "torch.OutOfMemoryError: CUDA out of memory."),
        (["one", "  last words ", ""], "last words"),
        ([], "it wrote nothing into its log"),
        (["x" * 10_000], "x" * (MAX_DETAIL - 1) + "…"),
    ],
)
def test_the_cause_of_a_failed_start_is_one_line(lines: list[str], told: str) -> None:
    assert explain(lines) == told


def test_only_the_present_start_is_explained(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("ValueError: of the start before\n")
    reader = LogReader(log)
    assert reader.explain() == "it wrote nothing into its log"
