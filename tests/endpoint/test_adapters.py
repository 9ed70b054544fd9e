"""Adapters over HTTP: what is refused, what changes, and that neither disturbs what serves."""

import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI
from safetensors.numpy import load_file, save_file

from configs.embedded import ADAPTERS, BASE
from tests.endpoint.conftest import Server
from training.demo.variants import make_random, make_variant

Spoil = Callable[[Path], None]
USER = [{"role": "user", "content": "The parcel is broken."}]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def change_config(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | changes))

    return spoil


def pickle_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def nan_weights(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, folder / WEIGHTS)


def wrong_shapes(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    wider = {
        name: np.concatenate([weight] * 2, axis=1 if ".lora_A." in name else 0) for name, weight in weights.items()
    }
    save_file(wider, folder / WEIGHTS)


def high_rank(folder: Path) -> None:
    shutil.rmtree(folder)
    make_random(BASE, folder, 256, seed=1)


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (pickle_weights, "pickle"),
        (change_config(use_dora=True), "DoRA"),
        (high_rank, "rank"),
        (change_config(base_model_name_or_path="meta-llama/Llama-3.1-8B"), "Llama-3.1-8B"),
        (wrong_shapes, "maps 1536 to 512, but"),
        (nan_weights, "NaN"),
        (change_config(modules_to_save=["lm_head"]), "modules_to_save"),
        (change_config(bias="all"), "bias"),
        (truncated, "corrupt"),
        (change_config(peft_type="PREFIX_TUNING"), "PREFIX_TUNING"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    server: Server, tmp_path: Path, spoil: Spoil, word: str
) -> None:
    folder = Path(shutil.copytree(ADAPTERS / "support-agent", tmp_path / "spoilt"))
    spoil(folder)
    before = server.get("/v1/adapters?include_retired=true").json()
    answer = server.post("/v1/adapters", {"name": "spoilt", "source": str(folder), "agent": "spoilt"})
    assert answer.status_code == 422
    assert word.lower() in answer.json()["error"]["message"].lower()
    after = server.get("/v1/adapters?include_retired=true").json()
    assert [each["digest"] for each in after["data"]] == [each["digest"] for each in before["data"]]
    assert not list((server.home / "staging").glob("*/*"))


@pytest.mark.parametrize("name", ["../evil", "a/b", "Upper", "", "a" * 65, "auto", "loradock-tiny", ".hidden", "a b"])
def test_names_are_checked(server: Server, name: str) -> None:
    answer = server.post("/v1/adapters", {"name": name, "source": str(ADAPTERS / "support-agent")})
    assert answer.status_code in (400, 422)
    assert "name" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [{}, {"name": "x"}, {"name": "x", "source": "/", "surprise": 1}, {"name": 1, "source": []}, [], "text"]
)
def test_malformed_registrations_are_422(server: Server, body: object) -> None:
    assert server.post("/v1/adapters", body).status_code == 422


def test_the_life_of_an_adapter(server: Server, client: OpenAI, tmp_path: Path) -> None:
    first = make_variant(ADAPTERS / "support-agent", tmp_path / "first", seed=1)
    second = make_variant(ADAPTERS / "support-agent", tmp_path / "second", seed=2)
    with tarfile.open(tmp_path / "second.tar.gz", "w:gz") as archive:
        archive.add(second, arcname="second")

    made = server.post("/v1/adapters", {"name": "life", "source": str(first), "agent": "life"})
    assert made.status_code == 201
    assert set(made.json()) == {"name", "version", "agent", "state"}
    assert made.json()["state"] == "champion"  # an agent's first
    shutil.rmtree(first)  # what was registered is ours now
    assert served_by(client, "life") == f"life@{made.json()['version']}"

    replaced = server.post("/v1/adapters", {"name": "life", "source": str(tmp_path / "second.tar.gz"), "agent": "life"})
    assert replaced.status_code == 201
    assert replaced.json()["state"] == "validated"
    assert served_by(client, "life") == f"life@{made.json()['version']}"

    began = time.monotonic()
    assert server.post("/v1/adapters/life/promote", {"version": replaced.json()["version"]}).status_code == 200
    assert served_by(client, "life") == f"life@{replaced.json()['version']}"
    assert time.monotonic() - began < 2
    assert server.post("/v1/adapters/life/rollback").json()["version"] == made.json()["version"]
    assert served_by(client, "life") == f"life@{made.json()['version']}"

    assert server.post("/v1/adapters/life/pin").json()["pinned"]
    assert server.post("/v1/adapters/life/unload").status_code == 409
    assert not server.post("/v1/adapters/life/unpin").json()["pinned"]
    assert server.post("/v1/adapters/life/unload").status_code == 200
    assert server.post("/v1/adapters/life/load").json()["residency"]["state"] == "ready"

    shown = server.get("/v1/adapters/life").json()
    assert {version["version"] for version in shown["versions"]} == {made.json()["version"], replaced.json()["version"]}
    assert {"register", "promote", "rollback", "pin"} <= {entry["action"] for entry in shown["audit"]}

    assert server.delete("/v1/adapters/life").status_code == 200
    assert served_by(client, "auto:life") == "none"
    assert server.get("/v1/adapters/no-such").status_code == 404


def test_a_stored_adapter_that_vanishes_fails_alone(server: Server, client: OpenAI, tmp_path: Path) -> None:
    made = make_variant(ADAPTERS / "support-agent", tmp_path / "gone", seed=3)
    version = server.post("/v1/adapters", {"name": "gone", "source": str(made), "agent": "gone"}).json()["version"]
    assert server.post("/v1/adapters/gone/unload").status_code == 200
    stored = next((server.home / "adapters" / "gone").glob(f"{version}*"))
    wait_absent(server, "gone")
    shutil.rmtree(stored)
    refused = server.post("/v1/chat/completions", {"model": "gone", "messages": USER})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "adapter_load_failed"
    assert served_by(client, "support-agent").startswith("support-agent@")
    engine = server.get("/ready").json()["engines"][0]
    assert (engine["state"], engine["restarts"]) == ("ready", 0)


def wait_absent(server: Server, name: str) -> None:
    deadline = time.monotonic() + 10
    while server.get(f"/v1/adapters/{name}").json()["residency"]["state"] != "absent":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def served_by(client: OpenAI, model: str) -> str:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=USER, max_tokens=2)
    return raw.headers["x-loradock-adapter"]
