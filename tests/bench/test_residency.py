"""The parts of the residency bench that need no engine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import bench.residency
from adapters_registry.model import AdapterVersion
from bench import residency_loads
from bench.contestants import Setup
from bench.random_adapters import make_adapters
from bench.residency import arrange, bars_of, drop_from_page_cache, parse
from bench.residency_churn import judged
from bench.residency_loads import Arrivals, Interference, Trace, at, opened_by
from bench.residency_plot import draw
from bench.shapes import SHAPES, write_shape
from bench.throughput import apart_ms, at_once, tokens_per_s
from configs import embedded
from configs.profiles import load_profile
from serving.engine.command import vllm_arguments


class Answer:
    def __init__(self, status: int, tokens: int, each_s: float) -> None:
        self.status = status
        self._tokens = tokens
        self._each_s = each_s

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(self._tokens):
            await asyncio.sleep(self._each_s)
            yield b'data: {"choices": []}\n\n'
        yield b"data: [DONE]\n\n"


class Metronome:
    """A contestant that gives a token each 5 ms, unless it is told otherwise, and notes what it was asked for."""

    name = "metronome"

    def __init__(self, refuse: str = "", silent: str = "", broken: str = "", slow: str = "") -> None:
        self.refuse = refuse
        self.silent = silent
        self.broken = broken
        self.slow = slow
        self.asked: list[str] = []
        self.asked_at: list[float] = []
        self.open = 0

    @contextlib.asynccontextmanager
    async def opening(self, adapter: AdapterVersion | None, body: dict[str, Any]) -> AsyncIterator[Answer]:
        name = adapter.name if adapter else "base"
        self.asked.append(name)
        self.asked_at.append(time.perf_counter())
        if name == self.broken:
            raise ZeroDivisionError
        self.open += 1
        try:
            each_s = {self.silent: 60.0, self.slow: 0.2}.get(name, 0.005)
            yield Answer(404 if name == self.refuse else 200, body["max_tokens"], each_s)
        finally:
            self.open -= 1

    def pid(self) -> int | None:
        return None


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterVersion]:
    return make_adapters(embedded.BASE, tmp_path_factory.mktemp("adapters"), 4, 8)


def test_random_adapters_fit_the_base_and_differ(adapters: list[AdapterVersion]) -> None:
    weights = [load_file(adapter.path / "adapter_model.safetensors") for adapter in adapters]
    layers = json.loads((embedded.BASE / "config.json").read_text())["num_hidden_layers"]
    assert len(weights[0]) == layers * 7 * 2
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    assert all(tensor.isfinite().all() for tensor in weights[0].values())
    assert str(weights[0][name].dtype) == "torch.bfloat16"
    assert not any(one[name].equal(two[name]) for one, two in itertools.combinations(weights, 2))
    assert len({adapter.engine_id for adapter in adapters}) == len(adapters)
    assert all(adapter.path.name == adapter.engine_name for adapter in adapters)


async def test_a_tier_is_arranged_for_the_chosen_adapters_alone(
    adapters: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[Path] = []
    monkeypatch.setattr(bench.residency, "drop_from_page_cache", dropped.extend)
    await arrange("disk", Metronome(), adapters[:1], [])
    assert {file.parent for file in dropped} == {adapters[0].path}
    await arrange("page-cache", Metronome(), adapters[:1], [])
    monkeypatch.undo()
    drop_from_page_cache(dropped)


async def test_probes_stand_beside_streams_and_every_gap_is_counted(adapters: list[AdapterVersion]) -> None:
    contestant = Metronome()
    load = Interference(adapters[:1], streams=3, tokens=60, every_s=0.05, prompt=4, vocabulary=100)
    figures = (await load.run(contestant, iter(adapters[1:]), seed=0)).figures()
    assert contestant.asked.count(adapters[0].name) == 3
    assert figures["probes"] == 3
    assert figures["errors"] == 0
    assert figures["tokens"] > 30
    assert 5 <= figures["gap_p50_ms"] < 50
    assert figures["probe_first_p50_ms"] >= 5


async def test_probes_that_take_turns_are_told_apart(
    adapters: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_loads, "PATIENCE_S", 0.1)
    contestant = Metronome(silent=adapters[2].name)
    load = Interference(adapters[:1], streams=2, tokens=100, every_s=0.05, prompt=4, vocabulary=100)
    control, cold = await load.paired(contestant, itertools.repeat(adapters[1]), iter(adapters[2:3] * 2), seed=0)
    assert (len(control.first_ms), len(cold.first_ms)) == (2, 2)
    assert max(control.first_ms) < 50 < min(cold.first_ms)
    assert min(len(control.gaps_ms), len(cold.gaps_ms)) > 5


async def test_refused_requests_are_errors_not_answers(adapters: list[AdapterVersion]) -> None:
    load = Arrivals(adapters[:2], prompt=4, tokens=3, vocabulary=100)
    figures = await load.open(Metronome(refuse=adapters[0].name), rate=100, seconds=0.3, seed=1)
    assert 0 < figures["errors"] < figures["requests"]
    with pytest.raises(RuntimeError, match="status 404"):
        await Arrivals(adapters[:1], 4, 3, 100).closed(Metronome(refuse=adapters[0].name), 2, 0.05, 0)
    assert await load.closed(Metronome(), clients=2, seconds=0.2, seed=0) > 20


async def test_what_has_no_answer_in_time_is_cut_off_and_counts_as_waiting(
    adapters: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_loads, "PATIENCE_S", 0.1)
    contestant = Metronome(silent=adapters[1].name)
    load = Interference(adapters[:1], streams=2, tokens=200, every_s=0.05, prompt=4, vocabulary=100)
    figures = (await load.run(contestant, iter(adapters[1:3]), seed=0)).figures()
    assert (figures["errors"], figures["probes"]) == (1, 2)
    assert figures["probe_first_p95_ms"] >= 100
    arrived = await Arrivals(adapters[1:2], 4, 3, 100).open(contestant, rate=50, seconds=0.1, seed=1)
    assert arrived["errors"] == arrived["requests"] > 0
    assert arrived["completed_per_s"] == 0
    assert arrived["first_p50_ms"] >= 100
    assert contestant.open == 0


async def test_a_defect_of_the_bench_is_no_answer(adapters: list[AdapterVersion]) -> None:
    load = Arrivals(adapters[:1], 4, 3, 100)
    with pytest.raises(ZeroDivisionError):
        await load.open(Metronome(broken=adapters[0].name), rate=50, seconds=0.1, seed=1)


async def test_streams_that_are_refused_leave_nothing_to_probe(adapters: list[AdapterVersion]) -> None:
    load = Interference(adapters[:1], streams=2, tokens=5, every_s=0.05, prompt=4, vocabulary=100)
    figures = (await load.run(Metronome(refuse=adapters[0].name), iter(adapters[1:]), seed=0)).figures()
    assert (figures["errors"], figures["probes"]) == (2, 0)


async def test_tokens_a_second_are_those_of_all_streams(adapters: list[AdapterVersion]) -> None:
    args = argparse.Namespace(streams=4, tokens=20, prompt=4, seed=0)
    traces = await at_once(Metronome(), [None, adapters[0]], args, 100)
    assert 200 < tokens_per_s(traces) < 4 * 220


async def test_first_tokens_lie_as_far_apart_as_the_slowest_is_late(adapters: list[AdapterVersion]) -> None:
    args = argparse.Namespace(streams=4, tokens=2, prompt=4, seed=0)
    traces = await at_once(Metronome(slow=adapters[0].name), [None, adapters[0]], args, 100)
    assert 150 < apart_ms(traces) < 400


def test_gaps_are_those_that_end_inside() -> None:
    trace = Trace(0.0, [1.0, 2.0, 4.0, 7.0])
    assert trace.gaps(1.5, 5.0) == [1.0, 2.0]
    assert trace.first_s == 1.0
    assert (trace.waited_s(9.0), Trace(2.0).waited_s(9.0)) == (1.0, 7.0)
    assert opened_by(Trace(0.5, [3.99]), [trace, Trace(0.0, [3.0, 3.5])]) == 2.0
    assert opened_by(Trace(0.5, [0.6]), [trace]) == 0.0
    assert at([3.0, 1.0, 2.0], 0.5) == 2.0
    assert at([], 0.5) == 0


def test_bars_compare_with_the_control_and_with_stock(tmp_path: Path) -> None:
    def round_of(p99: float, long: float, first: float) -> dict[str, float]:
        gaps = {"gap_p99_ms": p99, "long_gaps_per_10k": long, "gap_max_ms": 2 * p99, "probe_gap_p50_ms": 30 - p99}
        return gaps | {"probe_first_p95_ms": first}

    beside = {"ours": {"control": [round_of(10, 5, 20)], "cold": [round_of(11, 4, 60)]}}
    zipf = {
        "ours": [{"completed_per_s": 30, "first_p99_ms": 100}],
        "stock": [{"completed_per_s": 20, "first_p99_ms": 300}],
        "stock as it comes": [{"completed_per_s": 25, "first_p99_ms": 150}],
    }
    bars = bars_of({"beside": {"host": beside}, "zipf": zipf}, 16)
    assert [(bar.measured, bar.met) for bar in bars] == [
        (1.1, False),
        (20, True),
        (-1, True),
        (40, False),
        (1.5, True),
        (0.333, True),
        (1.2, False),
        (0.667, False),
    ]
    assert bars_of({"beside": {"disk": beside}}, 16)[3].met
    assert len(bars_of({"beside": {"disk": beside}}, 64)) == 3
    assert bars_of({}, 16) == []
    assert bars_of({"zipf": {"ours": zipf["ours"]}}, 16) == []
    draw({"beside": {"host": beside, "disk": beside}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_answer_that_is_more_like_another_adapters_is_told_from_one_that_strays(tmp_path: Path) -> None:
    one, two = make_adapters(embedded.BASE, tmp_path, 2, 8)
    own = {one: "red blue", two: "green grey"}
    answers = {one: Counter({"red blue": 5, "red bird": 2}), two: Counter({"green grey": 1, "red fox": 3})}
    assert judged(answers, own) == (5, 3)


def test_a_shape_has_a_config_and_a_token_for_each_number(tmp_path: Path) -> None:
    folder = write_shape("tiny", tmp_path / "shape")
    config = json.loads((folder / "config.json").read_text())
    assert len(config["layer_types"]) == config["num_hidden_layers"] == SHAPES["tiny"]["num_hidden_layers"]
    assert len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) == config["vocab_size"]


async def test_a_probe_waits_until_what_the_one_before_opened_is_over(adapters: list[AdapterVersion]) -> None:
    contestant = Metronome(slow=adapters[2].name)
    load = Interference(adapters[:1], streams=2, tokens=400, every_s=0.05, prompt=4, vocabulary=100)
    control, cold = await load.paired(contestant, itertools.repeat(adapters[1]), iter(adapters[2:3] * 2), seed=0)
    assert max(control.first_ms) < 100
    assert min(cold.first_ms) >= 200
    late = contestant.asked.index(adapters[2].name)
    assert contestant.asked[late + 1] == adapters[1].name
    assert contestant.asked_at[late + 1] - contestant.asked_at[late] >= 0.2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--stock-flags", "mine"), "unknown in --stock-flags: mine; choose from profile, own"),
        (("--stock-flags", "own,own"), "twice in --stock-flags"),
        (("--tiers", "tape"), "unknown in --tiers"),
    ],
)
def test_a_choice_that_is_none_is_told(
    options: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["residency", *options])
    with pytest.raises(SystemExit):
        parse()
    assert told in capsys.readouterr().err


def test_stock_vllm_as_it_comes_has_the_benchs_flags_alone(tmp_path: Path) -> None:
    setup = Setup("embedded", load_profile("h200"), 8, 16, {"kv_cache_memory_bytes": 5}, 32).as_it_comes()
    arguments = vllm_arguments(setup.settings, setup.profile, "model", tmp_path)
    assert "max_num_batched_tokens" not in arguments
    assert (arguments["kv_cache_memory_bytes"], arguments["max_loras"], arguments["max_lora_rank"]) == (5, 8, 16)
