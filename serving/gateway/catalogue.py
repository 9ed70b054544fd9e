"""`/v1/models`, `/v1/agents`, `/v1/route`: what can be asked for, and what would answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from router import resolve_agent
from serving.errors import NotFound
from serving.gateway.body import ParsedBody
from serving.gateway.exchange import headers_of, text
from serving.gateway.state import Gateway

_CREATED = 1_760_000_000
"""`created` of what has no birthday: bases and agents"""


def catalogue_router(gateway: Gateway) -> APIRouter:
    """The routes, bound to `gateway`."""
    router = APIRouter(prefix="/v1", tags=["catalogue"])

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Everything that `model` may name: the router, bases, agents, adapters and their versions."""
        return {"object": "list", "data": _models(gateway)}

    @router.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """One of them."""
        for entry in _models(gateway):
            if entry["id"] == model:
                return entry
        raise NotFound(f"The model `{model}` does not exist", param="model", code="model_not_found")

    @router.get("/agents")
    async def agents() -> dict[str, Any]:
        """Agents: presets and those that have adapters, with what serves them."""
        return {"object": "list", "data": _agents(gateway)}

    @router.post("/route")
    async def route(request: Request) -> dict[str, Any]:
        """The decision for a chat request, without running it: the body is that of `/v1/chat/completions`."""
        body = ParsedBody("/v1/chat/completions", await request.body())
        headers = headers_of(request.scope)
        task = body.task(
            agent=text(headers.get(b"x-agent")),
            session=text(headers.get(b"x-session-id")),
            owner=request.state.caller.name,
            wishes=request.state.caller.wishes,
        )
        return gateway.explain(task)

    return router


def _model(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "loradock", "kind": kind} | more


def _models(gateway: Gateway) -> list[dict[str, Any]]:
    registered = gateway.registered
    entries = {"auto": _model("auto", "router")}
    for engine in gateway.fleet.engines:
        entries[engine.base_name] = _model(
            engine.base_name, "base", engine=engine.name, max_model_len=engine.max_context
        )
    for agent in registered.agents:
        champion = registered.champion(agent)
        entries[agent] = _model(agent, "agent", adapter=champion.engine_name if champion else None)
    for name, version in registered.newest.items():
        entries.setdefault(name, _model(name, "adapter", adapter=version.engine_name, parent=version.base))
    for name, version in registered.versions.items():
        created = int(version.created_at.timestamp())
        entries[name] = _model(name, "adapter_version", created=created, parent=version.base, agent=version.agent)
    return list(entries.values())


def _agents(gateway: Gateway) -> list[dict[str, Any]]:
    registered = gateway.registered
    listed = []
    for name, aliases in registered.agents.items():
        preset = resolve_agent(name, gateway.presets)
        listed.append(
            {
                "object": "agent",
                "name": name,
                "preset": preset,
                "description": gateway.presets[preset].description if preset else None,
                "champion": aliases.champion,
                "challenger": aliases.challenger,
            }
        )
    covered = {entry["preset"] for entry in listed}
    for name, known in gateway.presets.items():
        if name not in covered:
            listed.append(
                {
                    "object": "agent",
                    "name": name,
                    "preset": name,
                    "description": known.description,
                    "champion": None,
                    "challenger": None,
                }
            )
    return listed
