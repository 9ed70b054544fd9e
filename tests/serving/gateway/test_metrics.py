"""The exposition: valid, bounded, and about everything that operators watch."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from configs.settings import EngineSettings
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.scripted import Scripted

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(endpoint: Endpoint) -> Samples:
    """Every sample; fails where a family stands twice or a sample is repeated, which Prometheus refuses."""
    answered = await endpoint.http.get("/metrics")
    assert answered.headers["content-type"].startswith("text/plain")
    families, samples = set[str](), Samples()
    for family in text_string_to_metric_families(answered.text):
        assert family.name not in families, f"{family.name} stands twice"
        families.add(family.name)
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} stands twice"
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_requests_routes_and_residency_are_counted(endpoint: Endpoint) -> None:
    for model in ("legal", "legal", "auto:nobody", "unknown"):
        await endpoint.ask(model)
    await endpoint.http.get("/v1/adapters/legal")
    await endpoint.http.get("/v1/adapters/support")
    samples = await scrape(endpoint)
    chat = "/v1/chat/completions"
    assert value(samples, "loradock_requests_total", path=chat, status="200") == 3
    assert value(samples, "loradock_requests_total", path=chat, status="404") == 1
    assert value(samples, "loradock_requests_total", path="/v1/adapters/{name}", status="200") == 2
    assert value(samples, "loradock_routes_total", reason="champion", agent="legal") == 2
    assert value(samples, "loradock_adapters", engine="base", state="ready") == 1
    assert value(samples, "loradock_adapter_slots", engine="base", use="used") == 1
    assert value(samples, "loradock_adapter_load_seconds_count", engine="base", outcome="ok") == 1
    assert value(samples, "loradock_engine_up", engine="base", base="mock-base") == 1
    assert value(samples, "loradock_overhead_seconds_count") == 3
    assert value(samples, "loradock_requests_in_flight") == 0
    assert value(samples, "loradock_recorder_drops_total") == 0


async def test_clients_that_make_up_names_do_not_grow_the_metrics(endpoint: Endpoint) -> None:
    async def invent(number: int) -> None:
        await endpoint.ask(f"auto:agent-{number}", headers={"x-session-id": str(number), "x-request-id": str(number)})
        await endpoint.ask("auto", headers={"x-agent": f"agent-{number}"}, metadata={"agent": f"a{number}"})
        await endpoint.ask(f"model-{number}")
        for method, path in (
            ("GET", f"/p{number}"),
            ("GET", f"/v1/models/m{number}"),
            ("PATCH", f"/v1/models/{number}"),
        ):
            await endpoint.http.request(method, path)

    await invent(0)
    await scrape(endpoint)  # which is a request as well
    before = (await scrape(endpoint)).keys()
    for number in range(1, 20):
        await invent(number)
    assert {key for key in (await scrape(endpoint)).keys() - before if "_created" not in key[0]} == set()


async def test_several_engines_metrics_make_one_valid_exposition(
    start: StartEndpoint, mock_url: str, scripted: Scripted, scripted_url: str
) -> None:
    more = (
        EngineSettings(name="second", kind="vllm-remote", url=mock_url, model="mock-base", served_name="second"),
        EngineSettings(name="third", kind="openai", url=scripted_url, model="third"),
    )
    endpoint = await start(mock_url, more_engines=more)
    await endpoint.ask("mock-base")
    samples = await scrape(endpoint)
    for engine in ("base", "second"):
        assert value(samples, "mock_requests_total", engine_name=engine) == 1
        assert value(samples, "vllm:num_requests_running", engine="0", model_name="mock-base", engine_name=engine) == 0
    assert value(samples, "loradock_engine_up", engine="third", base="third") == 1
