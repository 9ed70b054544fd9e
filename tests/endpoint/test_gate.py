"""The gate's questions to the real engine: what peft says of the same adapter, and how conversations are rendered."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from configs.embedded import ADAPTER_AGENTS, ADAPTERS, BASE, BASE_NAME, holdout
from tests.endpoint.conftest import Server
from training.gate import EndpointClient, Judge, record_template
from training.gate.evaluate import Exam, evaluate
from training.gate.rows import Row
from training.trainer.rows import ChatFormat, Encoded

CASES = 100
MOST_APART = 0.01


@dataclass(frozen=True)
class Held:
    folder: Path
    name: str = "ds-test"


def entries(agent: str, count: int) -> list[dict[str, Any]]:
    """Rows of an agent's holdout as a dataset has them, from all over the file."""
    with holdout(ADAPTER_AGENTS[agent]).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [
        {
            "messages": [{"role": "user", "content": row["text"]}],
            "completion": row["label"],
            "task_type": "classification",
        }
        for row in rows[:: len(rows) // count][:count]
    ]


def encoded(lines: Sequence[dict[str, Any]]) -> tuple[ChatFormat, Encoded]:
    """The tokens that a trainer learns from."""
    from transformers import AutoTokenizer

    chats = ChatFormat(AutoTokenizer.from_pretrained(BASE))
    return chats, chats.encode(lines, max_length=4096)


def nll_in_peft(agent: str, rows: Encoded) -> list[float]:
    """Mean negative log likelihood a token of each answer, by transformers and peft in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(ADAPTERS / agent)).eval()
    values = []
    with torch.inference_mode():
        for row in rows.rows:
            ids = torch.tensor(row.ids.astype("int64"))
            logprobs = model(ids[None]).logits[0, :-1].float().log_softmax(-1)
            told = logprobs.gather(1, ids[1:, None]).squeeze(1)[row.prompt - 1 :]
            values.append(-float(told.mean()))
    return values


def engine_name(server: Server, agent: str) -> str:
    return f"{agent}@{server.get(f'/v1/adapters/{agent}').json()['version']}"


async def test_peft_and_the_engine_agree_on_the_likelihood_of_100_answers(server: Server) -> None:
    agent = "support-agent"
    lines = entries(agent, CASES)
    rows = tuple(Row(str(number), tuple(line["messages"]), line["completion"]) for number, line in enumerate(lines))
    exam = Exam(rows, frozenset(row.target for row in rows), likelihood_rows=CASES)
    async with EndpointClient(server.url).connected() as endpoint:
        served = await evaluate(endpoint, engine_name(server, agent), exam)
    trained = nll_in_peft(agent, encoded(lines)[1])
    assert served.scores.likelihood_rows == len(trained) == CASES
    total = sum(value for value in served.nll if value is not None)
    assert total == pytest.approx(sum(trained), rel=MOST_APART)
    assert served.nll == pytest.approx(trained, abs=1e-3)


def test_the_gate_judges_a_demo_adapter_as_the_engine_serves_it(server: Server, tmp_path: Path) -> None:
    agent = "legal-agent"
    lines = entries(agent, 40)
    (tmp_path / "holdout.jsonl").write_text("\n".join(map(json.dumps, lines)))
    chats, rows = encoded(lines[:8])
    record_template(chats.template, lines[:8], [(row.ids[: row.prompt], row.ids) for row in rows.rows]).write(tmp_path)
    judge = Judge(EndpointClient(server.url), general_rows=20, general_loss=1.0)
    candidate = engine_name(server, agent)
    report = judge.gate(candidate=candidate, champion=None, base=BASE_NAME, dataset=Held(tmp_path), template=tmp_path)
    assert report.passed, report.verdict
    assert report.candidate and report.base and report.general and report.template
    assert report.candidate.exact_match > 0.9
    assert report.base.exact_match < 0.1
    assert report.candidate.perplexity and report.base.perplexity
    assert 10 * report.candidate.perplexity < report.base.perplexity
    assert report.general.reference > 0.9
    assert report.template.identical
