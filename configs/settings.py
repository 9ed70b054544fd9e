"""The settings model: every option of loradock, its default, its environment variable and its bounds.

Precedence: command-line flag, then `LORADOCK_*` environment variable, then `loradock.toml`, then default. An unknown
key is an error in all three. `load_settings` returns the settings together with the origin of each value. Settings that
are a section of their own (`training`) are a table in the file, and variables such as `LORADOCK_TRAINING__POLL_S`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from configs.routing import RoutingSettings
from configs.training import TrainingSettings

ENV_PREFIX = "LORADOCK_"
SECTION = "__"
"""between a section and its key, in the name of an environment variable"""
API_KEY_VARIABLE = "LORADOCK_API_KEY"
"""key that commands send to a server; of the client, so not a setting"""
SETTINGS_FILE = "loradock.toml"
EMBEDDED = "embedded"
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class SettingsError(ValueError):
    """A setting is unknown, malformed or contradicts another; the message names the key and is one line.

    `problems` are its parts, one for each thing that is wrong.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


def base_url(url: str) -> str:
    """`url` without a trailing `/v1`, which people paste from client settings. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be a URL such as http://host:8000")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class EngineSettings(BaseModel):
    """One engine: one base model behind one URL. Engines are listed from the weakest tier to the strongest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN, description="name of the tier")
    kind: Literal["vllm", "vllm-remote", "openai"] = Field(
        "vllm",
        description="vllm: started and watched by us; vllm-remote: a stock vLLM server by URL, adapters loaded over "
        "its own routes; openai: any OpenAI-compatible upstream, base tier only",
    )
    model: str = Field(EMBEDDED, description="'embedded', a folder, a hub id, or the upstream's model name")
    served_name: str | None = Field(None, description="public name of the base; default: last part of `model`")
    base_aliases: tuple[str, ...] = Field((), description="further names under which adapters may record this base")
    profile: str = Field("auto", description="engine profile of configs/profiles, or 'auto' by what the machine has")
    url: str | None = Field(None, description="base URL without /v1, for kinds vllm-remote and openai")
    api_key_env: str | None = Field(None, description="environment variable that holds the upstream's key")
    slots: int | None = Field(None, ge=1, le=4096, description="adapters resident at once; default: the profile's")
    max_lora_rank: int | None = Field(
        None,
        description="largest rank accepted; slots are computed whole, so a small one is faster; default: the profile's",
    )
    staging: bool | None = Field(
        None, description="bring adapters into slots beside the engine's thread; default: the profile's"
    )
    host_bytes: int | None = Field(
        None, ge=0, description="with staging: host memory that keeps adapters; default: the profile's"
    )
    prepared_bytes: int | None = Field(
        None, ge=0, description="with staging: disk for adapters in the engine's own layout; default: the profile's"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="further vLLM arguments, as in its CLI, `_` or `-`")
    cost_per_mtok: float = Field(0.0, ge=0, description="USD per million tokens, for the router's utility")
    tokens_per_s: float | None = Field(
        None, gt=0, description="output tokens of one answer in a second, for the router's expected wait"
    )

    @field_validator("max_lora_rank")
    @classmethod
    def _rank_is_allowed(cls, rank: int | None) -> int | None:
        if rank is not None and rank not in ALLOWED_RANKS:
            raise ValueError(f"must be one of {', '.join(map(str, ALLOWED_RANKS))}")
        return rank

    @field_validator("url")
    @classmethod
    def _url_is_http(cls, url: str | None) -> str | None:
        return None if url is None else base_url(url)

    @model_validator(mode="after")
    def _url_fits_kind(self) -> EngineSettings:
        if self.kind == "vllm" and self.url:
            raise ValueError("kind 'vllm' is started by loradock and takes no url; use kind 'vllm-remote'")
        if self.kind != "vllm" and not self.url:
            raise ValueError(f"kind '{self.kind}' needs a url")
        return self

    @property
    def base_name(self) -> str:
        """Public name of the base model, as `/v1/models` lists it."""
        if self.served_name:
            return self.served_name
        return "loradock-tiny" if self.model == EMBEDDED else self.model.rstrip("/").rsplit("/", 1)[-1]


