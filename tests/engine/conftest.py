"""One real vLLM for the whole session, on the embedded base. Tests that kill it get it back before they end."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from adapters_registry.model import AdapterVersion
from configs import embedded
from configs.profiles import load_profile
from configs.settings import EngineSettings
from serving.engine.model import BaseModel
from serving.engine.process import VllmEngine
from tests.engine import MakeAdapter, adapter_at, write_adapter

START_TIMEOUT_S = 240
_numbers = itertools.count(1)


def make_engine(home: Path, *, staging: bool = False) -> VllmEngine:
    settings = EngineSettings(name="base", slots=3, staging=staging)
    return VllmEngine(settings, load_profile("cpu"), BaseModel.of(settings), home=home, request_timeout_s=60)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running_vllm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """The engine itself; tests use `vllm_engine`."""
    pytest.importorskip("vllm")
    assert embedded.BASE.is_dir()
    engine = make_engine(tmp_path_factory.mktemp("home"))
    await engine.start()
    try:
        await engine.wait_ready(START_TIMEOUT_S)
        yield engine
    finally:
        await engine.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def vllm_engine(running_vllm: VllmEngine) -> AsyncIterator[VllmEngine]:
    """A ready engine with no adapter loaded."""
    await running_vllm.wait_ready(START_TIMEOUT_S)
    yield running_vllm
    await running_vllm.wait_ready(START_TIMEOUT_S)
    for name, engine_id in (await running_vllm.core_status()).adapters.items():
        await running_vllm.unload(name, engine_id)


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    """A new adapter on disk, never seen by the engine before."""

    def make(*, rank: int = 8, width: int | None = None, scale: float = 0.02) -> AdapterVersion:
        number = next(_numbers)
        folder = write_adapter(tmp_path / f"adapter-{number}", seed=number, rank=rank, width=width, scale=scale)
        return adapter_at(folder, number, rank=rank)

    return make
