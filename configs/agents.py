"""Agent presets: who the agents are, how their tasks are recognised, and how they are routed.

The presets of the package (`configs/agents/*.yaml`) come first; a file `<agent>.yaml` in the user's `agents_dir`
changes the preset of that name, key by key, or adds an agent. An unknown key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from configs.routing import RoutingWishes
from configs.settings import NAME_PATTERN, SettingsError, one_line
from configs.training import TrainingPreset

MAX_PRESET_BYTES = 1 << 20


class Recognition(BaseModel):
    """Words and phrases that tell an agent's tasks from others'. Case, hyphens and a plural `s` do not matter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strong: tuple[str, ...] = Field((), description="terms of which one is enough in a short task")
    weak: tuple[str, ...] = Field((), description="terms of which several are needed")

    @field_validator("strong", "weak")
    @classmethod
    def _terms_hold_words(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        for term in terms:
            if not re.search(r"\w", term):
                raise ValueError(f"term {term!r} holds no word")
        return terms


class Routing(RoutingWishes):
    """What the router assumes about an agent until there are cases, and how it chooses for it."""

    adapter_lift: float = Field(
        0.7, ge=0, le=1, description="share of the base model's failures on this agent's tasks that its adapter mends"
    )
    strong_above: float | None = Field(
        None,
        ge=0,
        le=1,
        description="from this difficulty on, tasks left to a base go to the strongest; default: by utility",
    )
    strong_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of this agent's calls that the strongest tier answers; default: the settings'",
    )


class AgentPreset(BaseModel):
    """One agent. `name` is the file's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    description: str = Field(min_length=1, description="one line for people")
    base: str | None = Field(
        None, description="base model that answers while the agent has no adapter; default: by utility"
    )
    recognise: Recognition = Recognition()
    routing: Routing = Routing()
    training: TrainingPreset = TrainingPreset()


class PresetFile(Protocol):
    """What is needed of a file: a path on disk, or a resource of an installed package."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        ...

    def read_bytes(self) -> bytes:
        """The content."""
        ...


def load_presets(agents_dir: Path | None = None) -> Mapping[str, AgentPreset]:
    """The package's presets, changed and extended by the YAML files of `agents_dir`, by name.

    Raises SettingsError with one line that names the file and the key.
    """
    merged: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    shipped = (file for file in resources.files("configs").joinpath("agents").iterdir() if file.name.endswith(".yaml"))
    _merge(shipped, merged, sources)
    if agents_dir is not None:
        if not agents_dir.is_dir():
            raise SettingsError(f"agents_dir: {agents_dir} is not a folder")
        _merge((path for path in agents_dir.iterdir() if path.suffix in {".yaml", ".yml"}), merged, sources)
    return MappingProxyType({name: _validated(name, merged[name], sources[name]) for name in sorted(merged)})


def _merge(files: Iterable[PresetFile], merged: dict[str, dict[str, Any]], sources: dict[str, str]) -> None:
    seen: set[str] = set()
    for file in sorted(files, key=lambda each: each.name):
        name = file.name.rsplit(".", 1)[0]
        if name in seen:
            raise SettingsError(f"{file}: agent '{name}' has two files")
        seen.add(name)
        present = merged.setdefault(name, {})
        for key, value in _read(file).items():
            inherited = present.get(key)
            present[key] = inherited | value if isinstance(inherited, dict) and isinstance(value, dict) else value
        sources[name] = str(file)


def _read(file: PresetFile) -> dict[str, Any]:
    try:
        content = file.read_bytes()
        if len(content) > MAX_PRESET_BYTES:
            raise SettingsError(f"{file}: larger than {MAX_PRESET_BYTES} bytes")
        parsed = yaml.safe_load(content.decode())
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(parsed, dict):
        raise SettingsError(f"{file}: must be a mapping of keys to values")
    if "name" in parsed:
        raise SettingsError(f"{file}: unknown setting 'name': an agent is named by its file")
    return {str(key): value for key, value in parsed.items()}


def _validated(name: str, values: Mapping[str, Any], source: str) -> AgentPreset:
    try:
        return AgentPreset(name=name, **values)
    except ValidationError as error:
        raise SettingsError(f"{source}: {one_line(error)}") from None
