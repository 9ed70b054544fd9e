"""From settings to engines."""

from __future__ import annotations

import os
from collections.abc import Mapping

import httpx
import msgspec

from configs.profiles import load_profile
from configs.settings import EngineSettings, Settings
from serving.engine.base import Engine
from serving.engine.hardware import resolve_profile
from serving.engine.model import BaseModel
from serving.engine.process import VllmEngine
from serving.engine.remote import ModelList, OpenAIUpstream, RemoteVllm, key_headers

DISCOVERY_TIMEOUT_S = 3.0


def build_engines(settings: Settings, environ: Mapping[str, str] | None = None) -> list[Engine]:
    """The engines of `settings`, weakest tier first, none started. Raises SettingsError.

    A remote vLLM that can be reached tells its base's name and folder right away, before the registry asks for them.
    """
    environ = os.environ if environ is None else environ
    return [build_engine(engine, settings, environ) for engine in settings.resolved_engines]


def build_engine(engine: EngineSettings, settings: Settings, environ: Mapping[str, str]) -> Engine:
    """One engine. Raises SettingsError."""
    if engine.kind == "openai":
        return OpenAIUpstream(engine, environ=environ, request_timeout_s=settings.request_timeout_s)
    if engine.kind == "vllm-remote":
        remote = RemoteVllm(engine, environ=environ, request_timeout_s=settings.request_timeout_s)
        if models := discover(engine, environ):
            remote.learn(models)
            if not settings.engines and engine.served_name is None:
                remote.base_name = remote.upstream_model.rstrip("/").rsplit("/", 1)[-1]
        return remote
    profile = load_profile(resolve_profile(engine.profile, environ))
    return VllmEngine(
        engine,
        profile,
        BaseModel.of(engine),
        home=settings.home,
        request_timeout_s=settings.request_timeout_s,
        environ=environ,
    )


def discover(engine: EngineSettings, environ: Mapping[str, str]) -> ModelList | None:
    """The models that the server lists now; None when it cannot be reached or answers something else."""
    try:
        answer = httpx.get(
            f"{engine.url}/v1/models",
            headers=key_headers(engine, environ),
            timeout=DISCOVERY_TIMEOUT_S,
            trust_env=False,
        )
        return ModelList.parse(answer.content) if answer.status_code == 200 else None
    except (httpx.HTTPError, msgspec.DecodeError):
        return None
