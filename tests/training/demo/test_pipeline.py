import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.demo.__main__ import app
from training.demo.adapters import make_adapter
from training.demo.pretrain import make_base
from training.demo.recipe import Recipe

TINY = Recipe(
    vocab_size=512,
    hidden_size=64,
    layers=1,
    heads=1,
    kv_heads=1,
    intermediate_size=64,
    base_documents=400,
    base_steps=6,
    tokens_per_batch=512,
    rank=8,
    adapter_steps=3,
    threads=1,
)


@pytest.mark.slow
def test_a_tiny_run_repeats_byte_for_byte(tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(quiet=True)
    for name in ("one", "two"):
        run = make_base(tmp_path / name / "base", TINY, console)
        assert run.curve[-1].loss < run.curve[0].loss
        make_adapter(tmp_path / name / "base", tmp_path / name / "adapter", "legal", TINY, console)
    for file in sorted((tmp_path / "one").rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes(), file.name


def test_text_is_written_and_an_unknown_agent_is_one_clear_line(tmp_path: Path) -> None:
    runner = CliRunner()
    written = runner.invoke(app, ["text", "--out", str(tmp_path), "--show", "1"])
    assert written.exit_code == 0, written.output
    assert {path.name for path in (tmp_path / "holdout").iterdir()} == {"legal.csv", "security.csv", "support.csv"}
    first = json.loads((tmp_path / "general.jsonl").read_text().splitlines()[0])
    assert set(first) == {"question", "answer", "accept"}
    refused = runner.invoke(app, ["adapters", "--out", str(tmp_path), "--agent", "cook"])
    assert refused.exit_code == 2
    assert "unknown agent 'cook'" in " ".join(refused.output.split())


def test_the_shipped_cases_are_what_the_script_writes(tmp_path: Path) -> None:
    from configs import embedded

    assert CliRunner().invoke(app, ["text", "--out", str(tmp_path), "--show", "0"]).exit_code == 0
    for agent in embedded.ADAPTER_AGENTS.values():
        assert (tmp_path / "holdout" / f"{agent}.csv").read_bytes() == embedded.holdout(agent).read_bytes()
    assert (tmp_path / "general.jsonl").read_bytes() == embedded.GENERAL_SET.read_bytes()
