from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters_registry.model import AdapterVersion
from serving.errors import EngineUnavailable
from tests.engine import MakeAdapter, adapter_at, ask, chat_body
from tests.engine.contract import EngineContract, Running
from tests.serving.fake_engine import FakeEngine


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine(slots=3)
    await fake.start()
    yield fake
    await fake.stop()


class TestFake(EngineContract):
    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        def make() -> AdapterVersion:
            number = sum(1 for _ in tmp_path.iterdir()) + 1
            folder = tmp_path / f"adapter-{number}"
            folder.mkdir()
            return adapter_at(folder, number)

        return make

    @pytest.fixture
    def running(self, engine: FakeEngine) -> Running:
        async def count(model: str) -> int:
            return engine.running[model]

        return count


async def test_a_death_ends_the_requests_in_flight_and_the_next_generation_knows_no_adapter(engine: FakeEngine) -> None:
    async with engine.open("/v1/chat/completions", chat_body("tiny", stream=True, max_tokens=1000)) as response:
        chunks = response.chunks()
        await anext(chunks)
        engine.die()
        with pytest.raises(EngineUnavailable):
            async for _ in chunks:
                pass
    with pytest.raises(EngineUnavailable):
        await ask(engine, "tiny")
    engine.come_back()
    assert engine.status.generation == 2
    assert (await ask(engine, "tiny"))[0] == 200
