"""Supervision, with a stand-in for the process; tests/engine does the same with the real one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.profiles import load_profile
from configs.settings import EngineSettings
from serving.engine import backoff, child, process
from serving.engine.backoff import Backoff
from serving.engine.base import EngineState, EngineStatus
from serving.engine.child import bound
from serving.engine.command import Command, socket_path
from serving.engine.model import BaseModel
from serving.engine.process import VllmEngine
from serving.errors import EngineUnavailable
from tests.engine import ask
from tests.engine.processes import group_of

ROOT = Path(__file__).parents[3]

MakeEngine = Callable[..., VllmEngine]


@pytest.fixture
def make_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    """An engine whose n-th start behaves as the n-th word says, the last word for all further ones."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.02)
    monkeypatch.setattr(process, "HEALTH_EVERY_S", 0.02)
    monkeypatch.setattr(process, "HEALTH_TIMEOUT_S", 0.2)
    (tmp_path / "config.json").write_text("{}")

    def make(*behaviours: str) -> VllmEngine:
        rest = list(behaviours)

        def command(*others: Any, prepared: Path) -> Command:
            run_dir = others[3]
            assert prepared == tmp_path / "home" / "prepared"
            behaviour = rest.pop(0) if len(rest) > 1 else rest[0]
            argv = (sys.executable, "-m", "tests.serving.engine.standin", str(socket_path(run_dir)), behaviour)
            return Command(argv, os.environ | {"PYTHONPATH": str(ROOT)})

        monkeypatch.setattr(process, "build_command", command)
        settings = EngineSettings(name="base", model=str(tmp_path), served_name="tiny")
        model = BaseModel.of(settings)
        return VllmEngine(settings, load_profile("cpu"), model, home=tmp_path / "home", request_timeout_s=5)

    return make


async def reaches(engine: VllmEngine, state: EngineState, within_s: float = 30) -> EngineStatus:
    async with asyncio.timeout(within_s):
        while engine.status.state is not state:  # noqa: ASYNC110 - also sees what no callback tells
            await asyncio.sleep(0.01)
    return engine.status


async def test_it_becomes_ready_and_stops(make_engine: MakeEngine) -> None:
    engine = make_engine("serve")
    with pytest.raises(EngineUnavailable):
        await ask(engine, "tiny")
    await engine.start()
    await engine.start()
    await engine.wait_ready(30)
    status = engine.status
    assert (status.generation, status.restarts, status.progress, engine.max_context) == (1, 0, 1.0, 99)
    assert status.pid
    await engine.stop()
    assert engine.status.state is EngineState.STOPPED
    assert not group_of(status.pid)
    with pytest.raises(EngineUnavailable):
        await engine.wait_ready(1)


async def test_it_can_be_started_again_after_a_stop(make_engine: MakeEngine) -> None:
    engine = make_engine("serve")
    for generation in (1, 2):
        await engine.start()
        await engine.wait_ready(30)
        assert engine.status.generation == generation
        await engine.stop()


@pytest.mark.parametrize(
    ("behaviour", "told"), [("refuse", "this model cannot be served"), ("usage", "unrecognized arguments: --nonsense")]
)
async def test_a_start_that_cannot_succeed_fails_once_and_says_why(
    make_engine: MakeEngine, behaviour: str, told: str
) -> None:
    engine = make_engine(behaviour)
    await engine.start()
    with pytest.raises(EngineUnavailable, match=told):
        await engine.wait_ready(30)
    assert engine.status.state is EngineState.FAILED
    assert engine.status.generation == 1
    assert str(engine.log_path) in engine.status.detail
    await engine.stop()


async def test_a_missing_model_fails_without_any_process(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine("serve")
    (tmp_path / "config.json").unlink()
    await engine.start()
    with pytest.raises(EngineUnavailable, match=r"config\.json"):
        await engine.wait_ready(30)
    assert engine.status.generation == 0
    await engine.stop()


async def test_deaths_in_a_row_without_ever_being_ready_end_in_failure(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "MAX_FRUITLESS", 3)
    engine = make_engine("crash")
    await engine.start()
    with pytest.raises(EngineUnavailable, match=r"3 starts failed.*out of luck"):
        await engine.wait_ready(60)
    assert (engine.status.state, engine.status.generation) == (EngineState.FAILED, 3)
    await engine.stop()


async def test_a_refused_configuration_is_not_final_once_it_has_worked(make_engine: MakeEngine) -> None:
    engine = make_engine("ready-then-crash", "refuse", "serve")
    seen: list[EngineStatus] = []
    engine.on_change(seen.append)
    await engine.start()
    async with asyncio.timeout(60):
        while engine.status.generation < 3 or engine.status.state is not EngineState.READY:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert engine.status.restarts == 2
    assert EngineState.FAILED not in {status.state for status in seen}
    await engine.stop()


async def test_sigkill_is_noticed_and_told_and_mended(make_engine: MakeEngine) -> None:
    engine = make_engine("serve")
    seen: list[EngineStatus] = []
    engine.on_change(seen.append)
    await engine.start()
    await engine.wait_ready(30)
    first = engine.status.pid
    assert first
    os.kill(first, signal.SIGKILL)
    assert "signal 9" in (await reaches(engine, EngineState.RESTARTING)).detail
    await engine.wait_ready(30)
    assert engine.status.pid != first
    assert [status.state for status in seen][-2:] == [EngineState.RESTARTING, EngineState.READY]
    await engine.stop()


async def test_an_engine_that_stops_answering_is_ended_and_started_again(make_engine: MakeEngine) -> None:
    engine = make_engine("hang", "serve")
    await engine.start()
    await engine.wait_ready(30)
    hung = engine.status.pid
    assert hung
    assert "health" in (await reaches(engine, EngineState.RESTARTING)).detail
    await engine.wait_ready(30)
    assert engine.status.generation == 2
    assert not group_of(hung)
    await engine.stop()


async def test_each_start_has_its_own_log_and_the_one_before_is_kept(make_engine: MakeEngine) -> None:
    engine = make_engine("ready-then-crash", "serve")
    await engine.start()
    await engine.wait_ready(30)
    await reaches(engine, EngineState.RESTARTING)
    await engine.wait_ready(30)
    assert engine.log_path.with_name("engine-base.log.1").is_file()
    assert engine.log_path.read_text().count(" core") == 1
    await engine.stop()


async def test_stopping_while_it_waits_to_restart_ends_the_waiting(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 60.0)
    monkeypatch.setattr(backoff, "LONGEST_S", 60.0)
    engine = make_engine("crash")
    await engine.start()
    await reaches(engine, EngineState.RESTARTING)
    await engine.stop()
    assert engine.status.state is EngineState.STOPPED


def test_backoff_doubles_up_to_its_bound_and_begins_anew_after_a_stable_minute() -> None:
    pauses = Backoff()
    assert [pauses.after(None) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert pauses.exhausted
    assert pauses.after(5.0) == 30
    assert not pauses.exhausted
    assert pauses.after(61.0) == 0.5


def test_a_log_past_its_bound_keeps_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LOG_BYTES", 1000)
    monkeypatch.setattr(child, "LOG_KEPT", 100)
    log = tmp_path / "engine.log"
    with log.open("ab") as writer:
        writer.write(b"x" * 900)
        writer.flush()
        bound(log)
        assert log.stat().st_size == 900
        writer.write(b"y" * 200)
        writer.flush()
        bound(log)
        writer.write(b"z")
        writer.flush()
    assert log.read_bytes() == b"z"
    assert (tmp_path / "engine.log.1").read_bytes() == b"y" * 100
