"""The process: signals let running answers end, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from bench import mock_upstream
from bench.canned import STREAM_CHUNKS
from bench.processes import started_with
from tests.serving.served import served
from tests.serving.waiting import until

ASK = {"model": "legal", "stream": True, "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, "1"), (signal.SIGINT, "1"), (signal.SIGINT, "2")])
async def test_a_signal_lets_streams_end_and_leaves_nothing_behind(
    tmp_path: Path, home: Callable[[str], Path], number: signal.Signals, workers: str
) -> None:
    upstream = mock_upstream.Upstream(chunk_delay_s=0.02)
    async with mock_upstream.serving(upstream) as url, httpx.AsyncClient(trust_env=False, timeout=20) as http:
        with served(home(mock_upstream.BASE), url, tmp_path / "tmp", workers=workers) as server:
            await server.ready()
            async with http.stream("POST", server.url + "/v1/chat/completions", json=ASK) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                os.killpg(server.process.pid, number)  # as a terminal does with Ctrl-C
                async with asyncio.timeout(5):
                    while True:
                        try:
                            async with httpx.AsyncClient(trust_env=False) as other:
                                await other.get(server.url + "/health")
                        except httpx.TransportError:
                            break
                rest = [line async for line in lines]
            assert sum(line.startswith("data: {") for line in rest) == STREAM_CHUNKS - 1
            assert "data: [DONE]" in rest
            assert await server.ended() == 0
            await until(lambda: started_with(str(server.folder)) == [])
            assert list(server.folder.iterdir()) == []
            log = server.process.log.read_text()
            assert "Traceback" not in log, log
        assert upstream.aborted == 0


async def test_a_stream_past_the_grace_is_cut(tmp_path: Path, home: Callable[[str], Path]) -> None:
    upstream = mock_upstream.Upstream(chunk_delay_s=1)
    async with mock_upstream.serving(upstream) as url, httpx.AsyncClient(trust_env=False, timeout=20) as http:
        with served(home(mock_upstream.BASE), url, tmp_path / "tmp", shutdown_grace_s="1") as server:
            await server.ready()
            async with http.stream("POST", server.url + "/v1/chat/completions", json=ASK) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                os.kill(server.process.pid, signal.SIGTERM)
                assert await server.ended(limit_s=6) == 0
                with pytest.raises(httpx.RemoteProtocolError):
                    [line async for line in lines]
        await until(lambda: upstream.aborted == 1)


@pytest.mark.parametrize("pauses_s", [(0.5,), (0.0, 0.2, 0.2, 0.2)])
async def test_more_ctrl_c_cut_streams_and_still_leave_nothing_behind(
    tmp_path: Path, home: Callable[[str], Path], pauses_s: tuple[float, ...]
) -> None:
    upstream = mock_upstream.Upstream(chunk_delay_s=1)
    async with mock_upstream.serving(upstream) as url, httpx.AsyncClient(trust_env=False, timeout=20) as http:
        with served(home(mock_upstream.BASE), url, tmp_path / "tmp", training__worker="true") as server:
            await server.ready()
            async with http.stream("POST", server.url + "/v1/chat/completions", json=ASK) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                os.killpg(server.process.pid, signal.SIGINT)
                for pause_s in pauses_s:
                    await asyncio.sleep(pause_s)
                    os.killpg(server.process.pid, signal.SIGINT)
                assert await server.ended(limit_s=10) == 0
                with pytest.raises(httpx.RemoteProtocolError):
                    [line async for line in lines]
            await until(lambda: started_with(str(server.folder)) == [])
            log = server.process.log.read_text()
            assert "Traceback" not in log, log
