"""Load on one endpoint, and what it felt like.

    python -m bench.load URL [--model auto] [--stream] [--concurrency 16 | --rate 200] [--seconds 2]

Closed loop (`--concurrency`): each connection sends its next request when it has the last answer. Open loop (`--rate`):
requests are due at seeded times whatever the answers do, and latency counts from when a request was due, not from when
it could be sent, so a target that falls behind shows it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.canned import STREAM_CHUNKS
from bench.http_client import Ask
from bench.loops import ClosedLoop, OpenLoop, Plan
from bench.tasks import tasks

DISTINCT_REQUESTS = 4096


def asks(plan: Plan) -> Iterator[Ask]:
    """Requests without end. Every other one names its agent and asks for usage; the others leave both to the router."""
    parts = urlsplit(plan.url)
    made = list(itertools.islice(_payloads(plan, parts.netloc), DISTINCT_REQUESTS))
    return itertools.cycle([Ask(payload, plan.stream, plan.tokens) for payload in made])


def _payloads(plan: Plan, host: str) -> Iterator[bytes]:
    for number, (agent, task) in enumerate(tasks(plan.seed)):
        hinted = number // 4 % 2 == 0  # topics come four in turn: each is hinted every other time
        body: dict[str, Any] = {"model": plan.model, "messages": [{"role": "user", "content": task}]}
        body |= {"max_tokens": plan.max_tokens, "temperature": 0}
        if plan.stream:
            body |= {"stream": True} | ({"stream_options": {"include_usage": True}} if hinted else {})
        content = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        if hinted:
            head += f"x-agent: {agent or 'support'}\r\n"
        yield f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


async def measure(plan: Plan) -> dict[str, Any]:
    """Run `plan` in the running loop."""
    requests = asks(plan)
    return await (ClosedLoop(plan, requests) if plan.rate is None else OpenLoop(plan, requests)).run()


def main() -> None:
    """Parse arguments, load, print."""
    parser = argparse.ArgumentParser(prog="bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--concurrency", type=int, default=1, help="closed loop: connections")
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--arrivals", choices=("poisson", "uniform"), default="poisson")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--warmup", type=float, default=0.3, help="seconds before the window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=STREAM_CHUNKS)
    parser.add_argument("--any-tokens", action="store_true", help="the upstream is not the mock: take any answer")
    arguments = vars(parser.parse_args())
    plan = Plan(tokens=None if arguments.pop("any_tokens") else STREAM_CHUNKS, **arguments)
    gc.disable()
    print(json.dumps(uvloop.run(measure(plan))))


if __name__ == "__main__":
    main()
