from __future__ import annotations

from pathlib import Path

import pytest

from configs.embedded import BASE
from tests.serving.cli.conftest import Cli


def test_a_plan_tells_parts_time_and_verdict(cli: Cli) -> None:
    result = cli("train", "plan", "7b", "--json", "--cases", 2000, "--usd-per-hour", 2)
    document = result.json
    assert (result.code, document["fits"], document["card"]["name"]) == (0, True, "H200")
    parts = document["memory"]["parts"]
    assert set(parts) == {"weights", "adapter", "gradients", "optimiser", "activations", "logits", "workspace"}
    assert sum(part["at_peak"] for part in parts.values()) == document["memory"]["peak_bytes"]
    assert document["time"]["cost_usd"] == pytest.approx(document["time"]["seconds"] / 1800)
    assert document["model"]["parameters"]["total"] == 7_615_616_512


def test_a_person_reads_a_table(cli: Cli) -> None:
    result = cli("train", "plan", BASE, "--card", "cpu", "--length", 256)
    assert result.code == 0
    for word in ("weights", "activations", "verdict", "fits", "GGUF", "steps"):
        assert word in result.out


def test_what_fits_after_a_fallback_exits_zero_and_says_which(cli: Cli) -> None:
    result = cli("train", "plan", "7b", "--card", "3070", "--batch", 8, "--json")
    assert result.code == 0
    assert result.json["fallbacks"]
    assert result.json["recipe"]["batch"] < result.json["asked"]["batch"]


def test_what_does_not_fit_exits_one_with_the_reason(cli: Cli) -> None:
    result = cli("train", "plan", "14b", "--memory-gib", 6)
    assert result.code == 1
    assert "does not fit: " in result.out
    assert cli("train", "plan", "14b", "--memory-gib", 6, "--json").json["fits"] is False


def test_the_table_of_a_9b_model_stands_beside_the_claims(cli: Cli) -> None:
    document = cli("train", "plan", "--table", "9b", "--json").json
    claimed = " ".join(row["claimed"] for row in document["rows"])
    for figure in ("16.76 GB", "4.19 GB", "4.2 M", "8 MB", "0.19 %", "5.89 GB"):
        assert figure in claimed
    assert "0.047 %" in cli("train", "plan", "9b", "--table").out


def test_a_plan_is_written_as_config_and_script(cli: Cli, alone: Path) -> None:
    result = cli("train", "plan", "embedded", "--card", "cpu", "--write", "job", "--dataset", "data", "--json")
    assert result.code == 0
    assert [Path(file).name for file in result.json["files"]] == ["config.json", "train.sh"]
    assert (alone / "job" / "train.sh").stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["8b-ish"], "no folder, no config file and none of 0.5b"),
        (["7b", "--card", "C64"], "unknown card 'C64'"),
        (["7b", "--memory-gib", "-1"], "memory must be positive"),
        (["7b", "--kernels", "magic"], "kernels 'magic' is none of"),
        (["7b", "--optimiser", "sgd"], "'sgd' is neither"),
        (["7b", "--rank", "0"], "--rank"),
        (["7b", "--write", "x"], "--write needs --dataset"),
        (["7b", "--rank", "17", "--write", "x", "--dataset", "d"], "rank: "),
        (["7b", "--kernels", "liger", "--write", "x", "--dataset", "d"], "the trainer runs neither"),
    ],
)
def test_a_broken_argument_is_one_line_and_exit_code_two(cli: Cli, arguments: list[str], told: str) -> None:
    result = cli("train", "plan", *arguments)
    assert result.code == 2
    assert told in result.err
    assert result.err.count("\n") == 1
