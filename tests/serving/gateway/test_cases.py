"""Requests become cases, clients judge them, and everybody sees only what is theirs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from configs.training import TrainingSettings
from serving.auth import add_key
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.scripted import MODEL, Scripted, delta, event, stream
from tests.serving.waiting import until


async def cases(endpoint: Endpoint, key: str | None = None, **query: Any) -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = await endpoint.http.get("/v1/cases", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def recorded(endpoint: Endpoint, count: int) -> list[dict[str, Any]]:
    """The cases, once there are as many."""
    for _ in range(200):
        if len(found := await cases(endpoint)) >= count:
            return found
        await asyncio.sleep(0.05)
    raise TimeoutError(f"{len(found)} cases, not {count}")


async def judge(endpoint: Endpoint, key: str | None = None, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return await endpoint.http.post("/v1/feedback", json=body, headers=headers)


async def test_a_served_request_becomes_a_case_of_its_agent(endpoint: Endpoint) -> None:
    asked = await endpoint.ask("legal", headers={"x-session-id": "s1"}, temperature=0.5, user="u1")
    case = (await recorded(endpoint, 1))[0]
    assert (case["object"], case["source"], case["agent"]) == ("case", "served", "legal")
    assert (case["session"], case["user"]) == ("s1", "u1")
    assert case["messages"] == [{"role": "user", "content": "Hello"}]
    assert case["response"]["content"] == asked.json()["choices"][0]["message"]["content"] == case["target"]
    assert case["adapter"] == asked.headers["x-loradock-adapter"]
    assert case["sampling"]["temperature"] == 0.5
    assert case["reward"] is None


@pytest.mark.parametrize("by", ["header", "body"])
async def test_feedback_right_after_the_answer_finds_its_case(endpoint: Endpoint, by: str) -> None:
    asked = await endpoint.ask("legal")
    name = asked.headers["x-request-id"] if by == "header" else asked.json()["id"]
    told = await judge(endpoint, response_id=name, reward="up")
    assert told.status_code == 200, told.text
    assert (told.json()["reward"], told.json()["reward_source"]) == (1.0, "local")
    corrected = await judge(endpoint, response_id=name, correction="Good day.", source="reviewer")
    assert (corrected.json()["target"], corrected.json()["corrected"]) == ("Good day.", True)
    assert corrected.json()["reward"] == 1.0, "given before, and a correction alone does not take it back"


async def test_the_official_clients_ids_are_enough_for_feedback(endpoint: Endpoint) -> None:
    asked = await endpoint.openai.chat.completions.create(model="legal", messages=[{"role": "user", "content": "x"}])
    for name in (asked.id, asked._request_id):
        assert (await judge(endpoint, response_id=name, reward="down")).json()["reward"] == 0.0


async def test_a_stream_becomes_one_message(start: StartEndpoint, scripted: Scripted, scripted_url: str) -> None:
    endpoint = await start(scripted_url, MODEL)
    scripted.script = stream(delta("one "), delta("two"), event(b"[DONE]"))
    await endpoint.ask("legal", stream=True)
    scripted.script = stream(delta("one"), ends=False)
    await endpoint.ask("legal", stream=True)
    scripted.script = stream(delta("three"), event(b"[DONE]"))
    await endpoint.ask("legal", stream=True)
    found = await recorded(endpoint, 2)
    assert [case["response"] for case in found] == [
        {"role": "assistant", "content": "three"},
        {"role": "assistant", "content": "one two"},
    ], "and none for the stream that broke"


async def test_requests_can_stay_out(start: StartEndpoint, mock_url: str, tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "legal.yaml").write_text("training: {record: false}\n")
    endpoint = await start(mock_url, agents_dir=tmp_path / "agents", home=tmp_path / "home")
    await endpoint.ask("auto:support", headers={"x-loradock-record": "off"})
    await endpoint.ask("auto:legal")
    await endpoint.ask("auto:support", headers={"x-request-id": "kept"})
    assert [case["response_id"] for case in await recorded(endpoint, 1)] == ["kept"]


async def test_recording_can_be_switched_off_for_all(start: StartEndpoint, mock_url: str) -> None:
    endpoint = await start(mock_url, training=TrainingSettings(record=False))
    asked = await endpoint.ask("legal")
    assert not endpoint.gateway.recorder.enabled
    assert await cases(endpoint) == []
    assert (await judge(endpoint, response_id=asked.headers["x-request-id"], reward=1)).status_code == 404


async def test_redaction_comes_before_writing(start: StartEndpoint, mock_url: str) -> None:
    endpoint = await start(mock_url, training=TrainingSettings(redact=True))
    await endpoint.ask("legal", messages=[{"role": "user", "content": "Write to ann@example.org"}])
    assert (await recorded(endpoint, 1))[0]["messages"][0]["content"] == "Write to <EMAIL>"


async def test_feedback_that_cannot_be_taken_is_told(endpoint: Endpoint) -> None:
    asked = await endpoint.ask("legal")
    name = asked.headers["x-request-id"]
    for body, param in (
        ({"response_id": name, "reward": 2}, "reward"),
        ({"response_id": name, "reward": "great"}, "reward"),
        ({"response_id": name, "stars": 5}, "stars"),
        ({"response_id": name}, "reward"),
        ({"reward": 1}, "response_id"),
    ):
        refused = await judge(endpoint, **body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, param), body
    unknown = await judge(endpoint, response_id="req_nobody", reward=1)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "case_not_found")


async def test_cases_are_listed_page_by_page_and_filtered(endpoint: Endpoint) -> None:
    for number in range(5):
        agent = "legal" if number % 2 else "support"
        await endpoint.ask(agent, messages=[{"role": "user", "content": f"question {number}"}])
    await recorded(endpoint, 5)
    first = (await endpoint.http.get("/v1/cases", params={"limit": 3})).json()
    assert (first["object"], first["has_more"], len(first["data"])) == ("list", True, 3)
    assert first["last_id"] == first["data"][-1]["id"]
    second = (await endpoint.http.get("/v1/cases", params={"limit": 3, "after": first["last_id"]})).json()
    assert (second["has_more"], len(second["data"])) == (False, 2)
    ids = [case["id"] for case in first["data"] + second["data"]]
    assert ids == sorted(ids, reverse=True)
    assert len(await cases(endpoint, agent="legal")) == 2
    assert await cases(endpoint, rewarded="true") == []
    assert (await endpoint.http.get("/v1/cases", params={"colour": "red"})).status_code == 422


async def test_cases_are_given_and_deleted_by_hand(endpoint: Endpoint) -> None:
    body = {"agent": "legal", "messages": [{"role": "user", "content": "May I?"}], "response": "No.", "reward": 0.9}
    made = await endpoint.http.post("/v1/cases", json=body | {"user": "u1", "session": "s1"})
    assert made.status_code == 201, made.text
    again = await endpoint.http.post("/v1/cases", json=body)
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])
    refused = await endpoint.http.post("/v1/cases", json=body | {"messages": [{"role": "ghost", "content": "x"}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "messages.0.role")
    assert (await endpoint.http.get(f"/v1/cases/{made.json()['id']}")).json()["target"] == "No."
    other = (await endpoint.http.post("/v1/cases", json=body | {"response": "Yes."})).json()["id"]
    assert (await endpoint.http.delete(f"/v1/cases/{other}")).json()["deleted"] is True
    assert (await endpoint.http.delete("/v1/cases", params={"user": "u1"})).json()["deleted"] == 1
    assert await cases(endpoint) == []
    assert (await endpoint.http.delete("/v1/cases")).status_code == 422
    assert (await endpoint.http.delete(f"/v1/cases/{other}")).status_code == 404


async def test_callers_judge_and_see_their_own_cases_only(start: StartEndpoint, mock_url: str, tmp_path: Path) -> None:
    file = tmp_path / "home" / "api_keys.toml"
    endpoint = await start(mock_url)
    admin, ann, bob = (add_key(file, name, admin=name == "admin") for name in ("admin", "ann", "bob"))
    private = add_key(file, "private", admin=False, record=False)
    await until(lambda: bool(endpoint.gateway.keys) or endpoint.gateway.keys._reload_if_changed())
    asked = await endpoint.ask("legal", headers={"authorization": f"Bearer {ann}"})
    await endpoint.ask("legal", headers={"authorization": f"Bearer {private}"})
    name = asked.headers["x-request-id"]
    assert (await judge(endpoint, ann, response_id=name, reward=1)).json()["reward_source"] == "ann"
    assert (await judge(endpoint, bob, response_id=name, reward=0)).status_code == 404
    assert (await judge(endpoint, admin, response_id=name, reward=0.5)).status_code == 200
    assert len(await cases(endpoint, ann)) == len(await cases(endpoint, admin)) == 1
    assert await cases(endpoint, bob) == await cases(endpoint, private) == []
    headers = {"authorization": f"Bearer {ann}"}
    forbidden = await endpoint.http.delete("/v1/cases", params={"user": "x"}, headers=headers)
    assert forbidden.status_code == 403
