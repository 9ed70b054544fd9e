"""What the flags of the profile are for, seen through the real engine."""

from __future__ import annotations

import json

import pytest

from serving.engine.process import VllmEngine
from tests.engine import ask

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a ticket",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"id": {"enum": ["t1", "t2"]}},
            "required": ["id"],
            "additionalProperties": False,
        },
    },
}


async def test_structured_output_is_json_of_the_schema_without_endless_white_space(vllm_engine: VllmEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
        "required": ["label", "sure"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": True}}
    for temperature in (0, 1):
        status, answer = await ask(
            vllm_engine,
            vllm_engine.base_name,
            response_format=response_format,
            max_tokens=60,
            temperature=temperature,
            seed=1,
        )
        assert status == 200
        content = json.loads(answer["choices"][0]["message"]["content"])
        assert content.keys() == {"label", "sure"}
        assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "function": {"name": "look_up"}}])
async def test_tools_are_accepted(vllm_engine: VllmEngine, choice: object) -> None:
    status, answer = await ask(vllm_engine, vllm_engine.base_name, tools=[TOOL], tool_choice=choice, max_tokens=200)
    assert status == 200, answer
    if choice not in ("auto", "none"):
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "look_up"
        assert json.loads(call["function"]["arguments"])["id"] in {"t1", "t2"}


async def test_usage_tells_what_the_prefix_cache_saved(vllm_engine: VllmEngine) -> None:
    text = "The same long clause, over and over. " * 40
    await ask(vllm_engine, vllm_engine.base_name, messages=[{"role": "user", "content": text}])
    _, answer = await ask(vllm_engine, vllm_engine.base_name, messages=[{"role": "user", "content": text}])
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_a_prompt_past_the_context_and_an_unknown_model_are_4xx_and_harm_nothing(vllm_engine: VllmEngine) -> None:
    status, answer = await ask(
        vllm_engine, vllm_engine.base_name, messages=[{"role": "user", "content": "clause " * 10_000}]
    )
    assert status == 400
    assert str(vllm_engine.max_context) in answer["error"]["message"]
    assert (await ask(vllm_engine, "nobody"))[0] == 404
    assert (await ask(vllm_engine, vllm_engine.base_name))[0] == 200


async def test_the_engines_own_way_of_loading_adapters_is_closed(vllm_engine: VllmEngine) -> None:
    async with vllm_engine.open("/v1/load_lora_adapter", b'{"lora_name": "x", "lora_path": "/x"}') as response:
        assert response.status == 404
