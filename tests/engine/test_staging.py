"""Adapters staged beside the engine answer as vLLM's own way of loading them makes them answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from adapters_registry.model import AdapterVersion
from bench.contestants import residency_of
from bench.residency_churn import churn
from bench.residency_loads import Arrivals, Interference
from configs import embedded
from serving.engine.process import VllmEngine
from serving.engine.worker.protocol import STAGING
from tests.engine import MakeAdapter, adapter_at, ask
from tests.engine.conftest import START_TIMEOUT_S, make_engine
from tests.serving.waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

TASKS = ("I was charged twice for one order.", "The supplier is liable up to the fees paid.", "SQL is built by hand.")
STAGING_ON, STAGING_OFF = f"{STAGING}on", f"{STAGING}off"


def demo_adapters() -> list[AdapterVersion]:
    return [adapter_at(embedded.ADAPTERS / name, 9000 + number) for number, name in enumerate(embedded.ADAPTER_AGENTS)]


async def said(engine: VllmEngine, adapter: AdapterVersion) -> list[tuple[str, list[float]]]:
    """Text and log-probabilities of the adapter's answers, loaded for them alone."""
    answers = []
    await engine.load(adapter)
    for task in TASKS:
        status, answer = await ask(engine, adapter.engine_name, text=task, logprobs=True)
        assert status == 200
        choice = answer["choices"][0]
        answers.append((choice["message"]["content"], [token["logprob"] for token in choice["logprobs"]["content"]]))
    await engine.unload(adapter.engine_name, adapter.engine_id)
    return answers


async def tiers(engine: VllmEngine) -> Mapping[str, float]:
    """The figures of the tiers in the engine's metrics, as `tier.figure`."""
    figures = {}
    for line in (await engine.scrape_metrics()).decode().splitlines():
        if line.startswith("loradock_tier_"):
            name, _, rest = line.removeprefix("loradock_tier_").partition('{tier="')
            tier, _, value = rest.partition('"} ')
            figures[f"{tier}.{name.removesuffix('_total')}"] = float(value)
    return figures


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def staging_engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """A ready engine that stages, several adapters at once as on a machine with more cores."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("command", "process"):
            patch.setattr(f"serving.engine.{module}.loads_at_once", lambda: 3)
        engine = make_engine(tmp_path_factory.mktemp("staging"), staging=True)
        await engine.start()
        try:
            await engine.wait_ready(START_TIMEOUT_S)
            yield engine
        finally:
            await engine.stop()


async def test_outputs_are_those_of_the_stock_path(staging_engine: VllmEngine, vllm_engine: VllmEngine) -> None:
    assert STAGING_ON in staging_engine.log_path.read_text()
    assert STAGING not in vllm_engine.log_path.read_text()
    for adapter in demo_adapters():
        for (text, own), (stock_text, stocks) in zip(
            await said(staging_engine, adapter), await said(vllm_engine, adapter), strict=True
        ):
            assert text == stock_text
            assert own == pytest.approx(stocks, abs=1e-5)


@pytest.mark.slow
async def test_where_staging_cannot_be_the_stock_path_serves(vllm_engine: VllmEngine, tmp_path: Path) -> None:
    (tmp_path / "prepared").write_text("a file where a folder should be")
    refused = make_engine(tmp_path, staging=True)
    await refused.start()
    try:
        await refused.wait_ready(START_TIMEOUT_S)
        assert refused.log_path.read_text().count(STAGING_OFF) == 1
        [adapter, *_] = demo_adapters()
        assert await said(refused, adapter) == await said(vllm_engine, adapter)
    finally:
        await refused.stop()


async def test_an_adapter_comes_from_memory_the_second_time(
    staging_engine: VllmEngine, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(scale=0.5)
    first = await said(staging_engine, adapter)
    before = await tiers(staging_engine)
    assert await said(staging_engine, adapter) == first
    after = await tiers(staging_engine)
    assert after["host.hits"] == before["host.hits"] + 1
    assert after["disk.prepared"] == before["disk.prepared"]
    assert after["slots.filled"] == before["slots.filled"] + 1
    assert 0 < after["host.used_bytes"] <= after["host.capacity_bytes"]


async def test_a_damaged_prepared_file_is_made_again(staging_engine: VllmEngine, make_adapter: MakeAdapter) -> None:
    other, adapter = make_adapter(scale=0.5), make_adapter(scale=0.5)
    [layout] = (staging_engine.log_path.parents[1] / "prepared").iterdir()
    file = layout / f"{other.digest}.row"
    await staging_engine.prepare(other)
    await until(file.exists)
    (layout / f"{adapter.digest}.row").write_bytes(file.read_bytes()[:-4] + b"!!!!")
    damaged = (await tiers(staging_engine)).get("disk.damaged", 0)
    status = await said(staging_engine, adapter)
    assert (await tiers(staging_engine))["disk.damaged"] == damaged + 1
    twin = replace(adapter, name="twin")  # the same content, and so the same row, under another name
    assert await said(staging_engine, twin) == status


async def test_the_residency_bench_runs_on_any_engine(staging_engine: VllmEngine, make_adapter: MakeAdapter) -> None:
    vocabulary = json.loads((embedded.BASE / "config.json").read_text())["vocab_size"]
    adapters = [make_adapter(scale=0.5) for _ in range(2 * staging_engine.slots)]
    async with residency_of(staging_engine) as contestant:
        beside = Interference(adapters[:1], streams=2, tokens=60, every_s=0.05, prompt=16, vocabulary=vocabulary)
        figures = (await beside.run(contestant, iter(adapters[1:]), seed=0)).figures()
        assert figures["errors"] == 0
        assert figures["probes"] > 0
        assert figures["tokens"] > 20
        arrivals = Arrivals(adapters, prompt=16, tokens=4, vocabulary=vocabulary)
        opened: dict[str, Any] = await arrivals.open(contestant, rate=20, seconds=1.0, seed=0)
        assert opened["errors"] == 0
        churned = (await churn(contestant, adapters, 60, clients=4)).figures()
        assert (churned["wrong"], churned["errors"], churned["engine_restarts"]) == (0, 0, 0)
        assert churned["changes"] > 0
