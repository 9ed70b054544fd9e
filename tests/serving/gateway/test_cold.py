"""Cold adapters: the base answers for them or the request waits, as configured, and the headers say which."""

from __future__ import annotations

import asyncio

import httpx

from bench.canned import response
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.scripted import MODEL, Request, Scripted
from tests.serving.gateway.test_errors import check
from tests.serving.waiting import until


def told(answered: httpx.Response) -> tuple[str, str, str]:
    """Adapter, reason and state, as the headers tell them."""
    assert answered.status_code == 200, answered.text
    headers = answered.headers
    return headers["x-loradock-adapter"], headers["x-loradock-reason"], headers["x-loradock-adapter-state"]


class Gate:
    """A load that takes until it is let through."""

    def __init__(self, scripted: Scripted) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self._scripted = scripted
        scripted.load_script = self.load

    async def load(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.reached.set()
        await self.open.wait()
        self._scripted.adapters[request.json["lora_name"]] = request.json["lora_path"]
        writer.write(response("200 OK", b"Success"))


async def refuse(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(response("400 Bad Request", b'{"error":{"message":"rank too high","type":"x","code":400}}'))


def name_of(endpoint: Endpoint, name: str) -> str:
    return endpoint.gateway.registered.newest[name].engine_name


async def test_first_cold_then_warm(faulty: Endpoint) -> None:
    name = name_of(faulty, "legal")
    assert told(await faulty.ask("legal")) == (name, "champion", "cold")
    assert told(await faulty.ask("legal")) == (name, "champion", "warm")


async def test_past_cold_wait_the_base_answers_and_the_load_goes_on(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    endpoint, gate = await start(scripted_url, MODEL, cold_wait_ms=30), Gate(scripted)
    answered = await endpoint.ask("legal")
    assert told(answered) == ("none", "cold_fallback", "fallback")
    assert answered.headers["x-loradock-agent"] == "legal"
    assert answered.headers["x-loradock-model"] == MODEL
    assert answered.json()["model"] == "legal"
    assert scripted.asked[-1].json["model"] == MODEL
    assert float(answered.headers["x-loradock-overhead-ms"]) < 25, "the cold wait is no overhead"
    gate.open.set()
    await until(lambda: endpoint.gateway.is_warm(endpoint.gateway.registered.newest["legal"]))
    assert told(await endpoint.ask("legal"))[2] == "warm"
    assert scripted.loads == 1


async def test_no_patience_at_all_still_begins_the_load(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    endpoint = await start(scripted_url, MODEL, cold_wait_ms=0)
    assert told(await endpoint.ask("legal"))[1] == "cold_fallback"
    await until(lambda: endpoint.gateway.is_warm(endpoint.gateway.registered.newest["legal"]))


async def test_with_policy_wait_a_request_waits_and_gives_up_in_the_end(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    endpoint = await start(scripted_url, MODEL, cold_wait_ms=0, cold_policy="wait", cold_timeout_s=0.5)
    gate = Gate(scripted)
    asked = asyncio.ensure_future(endpoint.ask("legal"))
    await gate.reached.wait()
    gate.open.set()
    assert told(await asked) == (name_of(endpoint, "legal"), "champion", "cold")
    gate.open.clear()
    gave_up = await endpoint.ask("support")
    check(gave_up, 429, code="adapter_wait_timeout")
    assert gave_up.headers["retry-after"]
    gate.open.set()
    assert endpoint.idle()


async def test_an_exact_version_never_falls_back(start: StartEndpoint, scripted: Scripted, scripted_url: str) -> None:
    endpoint, gate = await start(scripted_url, MODEL, cold_wait_ms=0), Gate(scripted)
    name = name_of(endpoint, "legal")
    asked = asyncio.ensure_future(endpoint.ask(name))
    await gate.reached.wait()
    assert not asked.done()
    gate.open.set()
    assert told(await asked) == (name, "explicit", "cold")
    assert scripted.asked[-1].json["model"] == name


async def test_a_refused_adapter_falls_back_or_fails_as_configured(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    scripted.load_script = refuse
    endpoint = await start(scripted_url, MODEL)
    assert told(await endpoint.ask("legal")) == ("none", "load_failed", "fallback")
    error = check(await endpoint.ask(name_of(endpoint, "legal")), 503, code="adapter_load_failed")
    assert "rank too high" in error["message"]
    assert told(await endpoint.ask("support")) == ("none", "load_failed", "fallback")
    assert endpoint.idle()


async def test_with_policy_wait_a_refused_adapter_is_an_error(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    scripted.load_script = refuse
    endpoint = await start(scripted_url, MODEL, cold_policy="wait")
    check(await endpoint.ask("legal"), 503, code="adapter_load_failed")
    check(await endpoint.http.post("/v1/adapters/support/load"), 503, code="adapter_load_failed")
    assert endpoint.idle()


async def test_fifty_requests_for_a_cold_adapter_are_one_load(endpoint: Endpoint) -> None:
    answers = await asyncio.gather(*(endpoint.ask("legal") for _ in range(50)))
    assert {told(answer)[0] for answer in answers} == {name_of(endpoint, "legal")}
    shown = (await endpoint.http.get("/v1/adapters/legal")).json()
    assert shown["residency"]["loads"] == 1
    assert endpoint.idle()


async def test_more_adapters_than_slots_take_turns(endpoint: Endpoint) -> None:
    names = ["legal", "support", "extra"] * 8
    answers = await asyncio.gather(*(endpoint.ask(name) for name in names))
    assert [told(answer)[0] for answer in answers] == [name_of(endpoint, name) for name in names]
    assert endpoint.idle()
