"""What the recorder is told of each request."""

from __future__ import annotations

from serving.recorder import Recorder
from tests.serving.gateway.conftest import StartEndpoint
from tests.serving.gateway.scripted import MODEL, Scripted, delta, event, stream
from tests.serving.test_recorder import Sink


async def test_every_served_request_becomes_an_outcome_and_none_waits_for_the_sink(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    endpoint, sink = await start(scripted_url, MODEL), Sink()
    gateway = endpoint.gateway
    gateway.recorder = Recorder(sink, on_drop=gateway.metrics.drops.inc)
    gateway.recorder.start()
    sink.gate.clear()
    asked = await endpoint.ask("legal", headers={"x-request-id": "r1"}, metadata={"session_id": "s", "k": "v"})
    assert asked.status_code == 200, "though the sink hangs"
    scripted.script = stream(delta("one"), ends=False)
    await endpoint.ask("legal", stream=True, headers={"x-request-id": "r2"})
    scripted.script = stream(delta("one"), event(b"[DONE]"))
    streamed = await endpoint.ask(MODEL, stream=True, headers={"x-request-id": "r3"})
    sink.gate.set()
    await gateway.recorder.stop()
    whole, broken, ended = sink.kept
    assert (whole.request_id, whole.status, whole.response) == ("r1", 200, asked.content)
    assert (whole.agent, whole.session, whole.metadata) == ("legal", "s", {"session_id": "s", "k": "v"})
    assert whole.adapter == asked.headers["x-loradock-adapter"]
    assert b'"k":"v"' in whole.request
    assert (broken.request_id, broken.status, broken.response) == ("r2", 503, None)
    assert (ended.request_id, ended.adapter, ended.response) == ("r3", None, streamed.content)
