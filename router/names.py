"""What a request's `model` and agent hint mean."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from adapters_registry.model import AdapterVersion, AgentAliases, Alias
from configs.settings import NAME_PATTERN
from router.agents import resolve_agent
from router.decision import UnknownModel
from router.snapshot import RouterSnapshot

AUTO = "auto"
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[0-9a-fA-F]{6,64}")
_MAX_NAME = 128
_MAX_COMPARED = 500
_NEAREST = 3


class Wanted(NamedTuple):
    """Meaning of `model`: a tier (by index), a version, an agent, or, all being None, whatever the router chooses.

    `exact` tells that the version was pinned by its digest.
    """

    tier: int | None = None
    version: AdapterVersion | None = None
    agent: str | None = None
    exact: bool = False


def resolve_model(model: str, snapshot: RouterSnapshot) -> Wanted:
    """Find what `model` names: `auto`, a base, `name@version`, `name@alias`, an agent, an adapter. Raises UnknownModel.

    Where an adapter and an agent share a name, the agent's champion is meant, and the adapter while there is none.
    """
    if model == AUTO:
        return Wanted()
    prefix, _, agent = model.partition(":")
    if prefix == AUTO and agent:
        return Wanted(agent=agent)
    if (tier := snapshot.tier_of_base(model)) is not None:
        return Wanted(tier=tier)
    name, at, selector = model.rpartition("@")
    if at:
        return _resolve_version(model, name, selector, snapshot)
    registry = snapshot.registry
    if registry.champion(model) is None and (version := registry.newest.get(model)):
        return Wanted(version=version)
    found = resolve_agent(model, registry.agents) or resolve_agent(model, snapshot.presets)
    if found is None:
        raise UnknownModel(model, nearest_names(model, snapshot))
    return Wanted(agent=found)


def clean_agent(hint: str) -> str | None:
    """Normalise an agent's name as a client wrote it; None where it cannot be one: it ends up in headers and logs."""
    name = "-".join(hint[:_MAX_NAME].lower().split())
    return name if _NAME.fullmatch(name) else None


def _resolve_version(model: str, name: str, selector: str, snapshot: RouterSnapshot) -> Wanted:
    registry = snapshot.registry
    if version := registry.versions.get(model):
        return Wanted(version=version, exact=True)
    matching: list[AdapterVersion] = []
    if selector in set(Alias):
        own = registry.newest.get(name)
        agent = resolve_agent(name, registry.agents) or (own.agent if own else None)
        aliases = registry.agents.get(agent) if agent else None
        pointed = _pointed(aliases, selector)
        version = registry.versions.get(pointed) if pointed else None
        if version and (name in (agent, version.name) or own is None):
            return Wanted(version=version)
    elif _VERSION.fullmatch(selector):
        digits = selector.lower()
        matching = [each for each in registry.versions.values() if each.name == name and each.digest.startswith(digits)]
        if len(matching) == 1:
            return Wanted(version=matching[0], exact=True)
    raise UnknownModel(model, [each.engine_name for each in matching[:_NEAREST]] or nearest_names(model, snapshot))


def _pointed(aliases: AgentAliases | None, selector: str) -> str | None:
    if aliases is None:
        return None
    return aliases.champion if selector == Alias.CHAMPION else aliases.challenger


def nearest_names(model: str, snapshot: RouterSnapshot) -> list[str]:
    """Names that look like `model`, best first; the work is bounded however many there are."""
    names = dict.fromkeys(islice(_names(snapshot), _MAX_COMPARED))
    model = model[:_MAX_NAME]
    bare = model.partition("@")[0]
    close = [bare] if bare in names else []
    close += difflib.get_close_matches(model, names, n=_NEAREST, cutoff=0.5)
    return list(dict.fromkeys(close))[:_NEAREST]


def _names(snapshot: RouterSnapshot) -> Iterator[str]:
    yield AUTO
    for tier in snapshot.tiers:
        yield tier.base_name
    yield from snapshot.registry.agents
    yield from snapshot.registry.newest
    yield from snapshot.presets
    yield from snapshot.registry.versions
