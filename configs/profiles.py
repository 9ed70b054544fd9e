"""Engine profiles: how vLLM is started on a kind of machine. One YAML file each in `configs/profiles`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from configs.settings import ALLOWED_RANKS, SettingsError, one_line

AUTO = "auto"
KERNELS = Path(__file__).parent / "kernels"
"""block sizes of vLLM's LoRA kernels by GPU, tuned by `bench.lora_kernels`"""


class EngineProfile(BaseModel):
    """One profile. `name` is the file's; `args` are vLLM's command-line arguments, written with `_`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = Field(min_length=1, description="one line for people")
    device: Literal["cpu", "cuda"] = Field("cuda", description="what the model runs on")
    slots: int = Field(ge=1, le=4096, description="adapters resident at once")
    max_lora_rank: int = Field(description="largest rank accepted")
    staging: bool = Field(False, description="bring adapters into slots beside the engine's thread")
    host_bytes: int = Field(ge=0, description="host memory that keeps adapters; pinned on a GPU host")
    prepared_bytes: int = Field(ge=0, description="disk for adapters in the engine's own layout")
    preload: bool = Field(
        False, description="import vLLM for the engine core while the API process imports it; where vLLM does not fork"
    )
    env: dict[str, str] = Field(default_factory=dict, description="environment of the engine's process")
    args: dict[str, Any] = Field(default_factory=dict, description="vLLM arguments")
    embedded_args: dict[str, Any] = Field(default_factory=dict, description="more of them for the embedded base")

    @field_validator("max_lora_rank")
    @classmethod
    def _rank_is_allowed(cls, rank: int) -> int:
        if rank not in ALLOWED_RANKS:
            raise ValueError(f"must be one of {', '.join(map(str, ALLOWED_RANKS))}")
        return rank


def profile_names() -> tuple[str, ...]:
    """Names of the profiles there are, sorted."""
    files = resources.files("configs").joinpath("profiles").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load_profile(name: str) -> EngineProfile:
    """The profile `name`. Raises SettingsError with one line for an unknown name or a malformed file."""
    names = profile_names()
    if name not in names:
        raise SettingsError(f"unknown engine profile '{name}' (there are {AUTO}, {', '.join(names)})")
    file = resources.files("configs").joinpath("profiles", f"{name}.yaml")
    return parse_profile(name, file.read_text(encoding="utf-8"))


def parse_profile(name: str, text: str) -> EngineProfile:
    """A profile from YAML. Raises SettingsError with one line that names the profile and the key."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"engine profile '{name}': not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"engine profile '{name}': must be a mapping")
    try:
        return EngineProfile(**{str(key): value for key, value in content.items()} | {"name": name})
    except ValidationError as error:
        raise SettingsError(f"engine profile '{name}': {one_line(error)}") from None
