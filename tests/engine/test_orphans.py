"""Nothing survives a gateway that is killed, and nothing survives an orderly stop."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from serving.engine.base import EngineState
from tests.engine.conftest import START_TIMEOUT_S, make_engine
from tests.engine.processes import group_of

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


async def gone(pgid: int, within_s: float = 10) -> bool:
    async with asyncio.timeout(within_s):
        while group_of(pgid):  # noqa: ASYNC110 - /proc tells only when asked
            await asyncio.sleep(0.05)
    return True


async def test_sigkill_of_the_gateway_leaves_no_engine_behind(tmp_path: Path) -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.engine.gateway", str(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert gateway.stdout is not None
    async with asyncio.timeout(START_TIMEOUT_S):
        pid = int(await gateway.stdout.readline())
    running = group_of(pid)
    assert any("EngineCore" in title for title in running.values())
    gateway.kill()
    await gateway.wait()
    assert await gone(pid)


async def test_stop_during_a_start_ends_every_process_and_clears_the_folder(
    tmp_path: Path,
) -> None:
    engine = make_engine(tmp_path / "home")
    await engine.start()
    async with asyncio.timeout(10):
        while engine.status.pid is None:  # noqa: ASYNC110 - changes of detail are not told
            await asyncio.sleep(0.05)
    pid = engine.status.pid
    assert os.getpgid(pid) == pid
    assert engine.transport.socket_path
    run_dir = Path(engine.transport.socket_path).parent
    assert run_dir.stat().st_mode & 0o777 == 0o700
    await engine.stop(grace_s=0)
    assert engine.status.state is EngineState.STOPPED
    assert await gone(pid)
    assert not run_dir.exists()
