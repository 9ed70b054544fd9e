"""What the gateway bench measures: the mock upstream, and the proxies in front of it, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bench.environment import ROOT
from bench.mock_upstream import BASE
from bench.processes import Child, free_port
from bench.tasks import AGENTS
from configs import embedded

READY_TIMEOUT_S = 120.0
ALL = ("direct", "passthrough", "loradock", "litellm")
REAL = ("engine", "loradock+engine")
"""the real vLLM by itself, and the gateway in front of it"""
REAL_AGENT = "support-agent"
REAL_OPTIONS = ("--any-tokens", "--max-tokens", "16")
ENGINE_TIMEOUT_S = 240.0
LITELLM_ENVIRONMENT = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch a price list otherwise
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no keys on loopback, as loradock beside it
}


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint under load; `model` is what requests ask it for."""

    name: str
    url: str
    model: str
    process: Child
    version: str | None = None
    reference: str = "direct"
    """the target that its overhead is measured against"""
    options: tuple[str, ...] = ()
    """further options of `bench.load`"""


@contextmanager
def running(names: tuple[str, ...], folder: Path, workers: int, litellm: Path | None) -> Iterator[list[Target]]:
    """The named targets, `direct` (the mock itself) among them, up and ready. State and logs go to `folder`."""
    with ExitStack() as stack:
        mock = stack.enter_context(_ours("mock_upstream", folder))
        upstream = mock.first_line()
        start: dict[str, Callable[[], Target]] = {
            "direct": lambda: Target("direct", upstream, BASE, mock),
            "passthrough": lambda: _passthrough(stack, folder, upstream),
            "loradock": lambda: _loradock(stack, folder, upstream, workers),
            "litellm": lambda: _litellm(stack, folder, upstream, litellm),
        }
        targets = [start[name]() for name in names if name in start]
        if set(names) & set(REAL):
            targets += _real(stack, folder)
        yield targets


def find_litellm(venv: Path | None) -> Path | None:
    """LiteLLM's command: in `venv` if given, else on PATH; None where it is not installed."""
    if venv is not None:
        command = venv / "bin" / "litellm"
        return command if command.is_file() else None
    found = shutil.which("litellm")
    return Path(found) if found else None


def _ours(module: str, folder: Path, *arguments: str) -> Child:
    command = [sys.executable, "-m", f"bench.{module}", *arguments]
    return Child(command, folder / f"{module}.log", announces=True)


def _passthrough(stack: ExitStack, folder: Path, upstream: str) -> Target:
    child = stack.enter_context(_ours("passthrough", folder, upstream))
    return Target("passthrough", child.first_line(), BASE, child)


def _loradock(stack: ExitStack, folder: Path, upstream: str, workers: int) -> Target:
    """The gateway as users start it, with an adapter for each agent that the load names."""
    port = free_port()
    own = {"HOME": folder / "home", "PORT": port, "ENGINE": upstream, "WORKERS": workers, "LOG_LEVEL": "warning"}
    env = _environment() | {f"LORADOCK_{key}": str(value) for key, value in own.items()}
    command = [sys.executable, "-m", "serving.cli", "serve"]
    child = stack.enter_context(Child(command, folder / "loradock.log", env, cwd=folder))
    url = f"http://127.0.0.1:{port}"
    _await(child, f"{url}/ready")
    for agent in AGENTS:
        source = write_adapter(folder / f"{agent}-agent", seed=AGENTS.index(agent))
        body = {"name": f"{agent}-agent", "source": str(source), "agent": agent, "alias": "champion"}
        post(child, f"{url}/v1/adapters", body)
        post(child, f"{url}/v1/adapters/{agent}-agent/load", {})
        _expect_adapter(child, url, agent)
    return Target("loradock", url, "auto", child)


def _litellm(stack: ExitStack, folder: Path, upstream: str, command: Path | None) -> Target:
    """LiteLLM's proxy with one worker, `auto` meaning the mock's base."""
    assert command is not None, "the caller asks for it only where it was found"
    parameters = {"model": f"openai/{BASE}", "api_base": f"{upstream}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": "auto", "litellm_params": parameters}]}))
    port = free_port()
    arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = {key: value for key, value in _environment().items() if key != "PYTHONPATH"} | LITELLM_ENVIRONMENT
    child = stack.enter_context(Child([str(command), *arguments], folder / "litellm.log", env, cwd=folder))
    url = f"http://127.0.0.1:{port}"
    _await(child, f"{url}/health/liveliness")
    return Target("litellm", url, "auto", child, _litellm_version(command))


