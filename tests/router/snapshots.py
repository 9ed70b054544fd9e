"""Snapshots to decide on: three agents, one with a challenger, over one base or three tiers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapters_registry.model import AdapterVersion, AgentAliases, RegistrySnapshot, State
from configs.agents import load_presets
from router import BaseTier, RouterSnapshot

PRESETS = load_presets()
ONE_TIER = (BaseTier("base", "tiny"),)
THREE_TIERS = (
    BaseTier("small", "tiny", 0.1),
    BaseTier("middle", "medium", 1.0),
    BaseTier("big", "large", 10.0, slots=0),
)


def version(name: str, digest: str, agent: str, base: str = "tiny", state: State = State.CHAMPION) -> AdapterVersion:
    """An adapter version whose digest begins with `digest`."""
    return AdapterVersion(
        name=name,
        digest=digest.ljust(64, "0"),
        agent=agent,
        base=base,
        rank=8,
        path=Path(name),
        size_bytes=1,
        state=state,
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
        source="test",
    )


LEGAL_OLD = version("legal-agent", "aaaaaa111111", "legal-agent", state=State.CANDIDATE)
LEGAL = version("legal-agent", "aaaaaa222222", "legal-agent")
SECURITY = version("security-agent", "bbbbbb000000", "security-agent")
SUPPORT = version("helpdesk", "cccccc000000", "support")
SUPPORT_NEXT = version("helpdesk-2", "dddddd000000", "support", state=State.CANARY)
ORPHAN = version("lost", "eeeeee000000", "lost-agent", base="gone")
TRIAL = version("qa-trial", "ffffff000000", "qa", state=State.CANDIDATE)
VERSIONS = (LEGAL_OLD, LEGAL, SECURITY, SUPPORT, SUPPORT_NEXT, ORPHAN, TRIAL)


def registry() -> RegistrySnapshot:
    """The registry that all of these versions are in."""
    return RegistrySnapshot(
        revision=1,
        versions={each.engine_name: each for each in VERSIONS},
        newest={each.name: each for each in VERSIONS},
        agents={
            "legal-agent": AgentAliases(champion=LEGAL.engine_name),
            "security-agent": AgentAliases(champion=SECURITY.engine_name),
            "support": AgentAliases(champion=SUPPORT.engine_name, challenger=SUPPORT_NEXT.engine_name),
            "lost-agent": AgentAliases(champion=ORPHAN.engine_name),
            "qa": AgentAliases(),
        },
    )


def snapshot(tiers: tuple[BaseTier, ...] = ONE_TIER, **parts: Any) -> RouterSnapshot:
    """A snapshot of `registry()` with the shipped presets."""
    return RouterSnapshot(**{"registry": registry(), "tiers": tiers, "presets": PRESETS} | parts)