class Settings(BaseSettings):
    """Everything that can be set. Times end in their unit; sizes are in bytes."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on; others than loopback need API keys")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    home: Path = Field(Path("~/.loradock"), description="folder of all state: adapters, database, logs")
    database_url: str | None = Field(None, description="SQLAlchemy URL; default: SQLite in `home`")
    engine: str = Field(
        "auto", description="shorthand for one engine: auto, cpu, gpu, a profile, or a vLLM server's URL"
    )
    engines: tuple[EngineSettings, ...] = Field((), description="engines, weakest tier first; overrides `engine`")
    workers: int = Field(1, ge=1, le=256, description="gateway processes")

    cold_wait_ms: int = Field(2000, ge=0, description="longest wait for a cold adapter, with cold_policy=fallback")
    cold_policy: Literal["fallback", "wait"] = Field("fallback", description="after cold_wait_ms: the base, or wait on")
    cold_timeout_s: float = Field(60.0, gt=0, description="longest wait for a cold adapter at all")
    prefetch: bool = Field(True, description="load champions of agents before their first request")

    max_body_bytes: int = Field(8 << 20, ge=1024, description="largest request body")
    max_upload_bytes: int = Field(512 << 20, ge=1024, description="largest file sent to /v1/files")
    max_inflight: int = Field(256, ge=1, description="requests running at once in one gateway process")
    max_queued: int = Field(256, ge=0, description="requests waiting for a turn; more get 429")
    queue_timeout_s: float = Field(30.0, gt=0, description="longest wait for a turn before 429")
    engine_wait_s: float = Field(20.0, ge=0, description="longest wait for a restarting engine before 503")
    request_timeout_s: float = Field(
        600.0, gt=0, description="longest wait for an engine's answer to begin, and for each further piece"
    )
    shutdown_grace_s: float = Field(30.0, ge=0, description="time that running streams get at shutdown")

    api_keys_file: Path | None = Field(None, description="TOML file of hashed API keys; default: `home`/api_keys.toml")
    agents_dir: Path | None = Field(None, description="folder of further agent presets (YAML)")
    demo: bool = Field(True, description="register the demo adapters when the embedded base is served")
    routing: RoutingSettings = Field(RoutingSettings(), description="choice and learning of routes; see its own keys")
    training: TrainingSettings = Field(TrainingSettings(), description="CaseBank, training and gate; see its own keys")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="verbosity of the log")

    @field_validator("home", "api_keys_file", "agents_dir", mode="after")
    @classmethod
    def _expand_user(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path is not None else None

    @field_validator("engine")
    @classmethod
    def _engine_is_profile_or_url(cls, engine: str) -> str:
        return base_url(engine) if "://" in engine else engine

    @model_validator(mode="after")
    def _engine_names_differ(self) -> Settings:
        for what, names in (
            ("engine", [engine.name for engine in self.engines]),
            ("base model", [engine.base_name for engine in self.engines]),
        ):
            if len(names) != len(set(names)):
                raise ValueError(f"engines: every {what} name must differ, got {', '.join(names)}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is passed in, alone: `load_settings` merges flags, environment and file, and records origins."""
        return (init_settings,)

    @property
    def resolved_engines(self) -> tuple[EngineSettings, ...]:
        """The engines to run: `engines`, or the one that the shorthand `engine` means."""
        if self.engines:
            return self.engines
        if "://" in self.engine:
            return (EngineSettings(name="remote", kind="vllm-remote", url=self.engine, model="remote"),)
        return (EngineSettings(name="base", profile=self.engine),)

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the one database."""
        return self.database_url or f"sqlite:///{self.home / 'loradock.db'}"

    @property
    def keys_file(self) -> Path:
        """Where API keys (hashed) are read from."""
        return self.api_keys_file or self.home / "api_keys.toml"

    @property
    def is_loopback(self) -> bool:
        """Whether `host` is reachable from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class LoadedSettings:
    """Settings with the origin of each value: 'flag', 'env LORADOCK_X', the file's path, or 'default'."""

    settings: Settings
    origins: Mapping[str, str]


