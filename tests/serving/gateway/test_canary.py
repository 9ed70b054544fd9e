"""Canary and rollback where they are served: who answers, and that nobody notices the change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from adapters_registry import AdapterRegistry, Alias, BaseModelSpec, State, open_database
from bench import mock_upstream
from bench.canned import STREAM_CHUNKS, TOKEN_MARK
from configs.training import TrainingSettings
from tests.adapters_registry.build import write_adapter
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.waiting import until

IN_FLIGHT = 20


@contextmanager
def other_process(endpoint: Endpoint) -> Iterator[AdapterRegistry]:
    """The registry as a worker has it: on the same data, and the gateway is not told."""
    settings = endpoint.gateway.settings
    spec = BaseModelSpec(mock_upstream.BASE, (), max_lora_rank=64)
    with closing(open_database(settings.database)) as database:
        yield AdapterRegistry(database, settings.home, bases={spec.name: spec})


def challenge(registry: AdapterRegistry, folder: Path) -> str:
    """Another version of agent `legal` becomes its canary, as the pipeline does it."""
    source = write_adapter(folder, 99, base_model_name_or_path=mock_upstream.BASE)
    version = registry.register("legal", str(source), alias="none")
    for state in (State.CANDIDATE, State.CANARY):
        registry.set_state("legal", version.version, state)
    return registry.promote("legal", version.version, actor="test", alias=Alias.CHALLENGER).engine_name


async def answered_by(endpoint: Endpoint, session: str, model: str = "legal") -> tuple[str, str]:
    answer = await endpoint.ask(model, headers={"x-session-id": session})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-loradock-adapter"], answer.headers["x-loradock-reason"]


async def test_a_canary_answers_its_share_until_it_ends(start: StartEndpoint, mock_url: str, tmp_path: Path) -> None:
    endpoint = await start(mock_url, slots=3, cold_policy="wait", training=TrainingSettings(canary_share=0.5))
    with other_process(endpoint) as registry:
        champion = endpoint.gateway.registered.newest["legal"].engine_name
        canary = challenge(registry, tmp_path / "next")
        await endpoint.gateway.refresh()
        sessions = [f"s{number}" for number in range(40)]
        arms = {session: await answered_by(endpoint, session) for session in sessions}
        assert set(arms.values()) == {(champion, "champion"), (canary, "canary")}
        assert arms == {session: await answered_by(endpoint, session) for session in sessions}
        by_name = {await answered_by(endpoint, session, "legal@champion") for session in sessions}
        assert by_name == {(champion, "explicit")}

        registry.set_state("legal", canary.partition("@")[2], State.CANDIDATE)
        await endpoint.gateway.refresh()
        assert {await answered_by(endpoint, session) for session in sessions} == {(champion, "champion")}


async def test_a_rollback_takes_less_than_a_second_and_drops_nothing(
    start: StartEndpoint, mock_url: str, upstream: mock_upstream.Upstream, tmp_path: Path
) -> None:
    endpoint = await start(mock_url, slots=3, cold_policy="wait")
    with other_process(endpoint) as registry:
        before = endpoint.gateway.registered.newest["legal"].engine_name
        promoted = challenge(registry, tmp_path / "next")
        registry.promote("legal", promoted.partition("@")[2], actor="test")
        await endpoint.gateway.refresh()
        assert (await answered_by(endpoint, "first"))[0] == promoted

        upstream.chunk_delay_s = 0.05
        running = [asyncio.ensure_future(stream(endpoint)) for _ in range(IN_FLIGHT)]
        await until(lambda: endpoint.in_flight("legal") == IN_FLIGHT)
        began = time.monotonic()
        await asyncio.to_thread(registry.rollback, "legal", actor="test")
        while (await answered_by(endpoint, f"probe{time.monotonic()}"))[0] != before:
            assert time.monotonic() - began < 1
        took = time.monotonic() - began
        still_running = sum(not each.done() for each in running)
        adapters, texts = zip(*await asyncio.gather(*running), strict=True)
        assert took < 1
        assert still_running == IN_FLIGHT
        assert set(adapters) == {promoted}
        assert all(text.endswith("data: [DONE]\n\n") for text in texts)
        assert {text.count(TOKEN_MARK.decode()) for text in texts} == {STREAM_CHUNKS}


async def stream(endpoint: Endpoint) -> tuple[str, str]:
    """Who answers a stream, and the whole of it."""
    body = {"model": "legal", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    async with endpoint.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == httpx.codes.OK
        return answer.headers["x-loradock-adapter"], (await answer.aread()).decode()
