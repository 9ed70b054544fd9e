"""Which base an agent's adapter is trained for, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from adapters_registry.model import AdapterVersion, RegistrySnapshot
from training.jobs.errors import Hopeless
from training.jobs.parts import Base

MAX_NAME = 64
RESERVED = frozenset({"auto", "none"})


def choose_base(
    wanted: str | None, agent: str, bases: Mapping[str, Base], registered: RegistrySnapshot, preferred: str | None
) -> Base:
    """The base asked for, else that of the agent's champion, else the preset's, else the weakest tier.

    Raises Hopeless where no engine serves adapters of it.
    """
    if not bases:
        raise Hopeless("no engine here can serve adapters", "no_base")
    if wanted is not None:
        if wanted not in bases:
            raise Hopeless(f"no engine serves adapters of the base {wanted!r}: {', '.join(bases)} can", "no_base")
        return bases[wanted]
    champion = registered.champion(agent)
    for name in (champion.base if champion else None, preferred):
        if name is not None and name in bases:
            return bases[name]
    return next(iter(bases.values()))


def adapter_name(agent: str, base: str, known: Iterable[AdapterVersion], taken: Iterable[str] = ()) -> str:
    """The name under which a version for `agent` on `base` is registered.

    That of the agent's newest adapter on this base; else the agent's own; else that with `-adapter`, numbered where it
    must be. `known` are all versions ever, the newest of each name first; `taken` are further names in use.
    """
    bound: dict[str, tuple[str, str]] = {}
    mine = []
    for version in known:
        if version.name not in bound and (version.agent, version.base) == (agent, base):
            mine.append(version)
        bound.setdefault(version.name, (version.agent, version.base))
    if mine:
        return max(mine, key=lambda version: version.created_at).name
    used = {*bound, *taken, *RESERVED}
    stem = _slug(agent)
    wishes = [stem, f"{stem}-adapter", *(f"{stem}-adapter-{number}" for number in range(2, 1000))]
    return next(name for name in wishes if name not in used)


def _slug(agent: str) -> str:
    """`agent` as a name may be, with room for an ending."""
    return re.sub(r"[^a-z0-9._-]+", "-", agent.lower()).strip("-._")[: MAX_NAME - len("-adapter-999")] or "agent"
