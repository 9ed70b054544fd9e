import itertools
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.canned import STREAM_CHUNKS, chat_answer
from bench.load import asks, measure
from bench.loops import Plan, due_times
from bench.mock_upstream import BASE
from bench.tally import spread
from bench.tasks import TASK_CHARACTERS, tasks
from tests.bench.conftest import StartMock

WHOLE = chat_answer(BASE).whole


def plan(url: str, **changes: Any) -> Plan:
    settings: dict[str, Any] = {"url": url, "model": BASE, "seconds": 0.2, "warmup": 0.05}
    return Plan(**settings | changes)


@contextmanager
def server(answer: Callable[[], bytes | None]) -> Iterator[str]:
    """A server that writes `answer()` after each read, or closes for None: for faults the mock does not have."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                data = answer()
                if data is None:
                    return
                self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("stream", [False, True])
async def test_closed_loop_keeps_every_connection_busy(start_mock: StartMock, stream: bool) -> None:
    url = start_mock("--latency-ms", "20")
    report = await measure(plan(url, concurrency=4, stream=stream, seconds=0.5))
    assert (report["errors"], report["unfinished"]) == ({}, 0)
    assert report["latency_ms"]["p50"] >= 20
    assert 0.5 * 4 / 0.02 * 0.3 < report["requests"] <= 4 / 0.02 * 0.5 + 4
    assert (report["ttft_ms"] is not None) == stream


async def test_closed_loop_on_a_slow_target_goes_on_until_there_are_answers(start_mock: StartMock) -> None:
    report = await measure(plan(start_mock("--latency-ms", "300"), concurrency=2, seconds=0.2))
    assert report["requests"] >= 2
    assert report["seconds"] > 0.2


async def test_open_loop_counts_the_time_a_request_was_due(start_mock: StartMock) -> None:
    report = await measure(plan(start_mock("--latency-ms", "20"), rate=100.0, arrivals="uniform", seconds=0.5))
    assert report["requests"] == pytest.approx(50, abs=1)
    assert report["latency_ms"]["p50"] >= 20
    assert report["unfinished"] == 0


async def test_open_loop_shows_a_target_that_falls_behind() -> None:
    gate = threading.Semaphore(1)

    def one_at_a_time() -> bytes:
        with gate:
            threading.Event().wait(0.02)
        return WHOLE

    with server(one_at_a_time) as url:
        report = await measure(plan(url, rate=100.0, arrivals="uniform", seconds=0.5, warmup=0.0))
    # 50 requests due in 0.5 s are served one each 20 ms: the last waits about half a second
    assert report["latency_ms"]["max"] > 300
    assert report["rate_per_s"] < 60


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}", "status 503"),
        (WHOLE.replace(b" beat63", b" ------"), "incomplete answer"),
        (None, "disconnected"),
    ],
)
async def test_flawed_answers_are_counted_not_timed(answer: bytes | None, reason: str) -> None:
    with server(lambda: answer) as url:
        report = await measure(plan(url, concurrency=2))
    assert report["requests"] == 0
    assert report["errors"][reason] > 0
    assert set(report["errors"]) == {reason}


def stream_bytes(body: bytes, sizes: Iterator[int]) -> bytes:
    """`body` as a chunked response, cut into chunks of `sizes`."""
    wire, start = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 0
    while start < len(body):
        piece = body[start : start + next(sizes)]
        wire += f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        start += len(piece)
    return wire + b"0\r\n\r\n"


def events(count: int, done: bool = True) -> bytes:
    lines = [f'data: {{"choices":[{{"delta":{{"content":" beat{number:02d}"}}}}]}}\n\n' for number in range(count)]
    return "".join(lines).encode() + b"data: [DONE]\n\n" * done


@pytest.mark.parametrize("size", [1, 3, 16, 1000, 100_000])
async def test_streams_cut_at_any_byte_are_complete(size: int) -> None:
    wire = stream_bytes(events(STREAM_CHUNKS), itertools.repeat(size))
    with server(lambda: wire) as url:
        report = await measure(plan(url, stream=True))
    assert report["requests"] > 0
    assert report["errors"] == {}


@pytest.mark.parametrize("body", [events(STREAM_CHUNKS - 1), events(STREAM_CHUNKS, done=False)])
async def test_streams_that_lost_something_are_errors(body: bytes) -> None:
    wire = stream_bytes(body, itertools.repeat(200))
    with server(lambda: wire) as url:
        report = await measure(plan(url, stream=True))
    assert set(report["errors"]) == {"incomplete answer"}


async def test_nobody_listening_is_an_error_and_no_hang() -> None:
    with server(lambda: WHOLE) as url:
        pass
    report = await measure(plan(url, rate=50.0))
    assert set(report["errors"]) == {"refused"}


def test_due_times_are_seeded_and_keep_the_rate() -> None:
    settings = plan("http://x:1", rate=200.0, seconds=20.0, warmup=0.0, seed=7)
    times = list(due_times(settings, 100.0))
    assert times == list(due_times(settings, 100.0))
    assert len(times) == pytest.approx(4000, rel=0.1)
    assert all(100.0 < early < late < 120.0 for early, late in itertools.pairwise(times))


def test_half_of_the_requests_name_their_agent_and_none_are_equal() -> None:
    made = list(itertools.islice(asks(plan("http://x:1", model="auto", stream=True)), 64))
    heads, bodies = zip(*(ask.payload.split(b"\r\n\r\n", 1) for ask in made), strict=True)
    parsed = [json.loads(body) for body in bodies]
    assert sum(b"x-agent: " in head for head in heads) == 32
    assert {body["model"] for body in parsed} == {"auto"}
    assert sum("stream_options" in body for body in parsed) == 32
    assert len({body["messages"][0]["content"] for body in parsed}) == 64


def test_tasks_are_seeded_and_of_a_realistic_length() -> None:
    first = list(itertools.islice(tasks(3), 200))
    assert first == list(itertools.islice(tasks(3), 200))
    assert {agent for agent, _ in first} == {"support", "legal", "security", None}
    assert all(abs(len(task) - TASK_CHARACTERS) <= 60 for _, task in first)


def test_spread_takes_nearest_ranks() -> None:
    assert spread([]) is None
    assert spread([0.001]) == {"p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0}
    assert spread([number / 1000 for number in range(1, 101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
