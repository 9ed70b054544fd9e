"""`/v1/adapters`: register, list, inspect, promote, roll back, retire, pin, load."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.model import AdapterVersion
from serving.auth import Caller
from serving.errors import Conflict
from serving.gateway.callers import admin
from serving.gateway.state import Gateway
from serving.residency import AdapterState, Patience


class Registration(BaseModel):
    """Body of `POST /v1/adapters`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="adapter name, [a-z0-9][a-z0-9._-]{0,63}")
    source: str = Field(min_length=1, description="folder, archive, Hub repository or fsspec URL")
    agent: str | None = Field(None, description="agent that it serves; default: the adapter's name")
    base: str | None = Field(None, description="base model; default: the one that the adapter was trained on")
    alias: Literal["champion", "challenger", "none"] | None = Field(
        None, description="champion, challenger or none; default: champion for an agent's first"
    )
    pin: bool = Field(False, description="keep it resident")


class VersionChoice(BaseModel):
    """Optional body of actions on a name: which version."""

    model_config = ConfigDict(extra="forbid")

    version: str | None = Field(None, description="at least 6 hex digits; default: the newest")


def adapters_router(gateway: Gateway) -> APIRouter:
    """The routes, bound to `gateway`."""
    router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
    _add_collection(router, gateway)
    _add_lifecycle(router, gateway)
    _add_residency(router, gateway)
    return router


def _add_collection(router: APIRouter, gateway: Gateway) -> None:
    registry = gateway.registry

    @router.post("", status_code=201)
    async def register(body: Registration, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Fetch, validate and store an adapter; 201 when it can be served, 409 if no slot is left for `pin`."""
        version = await asyncio.to_thread(
            registry.register,
            body.name,
            body.source,
            agent=body.agent,
            base=body.base,
            alias=body.alias,
            actor=caller.name,
        )
        await gateway.refresh()
        if body.pin:  # not before: which base it belongs to, and whether it is pinned already, shows now
            await _pin(gateway, version, caller)
        return _brief(version)

    @router.get("")
    async def list_adapters(include_retired: bool = False) -> dict[str, Any]:
        """All versions of all adapters, the newest first."""
        versions = await asyncio.to_thread(registry.list_versions, include_retired=include_retired)
        return {"object": "list", "data": [_describe(gateway, version) for version in versions]}

    @router.get("/{name}")
    async def show(name: str) -> dict[str, Any]:
        """One adapter (or `name@version`) with its versions, aliases and where it is resident."""
        version = await asyncio.to_thread(registry.resolve, name)
        versions = await asyncio.to_thread(registry.list_versions, version.name, include_retired=True)
        history = await asyncio.to_thread(registry.audit, 50, version.name)
        return {
            **_describe(gateway, version),
            "versions": [_describe(gateway, each) for each in versions],
            "audit": [dataclasses.asdict(entry) for entry in history],
        }

    @router.delete("/{name}")
    async def retire(name: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Retire all versions of a name, or one (`name@version`): requests in flight end, new ones go elsewhere."""
        plain, _, version = name.partition("@")
        retired = await asyncio.to_thread(registry.retire, plain, version or None, actor=caller.name)
        await gateway.refresh()
        return {"name": plain, "retired": [each.version for each in retired]}


def _add_lifecycle(router: APIRouter, gateway: Gateway) -> None:
    registry = gateway.registry

    @router.post("/{name}/promote")
    async def promote(name: str, body: VersionChoice | None = None, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Make a version the agent's champion."""
        plain, version = _split(name, body)
        promoted = await asyncio.to_thread(registry.promote, plain, version, actor=caller.name)
        await gateway.refresh()
        return _brief(promoted)

    @router.post("/{name}/rollback")
    async def rollback(name: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Make the agent's previous champion its champion again; `name` is the adapter's or the agent's."""
        champion = await asyncio.to_thread(registry.rollback, name, actor=caller.name)
        await gateway.refresh()
        return _brief(champion)

    @router.post("/{name}/pin")
    async def pin(name: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Keep an adapter resident. At least one slot stays for the others, where there are two."""
        version = await asyncio.to_thread(registry.resolve, name)
        pinned = await _pin(gateway, version, caller)
        return {**_brief(pinned), "pinned": True}

    @router.post("/{name}/unpin")
    async def unpin(name: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Let an adapter be evicted again."""
        plain, version = _split(name, None)
        unpinned = await asyncio.to_thread(registry.unpin, plain, version, actor=caller.name)
        await gateway.refresh()
        return {**_brief(unpinned), "pinned": False}


def _add_residency(router: APIRouter, gateway: Gateway) -> None:
    registry = gateway.registry

    async def load(name: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Make an adapter resident now, and answer when it is."""
        version = await asyncio.to_thread(registry.resolve, name)
        engine = gateway.engine(version.base)
        await engine.wait_ready(gateway.settings.engine_wait_s)
        patience = Patience(None, gateway.settings.cold_timeout_s)
        async with gateway.fleet.hold(version, patience) as held:
            return {**_describe(gateway, version), "waited_ms": round(1e3 * held.waited_s, 3)}

    router.post("/{name}/load")(load)
    router.post("/{name}/prefetch")(load)

    @router.post("/{name}/unload")
    async def unload(name: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Free an adapter's slot once its requests have ended."""
        version = await asyncio.to_thread(registry.resolve, name)
        if version.pinned:
            raise Conflict(f"{version.engine_name} is pinned; unpin it first", param="name", code="pinned")
        await gateway.fleet.unload(version)
        return _describe(gateway, version)


def _split(name: str, body: VersionChoice | None) -> tuple[str, str | None]:
    plain, _, version = name.partition("@")
    return plain, version or (body.version if body else None)


def _brief(version: AdapterVersion) -> dict[str, Any]:
    return {"name": version.name, "version": version.version, "agent": version.agent, "state": version.state.value}


def _describe(gateway: Gateway, version: AdapterVersion) -> dict[str, Any]:
    return {
        **_brief(version),
        "object": "adapter",
        "base": version.base,
        "rank": version.rank,
        "size_bytes": version.size_bytes,
        "pinned": version.pinned,
        "digest": version.digest,
        "source": version.source,
        "created_at": version.created_at.isoformat(),
        "residency": _residency(gateway, version),
    }


def _residency(gateway: Gateway, version: AdapterVersion) -> dict[str, Any]:
    resident = gateway.fleet.resident(version)
    if resident is None:
        return {"engine": None, "state": AdapterState.ABSENT.value, "in_flight": 0}
    return {
        "engine": resident.engine,
        "state": resident.state.value,
        "in_flight": resident.in_flight,
        "loads": resident.loads,
        "load_ms": round(1e3 * resident.load_s, 3),
    }


async def _pin(gateway: Gateway, version: AdapterVersion, caller: Caller) -> AdapterVersion:
    _check_room(gateway, version)
    pinned = await asyncio.to_thread(gateway.registry.pin, version.name, version.version, actor=caller.name)
    await gateway.refresh()
    return pinned


def _check_room(gateway: Gateway, version: AdapterVersion) -> None:
    engine = gateway.engine(version.base)
    others = (each for each in gateway.registered.versions.values() if each.base == version.base)
    pinned = [each for each in others if each.pinned and each.engine_name != version.engine_name]
    if len(pinned) + 1 >= max(2, engine.slots):
        raise Conflict(
            f"pinning {version.engine_name} would leave no slot of engine {engine.name} to other adapters "
            f"({engine.slots} slots, {len(pinned)} pinned)",
            param="name",
            code="no_slot",
        )
