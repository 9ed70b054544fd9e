"""What an adapter is: the nouns of the registry, immutable and free of I/O.

A version's `digest` is the sha256 of its canonical content, its `version` the first 12 hex digits of that, and its
engine-side name `name@version`. Aliases (`champion`, `challenger`) belong to an agent and point at one version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

VERSION_DIGITS = 12


def engine_id_of(name: str, digest: str) -> int:
    """Integer id for vLLM: positive, under 2**31, the same in every process.

    From name and digest, because two names may hold the same content, and each has a slot of its own.
    """
    return int(hashlib.sha256(f"{name}@{digest}".encode()).hexdigest()[:8], 16) % (2**31 - 1) + 1


class State(StrEnum):
    """Lifecycle of a version."""

    REGISTERED = "registered"
    VALIDATED = "validated"
    CANDIDATE = "candidate"
    CANARY = "canary"
    CHAMPION = "champion"
    RETIRED = "retired"


class Alias(StrEnum):
    """Names that move between versions of one agent."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable adapter. `path` is a PEFT folder whose name contains the digest; `size_bytes` counts its files."""

    name: str
    digest: str
    agent: str
    base: str
    rank: int
    path: Path
    size_bytes: int
    state: State
    created_at: datetime
    source: str
    pinned: bool = False
    target_modules: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """First 12 hex digits of the digest."""
        return self.digest[:VERSION_DIGITS]

    @property
    def engine_name(self) -> str:
        """Name under which an engine serves this version."""
        return f"{self.name}@{self.version}"

    @property
    def engine_id(self) -> int:
        """Integer id for vLLM; see `engine_id_of`."""
        return engine_id_of(self.name, self.digest)


@dataclass(frozen=True, slots=True)
class AgentAliases:
    """Where an agent's aliases point: engine names (`name@version`), or None."""

    champion: str | None = None
    challenger: str | None = None


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """The registry at one revision: all that a request needs, in memory. Retired versions are not in it."""

    revision: int
    versions: Mapping[str, AdapterVersion] = field(default_factory=lambda: MappingProxyType({}))
    """by engine name `name@version`"""
    newest: Mapping[str, AdapterVersion] = field(default_factory=lambda: MappingProxyType({}))
    """by adapter name: the version that the bare name means (a champion if one of its versions is, else the latest)"""
    agents: Mapping[str, AgentAliases] = field(default_factory=lambda: MappingProxyType({}))
    """by agent name, for every agent that has or had an adapter"""

    def champion(self, agent: str) -> AdapterVersion | None:
        """The version that serves `agent`, or None."""
        aliases = self.agents.get(agent)
        return self.versions.get(aliases.champion) if aliases and aliases.champion else None

    def canary(self, agent: str) -> AdapterVersion | None:
        """The challenger that a share of the agent's sessions tries out, or None."""
        aliases = self.agents.get(agent)
        version = self.versions.get(aliases.challenger) if aliases and aliases.challenger else None
        return version if version is not None and version.state is State.CANARY else None


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One move of an agent's alias; `target` is an engine name, or None where the alias fell to nothing."""

    at: datetime
    alias: Alias
    target: str | None
    action: str
    actor: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change of the registry. `detail` is one line for a person."""

    at: datetime
    actor: str
    action: str
    name: str
    version: str | None
    agent: str
    detail: str