def load_settings(
    flags: Mapping[str, Any] | None = None, file: Path | None = None, environ: Mapping[str, str] | None = None
) -> LoadedSettings:
    """Merge flags, environment and file into one validated `Settings`.

    `flags` with value None count as not given. `file` defaults to `loradock.toml` in the current folder, if there.
    Raises SettingsError with one line that names the key.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    from_env = _read_env(environ)
    from_file, file_name = _read_file(file)
    origins = dict.fromkeys(_leaves(from_file), file_name)
    origins |= {key: f"env {ENV_PREFIX}{key.replace('.', SECTION).upper()}" for key in _leaves(from_env)}
    origins |= dict.fromkeys(given, "flag")
    try:
        settings = Settings(**_merged(_merged(from_file, from_env), given))
    except ValidationError as error:
        raise SettingsError(one_line(error, origins), problems_of(error, origins)) from None
    return LoadedSettings(settings, dict.fromkeys(setting_names(), "default") | origins)


def sections() -> dict[str, type[BaseModel]]:
    """Settings that are a section of their own, and the model of each."""
    kinds = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def setting_names() -> list[str]:
    """Every setting; those of a section as `section.key`."""
    found = sections()
    names = (
        [f"{name}.{key}" for key in found[name].model_fields] if name in found else [name]
        for name in Settings.model_fields
    )
    return [name for group in names for name in group]


def _leaves(values: Mapping[str, Any]) -> list[str]:
    """The names of what is given, as `setting_names` spells them."""
    found = sections()
    names = (
        [f"{name}.{key}" for key in value] if name in found and isinstance(value, dict) else [name]
        for name, value in values.items()
    )
    return [name for group in names for name in group]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, key by key within sections; `above` goes first."""
    merged = dict(below) | dict(above)
    for name in sections():
        if isinstance(below.get(name), dict) and isinstance(above.get(name), dict):
            merged[name] = below[name] | above[name]
    return merged


def one_line(error: ValidationError, origins: Mapping[str, str] | None = None) -> str:
    """All that is wrong, on one line; see `problems_of`."""
    return "; ".join(problems_of(error, origins))


def problems_of(error: ValidationError, origins: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong, key by key, a line each; `origins` tells where a key's value came from."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "settings"
        origin = (origins or {}).get(where, (origins or {}).get(where.split(".")[0]))
        problem = f"{where}: {item['msg'].removeprefix('Value error, ')}"
        if item["type"] == "extra_forbidden":
            problem = f"unknown setting '{where}'"
        parts.append(" ".join((f"{problem} (from {origin})" if origin else problem).split()))
    return parts


def _read_env(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of `LORADOCK_*` by key; an empty variable counts as not given, lists are JSON."""
    lowered = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable.startswith(f"{ENV_PREFIX}TEST_"):
            continue
        if variable == API_KEY_VARIABLE:
            continue
        if not _is_known(variable.removeprefix(ENV_PREFIX).lower()):
            raise SettingsError(f"unknown setting {variable} in the environment")
        if value.strip():
            lowered[variable.lower()] = value
    if text := lowered.get(f"{ENV_PREFIX}ENGINES".lower()):
        try:
            json.loads(text)
        except ValueError as error:
            raise SettingsError(
                f"engines: not a JSON list of engines (from env {ENV_PREFIX}ENGINES): {error}"
            ) from None
    source = EnvSettingsSource(Settings, env_nested_delimiter=SECTION)
    source.env_vars = lowered
    return source()


def _is_known(name: str) -> bool:
    section, delimiter, key = name.partition(SECTION)
    if not delimiter:
        return section in Settings.model_fields
    kind = sections().get(section)
    return kind is not None and key in kind.model_fields


def _read_file(file: Path | None) -> tuple[dict[str, Any], str]:
    path = file or Path(SETTINGS_FILE)
    if file is None and not path.is_file():
        return {}, ""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), str(path)
    except FileNotFoundError:
        raise SettingsError(f"settings file {path} does not exist") from None
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
