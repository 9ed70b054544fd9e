"""An endpoint whose models know what a test says, and that fails as a test says.

It renders a conversation as vLLM would with a template of one letter a role, and a byte is a token.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

END, AFTER = "\x02", "\n"
Model = Callable[[str], str]


def render(messages: list[dict[str, Any]], *, opened: bool = False, closed: bool = True) -> list[int]:
    text = "".join(f"{message['role'][0]}:{message['content']}{END}{AFTER}" for message in messages)
    if not closed:
        text = text.removesuffix(END + AFTER)
    return list((text + ("a:" if opened else "")).encode())


@dataclass
class Stub:
    """`models` by name answer a question; `sure` is the log probability a token of anything that they are asked about.

    `faults` are answered first, each once: a status, and seconds of `Retry-After` where there are any; before them the
    connection breaks `breaks` times.
    """

    models: dict[str, Model]
    url: str = ""
    sure: Mapping[str, float] = field(default_factory=dict)
    breaks: int = 0
    faults: list[tuple[int, str | None]] = field(default_factory=list)
    refuse: str | None = None
    answered_by: str | None = None
    system_prompt: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    recorded: int = 0
    busiest: int = 0
    running: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        model, messages = body["model"], list(body["messages"])
        if model not in self.models:
            return 404, {"error": {"message": f"no model {model}"}}
        if self.refuse and self.refuse in str(messages[0]["content"]):
            return 400, {"error": {"message": "the prompt is too long"}}
        if self.system_prompt:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        scored = body.get("prompt_logprobs") is not None
        ids = render(messages, opened=not scored, closed=not body.get("continue_final_message", False))
        text = "" if scored else self.models[model](str(messages[-1]["content"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        document = {"choices": [choice], "prompt_token_ids": ids, "usage": {"completion_tokens": len(text)}}
        if scored:
            told = [None, *({str(token): {"logprob": self.sure.get(model, -1.0)}} for token in ids[1:])]
            document["prompt_logprobs"] = told
        return 200, document


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """`stub` on a port of its own, as `stub.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with stub.lock:
                stub.asked.append(body)
                stub.recorded += self.headers.get("x-loradock-record") != "off"
                if stub.breaks:
                    stub.breaks -= 1
                    self.close_connection = True
                    return
                stub.running["now"] += 1
                stub.busiest = max(stub.busiest, stub.running["now"])
                fault = stub.faults.pop(0) if stub.faults else None
            status, document = (fault[0], {"error": {"message": "not now"}}) if fault else stub.answer(body)
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header(
                "x-loradock-adapter", stub.answered_by or (body["model"] if "@" in body["model"] else "none")
            )
            if fault and fault[1] is not None:
                self.send_header("retry-after", fault[1])
            self.end_headers()
            with stub.lock:
                stub.running["now"] -= 1
            self.wfile.write(data)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