def _real(stack: ExitStack, folder: Path) -> list[Target]:
    """A stock vLLM server on the embedded base, and the gateway in front of it; both answer with the same adapter."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(embedded.BASE), "--served-model-name", embedded.BASE_NAME, "--dtype", "float32"]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", str(1 << 28), "--max-model-len", "2048"]
    command += ["--enable-lora", "--max-loras", "4", "--max-cpu-loras", "4", "--max-lora-rank", "32"]
    command += ["--lora-modules", f"{REAL_AGENT}={embedded.ADAPTERS / REAL_AGENT}", "--disable-uvicorn-access-log"]
    env = _environment() | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    engine = stack.enter_context(Child(command, folder / "engine.log", env, cwd=folder))
    upstream = f"http://127.0.0.1:{port}"
    _await(engine, f"{upstream}/health", ENGINE_TIMEOUT_S)

    port = free_port()
    own = {"HOME": folder / "home-engine", "PORT": port, "LOG_LEVEL": "warning"}
    tier = {"name": "real", "kind": "vllm-remote", "model": embedded.BASE_NAME, "url": upstream, "slots": 2}
    own["ENGINES"] = json.dumps([tier])
    gateway_env = _environment() | {f"LORADOCK_{key}": str(value) for key, value in own.items()}
    command = [sys.executable, "-m", "serving.cli", "serve"]
    child = stack.enter_context(Child(command, folder / "loradock-engine.log", gateway_env, cwd=folder))
    url = f"http://127.0.0.1:{port}"
    _await(child, f"{url}/ready")
    post(child, f"{url}/v1/adapters", {"name": REAL_AGENT, "source": str(embedded.ADAPTERS / REAL_AGENT)})
    post(child, f"{url}/v1/adapters/{REAL_AGENT}/load", {})
    return [
        Target("engine", upstream, REAL_AGENT, engine, reference="engine", options=REAL_OPTIONS),
        Target("loradock+engine", url, REAL_AGENT, child, reference="engine", options=REAL_OPTIONS),
    ]


def _litellm_version(command: Path) -> str | None:
    python = command.resolve().parent / "python" if command.is_symlink() else command.parent / "python"
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    asked = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True)
    return asked.stdout.strip() or None


def _environment() -> dict[str, str]:
    """This process's environment without loradock's settings; our packages stay importable from any folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LORADOCK_")}
    return kept | {"PYTHONPATH": str(ROOT)}


def _expect_adapter(child: Child, url: str, agent: str) -> None:
    """Raise ChildFailed unless a task of `agent` is answered by its adapter: else routing would not be measured."""
    message = {"role": "user", "content": "hello"}
    headers, _ = post(child, f"{url}/v1/chat/completions", {"model": f"auto:{agent}", "messages": [message]})
    adapter = headers.get("x-loradock-adapter", "none")
    if not adapter.startswith(f"{agent}-agent@"):
        raise child.failed(f"answered a task of {agent} with adapter {adapter}")


def write_adapter(folder: Path, seed: int) -> Path:
    """A small PEFT LoRA for the mock's base: rank 8 on one projection, random weights."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = np.random.default_rng(seed).normal(0, 0.01, (8, 64)).astype(np.float32)
    tensors = {f"{layer}.lora_A.weight": weights, f"{layer}.lora_B.weight": np.ascontiguousarray(weights.T)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def post(child: Child, url: str, body: Mapping[str, Any]) -> tuple[Mapping[str, str], bytes]:
    """POST JSON and return the answer's headers and body.

    Raises ChildFailed, with what the server said, for anything but success.
    """
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=READY_TIMEOUT_S) as answer:
            return answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        raise child.failed(f"answered {error.code} to {url}: {error.read().decode()}") from None


def _await(child: Child, url: str, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return once `url` answers 200. Raises ChildFailed if the process ends or stays silent."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not child.running():
            raise child.failed("ended while starting")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise child.failed("did not become ready")
