"""The embedded base model `loradock-tiny`, its three demo adapters and their held-out cases: where they lie.

Everything here is package data, made by `python -m training.demo`; MODEL_CARD.md beside this file tells how and how
good. Importing this package reads nothing.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent

BASE_NAME = "loradock-tiny"
"""public name of the base, and `base_model_name_or_path` of the adapters"""
BASE = ROOT / "base"
"""folder of the base model, as `transformers` and vLLM read it"""
ADAPTERS = ROOT / "adapters"
"""folder with one PEFT folder per demo adapter, named after the adapter"""
ADAPTER_AGENTS = {"legal-agent": "legal", "security-agent": "security", "support-agent": "support"}
"""name of each demo adapter and the agent that it serves"""
GENERAL_SET = ROOT / "general.jsonl"
"""general questions with answers: one JSON object a line, `question`, `answer`, `accept` (strings that a right answer
contains one of)"""


def holdout(agent: str) -> Path:
    """The held-out cases of `agent` (as in ADAPTER_AGENTS): a CSV with the columns `text` and `label`."""
    return ROOT / "holdout" / f"{agent}.csv"
