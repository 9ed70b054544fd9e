"""Whether staging begins, as the engine's process decides it; what a load may say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from serving.engine.worker.bridge import Bridge
from serving.engine.worker.protocol import StagingPlan
from serving.engine.worker.server import LoadRequest

DIGEST = "ab" * 32


class Client:
    """Workers that answer `open` with `answers`, or raise them."""

    def __init__(self, answers: list[str] | Exception) -> None:
        self.output_processor = SimpleNamespace(request_states={})
        self.called: list[str] = []
        self._answers = answers

    async def collective_rpc(self, method: str, args: Any) -> list[Any]:
        self.called.append(method)
        if isinstance(self._answers, Exception):
            raise self._answers
        return self._answers


@pytest.mark.parametrize(
    ("answers", "told"),
    [(["", "no memory"], "no memory"), (RuntimeError(), "RuntimeError"), (RuntimeError("not\nhere"), "not here")],
)
async def test_when_one_worker_cannot_stage_none_does(
    tmp_path: Path, answers: list[str] | Exception, told: str
) -> None:
    client = Client(answers)
    bridge = Bridge(client)
    assert await bridge.open_staging(StagingPlan("", 0, 0, 1, 1, str(tmp_path / "notices"))) == told
    assert client.called == ["loradock_open", "loradock_close"]
    assert not bridge.stages


async def test_memory_that_stays_taken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(["", "no memory"])
    answer = client.collective_rpc

    async def collective_rpc(method: str, args: Any) -> list[Any]:
        if method.endswith("close"):
            raise RuntimeError("still in use")
        return await answer(method, args)

    monkeypatch.setattr(client, "collective_rpc", collective_rpc)
    told = await Bridge(client).open_staging(StagingPlan("", 0, 0, 1, 1, str(tmp_path / "notices")))
    assert told == "no memory; what it took could not be given back: still in use"


async def test_when_all_workers_can_stage_they_do(tmp_path: Path) -> None:
    client = Client(["", ""])
    bridge = Bridge(client)
    assert await bridge.open_staging(StagingPlan("", 0, 0, 1, 1, str(tmp_path / "notices"))) == ""
    assert client.called == ["loradock_open"]
    assert bridge.stages
    bridge.close()


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", DIGEST[:-1], f"{DIGEST}\n", DIGEST.upper()])
def test_a_digest_cannot_be_another_path(digest: str) -> None:
    body = {"name": "a", "id": 1, "path": "/a"}
    msgspec.json.decode(msgspec.json.encode(body | {"digest": DIGEST}), type=LoadRequest)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(body | {"digest": digest}), type=LoadRequest)
