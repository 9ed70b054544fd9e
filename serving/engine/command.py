"""The command line and environment of an engine's process, from its settings and profile."""

from __future__ import annotations

import json
import os
import re
import site
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from configs.profiles import KERNELS, EngineProfile
from configs.settings import EMBEDDED, EngineSettings, SettingsError
from serving.engine.hardware import nvidia_gpus
from serving.engine.worker.protocol import StagingPlan

OURS = frozenset(
    {
        "model", "model_tag", "served_model_name", "uds", "host", "port", "root_path", "api_key", "config",
        "middleware", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "enable_lora", "lora_modules", "max_loras",
        "max_cpu_loras", "max_lora_rank", "worker_extension_cls", "api_server_count", "headless", "grpc",
    }
)  # fmt: skip
"""arguments that settings of their own decide, or that residency relies on"""

DROPPED = ("VLLM_API_KEY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_LORA_RESOLVER_CACHE_DIR")
"""variables that would open the engine's own way of loading adapters, or lock us out"""

TUNED_KERNELS = "VLLM_TUNED_CONFIG_FOLDER"
SERVER_KEEPALIVE_S = 600
LOADS = 4
"""adapters that are brought into slots at a time, where there are cores for it"""
SPARE_SLOTS = 1
"""slots beyond those that are promised, where adapters are staged: one can come before another has gone"""
GRAPH_SIZES = frozenset({"cudagraph_capture_sizes", "max_cudagraph_capture_size"})
"""arguments that say the same thing, also within `compilation_config`: vLLM refuses two that differ"""
EXTENSION = "serving.engine.worker.extension.StagingExtension"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and in which environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def build_command(
    settings: EngineSettings,
    profile: EngineProfile,
    model: str,
    run_dir: Path,
    environ: Mapping[str, str],
    *,
    prepared: Path,
) -> Command:
    """The command for one start whose socket and temporary files lie in `run_dir`; `prepared` outlives it."""
    plan = "-"
    if stages(settings, profile):
        plan = msgspec.json.encode(staging_plan(settings, profile, run_dir, prepared)).decode()
    worker = ("serving.engine.worker", str(run_dir), "preload" if profile.preload else "-", plan)
    arguments = render(vllm_arguments(settings, profile, model, run_dir))
    return Command((sys.executable, "-P", "-m", *worker, *arguments), environment(profile, model, run_dir, environ))


def stages(settings: EngineSettings, profile: EngineProfile) -> bool:
    """Whether adapters are brought into slots beside the engine's thread; the settings go before the profile."""
    return profile.staging if settings.staging is None else settings.staging


def staging_plan(settings: EngineSettings, profile: EngineProfile, run_dir: Path, prepared: Path) -> StagingPlan:
    """What the engine's process may keep of adapters; the settings go before the profile."""
    host = profile.host_bytes if settings.host_bytes is None else settings.host_bytes
    disk = profile.prepared_bytes if settings.prepared_bytes is None else settings.prepared_bytes
    return StagingPlan(str(prepared), host, disk, SPARE_SLOTS, loads_at_once(), str(run_dir / "notices.sock"))


def loads_at_once() -> int:
    """Adapters that a staging engine on this machine is given at a time; its model wants most of the cores."""
    return max(1, min(LOADS, usable_cores() // 4))


def vllm_arguments(settings: EngineSettings, profile: EngineProfile, model: str, run_dir: Path) -> dict[str, Any]:
    """The arguments of vLLM by name, written with `_`: ours, then the profile's, then the user's.

    As many adapters fit the CPU's cache as the engine's slots: one that vLLM had evicted by itself would be read again
    inside a step, with every stream waiting.
    """
    slots = (settings.slots or profile.slots) + (SPARE_SLOTS if stages(settings, profile) else 0)
    given = user_arguments(settings)
    void = displaced(given)
    return {
        "model": model,
        "served_model_name": settings.base_name,
        "uds": str(socket_path(run_dir)),
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": slots,
        "worker_extension_cls": EXTENSION if stages(settings, profile) else None,
        "max_lora_rank": settings.max_lora_rank or profile.max_lora_rank,
        "enable_prefix_caching": True,
        "enable_prompt_tokens_details": True,
        "disable_uvicorn_access_log": True,
        "disable_fastapi_docs": True,
        "uvicorn_log_level": "warning",
        **{name: value for name, value in profile.args.items() if name not in void},
        **(profile.embedded_args if settings.model == EMBEDDED else {}),
        **given,
    }


def displaced(given: Mapping[str, Any]) -> frozenset[str]:
    """Arguments of a profile that the user's make void, beside those of the same name."""
    compilation = given.get("compilation_config")
    told = {name.rpartition(".")[2] for name in given}  # vLLM takes parts of a configuration by themselves, too
    if isinstance(compilation, Mapping):
        told |= compilation.keys()
    elif isinstance(compilation, str):
        told |= {name for name in GRAPH_SIZES if f'"{name}"' in compilation}
    return GRAPH_SIZES if told & GRAPH_SIZES else frozenset()


def user_arguments(settings: EngineSettings) -> dict[str, Any]:
    """The arguments of the settings, written with `_`. Raises SettingsError for one that is not theirs to set."""
    arguments = {name.lstrip("-").replace("-", "_"): value for name, value in settings.args.items()}
    for name in arguments.keys() & OURS:
        raise SettingsError(f"engine {settings.name}: args.{name} is set by loradock; see its other settings")
    return arguments


def render(arguments: Mapping[str, Any]) -> list[str]:
    """Command-line words: True is `--flag`, False `--no-flag`, None leaves it out, mappings become JSON."""
    words = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping):
            words += [f"--{flag}", json.dumps(value)]
        elif isinstance(value, list | tuple):
            words += [f"--{flag}", *map(str, value)]
        else:
            words.append(f"--{flag}={value}")
    return words


def environment(profile: EngineProfile, model: str, run_dir: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The gateway's environment, the profile's on top, without what would change who may load what."""
    env = {key: value for key, value in environ.items() if key not in DROPPED and not key.startswith("LORADOCK_")}
    env |= {
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(SERVER_KEEPALIVE_S),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_RPC_BASE_PATH": str(run_dir),
    }
    # On a GPU host what torch computes on the processor is small, and its threads would be in the way of the engine's.
    env.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() - 1)) if profile.device == "cpu" else "1")
    if profile.device == "cuda" and has_tuned_kernels(nvidia_gpus(environ)):
        env.setdefault(TUNED_KERNELS, str(KERNELS))
    if Path(model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    here = Path(__file__).resolve().parents[2]
    if str(here) not in {str(Path(folder).resolve()) for folder in site.getsitepackages()}:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(here), env.get("PYTHONPATH"))))
    return env | profile.env


def has_tuned_kernels(gpus: Sequence[str]) -> bool:
    """Whether there are block sizes for the first of `gpus`."""
    return bool(gpus) and any(KERNELS.glob(re.sub(r"[ -]", "_", gpus[0]) + "_*.json"))


def usable_cores() -> int:
    """Cores that this process may use. One of them is left to the gateway and to vLLM's API process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def socket_path(run_dir: Path) -> Path:
    """Where the engine listens."""
    return run_dir / "engine.sock"
