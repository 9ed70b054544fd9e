import pytest

from serving.engine.process import VllmEngine
from tests.engine.contract import EngineContract, Running

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


class TestVllm(EngineContract):
    @pytest.fixture
    def engine(self, vllm_engine: VllmEngine) -> VllmEngine:
        return vllm_engine

    @pytest.fixture
    def running(self, vllm_engine: VllmEngine) -> Running:
        async def count(model: str) -> int:
            status = await vllm_engine.core_status()
            return status.running_base if model == vllm_engine.upstream_model else status.running.get(model, 0)

        return count
