"""A running endpoint for commands to talk to: the real app, registry and router over an engine that needs no model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from safetensors.numpy import save_file

from adapters_registry import AdapterRegistry, BaseModelSpec, open_database
from adapters_registry.model import AdapterVersion
from configs.agents import load_presets
from configs.settings import Settings, load_settings
from router import Router
from serving.auth import KeyRing
from serving.engine.base import EngineState, EngineStatus
from serving.errors import AdapterLoadFailed
from serving.fleet import LocalFleet
from serving.gateway import Gateway, create_app
from serving.metrics import Metrics
from serving.recorder import Recorder

BASE = "tiny"


@dataclass
class Said:
    """What the engine answers to one request, whole or as a stream."""

    body: dict[str, Any]
    breaks_off: bool
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    async def read(self) -> bytes:
        message = {"role": "assistant", "content": self._text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json.dumps(self._event([choice], usage=self._usage)).encode()

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._text:
            yield self._data(self._event([{"index": 0, "delta": {"content": piece}, "finish_reason": None}]))
        if self.breaks_off:
            return
        yield self._data(self._event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        yield self._data(self._event([], usage=self._usage))
        yield b"data: [DONE]\n\n"

    @property
    def _text(self) -> str:
        """An adapter repeats the last word; the base does not know."""
        return "?" if self.body["model"] == BASE else str(self.body["messages"][-1]["content"]).split()[-1]

    @property
    def _usage(self) -> dict[str, int]:
        words = len(self._text)
        return {"prompt_tokens": 3, "completion_tokens": words, "total_tokens": 3 + words}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": "c", "object": "chat", "created": 1, "model": self.body["model"], "choices": choices, **more}

    @staticmethod
    def _data(event: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(event).encode() + b"\n\n"


class Parrot:
    """An engine whose adapters say the prompt's last word again."""

    name = "cage"
    base_name = BASE
    base_aliases = ()
    upstream_model = BASE
    cost_per_mtok = 0.0
    tokens_per_s = None
    slots = 3
    max_lora_rank = 16
    max_context = 512
    model_path = None
    staging = False
    loads_at_once = 1

    def __init__(self) -> None:
        self.status = EngineStatus(EngineState.READY, 1, 0, "ready")
        self.refuse: set[str] = set()
        self.breaks_off = False

    async def start(self) -> None: ...

    async def stop(self, grace_s: float = 10.0) -> None: ...

    async def wait_ready(self, timeout_s: float) -> None: ...

    def on_change(self, callback: Callable[[EngineStatus], None]) -> None: ...

    async def prepare(self, adapter: AdapterVersion) -> None:
        pass

    async def stage(self, adapter: AdapterVersion) -> None:
        pass

    async def load(self, adapter: AdapterVersion) -> None:
        if adapter.name in self.refuse:
            raise AdapterLoadFailed(f"{adapter.engine_name} cannot be loaded: refused")

    async def unload(self, engine_name: str, engine_id: int) -> None: ...

    @contextlib.asynccontextmanager
    async def open(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> AsyncIterator[Said]:
        request = json.loads(body)
        kind = "text/event-stream" if request.get("stream") else "application/json"
        yield Said(request, self.breaks_off, headers={"content-type": kind})

    async def scrape_metrics(self) -> bytes:
        return b""


@dataclass(frozen=True)
class Running:
    """The endpoint at `url`, whose engine can be told to misbehave."""

    url: str
    engine: Parrot


@contextlib.contextmanager
def running(home: Path, **flags: Any) -> Iterator[Running]:
    """An endpoint on a free port, in a thread of its own."""
    settings = load_settings({"home": home, **flags}, environ={}).settings
    engine = Parrot()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(_gateway(settings, engine)), log_config=None))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", engine)
        finally:
            server.should_exit = True
            thread.join()


def _gateway(settings: Settings, engine: Parrot) -> Gateway:
    metrics = Metrics()
    presets = load_presets(None)
    settings.home.mkdir(parents=True, exist_ok=True)
    base = BaseModelSpec(BASE, max_lora_rank=16)
    return Gateway(
        settings,
        fleet=LocalFleet([engine], metrics, prefetch=False),
        registry=AdapterRegistry(open_database(settings.database), settings.home, bases={BASE: base}),
        presets=presets,
        keys=KeyRing(settings.keys_file),
        metrics=metrics,
        recorder=Recorder(None, on_drop=metrics.drops.inc),
        router=Router.from_presets(presets),
    )


def write_adapter(folder: Path, seed: int = 0) -> Path:
    """A PEFT folder for the base."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": BASE,
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw = np.random.default_rng(seed)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{layer}.lora_A.weight": draw.standard_normal((4, 16), dtype=np.float32),
        f"{layer}.lora_B.weight": draw.standard_normal((16, 4), dtype=np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
