"""From the registry to a folder for others, with a check that can fail."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters_registry import AdapterNotFound, AdapterRegistry
from configs import embedded
from training.export import (
    CaseSet,
    ExportCase,
    ExportOrder,
    ExportRefused,
    ExportReport,
    TooMuchLost,
    check_loss,
    conversation_cases,
    demo_cases,
    export,
    general_cases,
    job_figures,
    read_cases,
)
from training.export import exporter as exporter_module
from training.export.card import license_of
from training.export.models import adapter_model, merged_model


def _export(registry: AdapterRegistry, **order: Any) -> ExportReport:
    return export(registry, ExportOrder(ref="support-agent", **order), lambda _step, _done, _total: None)


def _cases(count: int) -> CaseSet:
    found = demo_cases("support")
    assert found is not None
    return found.sample(count)


def test_a_peft_folder_registers_as_the_version_that_it_came_from(registry: AdapterRegistry, tmp_path: Path) -> None:
    figures = {"Training": {"steps": 450, "loss": 0.00912}, "Gate": {"passed": True, "win|loss": "3|1"}}
    report = _export(registry, destination=tmp_path / "out", figures=figures)
    version = registry.get("support-agent")
    again = registry.register("again", tmp_path / "out", agent="again")
    assert again.digest == version.digest == report.digest
    assert set(report.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = (tmp_path / "out" / "README.md").read_text()
    for told in (
        version.digest,
        version.agent,
        'base_model: "loradock-tiny"',
        "| rank | 16 |",
        "| steps | 450 |",
        r"3\|1",
    ):
        assert told in card
    assert str(embedded.ADAPTERS) not in card
    for command in ("AutoPeftModelForCausalLM", "loradock adapters add support-agent"):
        assert command in card


def test_a_merged_model_is_checked_and_says_so(registry: AdapterRegistry, tmp_path: Path) -> None:
    report = _export(registry, destination=tmp_path / "out", format="merged", base=embedded.BASE, cases=_cases(8))
    assert report.loss is not None
    assert report.loss.passed
    assert report.loss.reference_accuracy is not None
    assert report.loss.same_answers is not None
    assert report.loss.cases == 8
    kept = json.loads((tmp_path / "out" / "export.json").read_text())
    assert kept["loss"]["passed"]
    assert kept["digest"] == registry.get("support-agent").digest
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert "at most 5% allowed" in card


def test_a_gguf_export_is_one_file_with_its_card(
    registry: AdapterRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter_module, "has_llama_cpp", lambda: False)
    report = _export(registry, destination=tmp_path / "out", format="gguf-q8_0", base=embedded.BASE, cases=_cases(8))
    version = registry.get("support-agent").version
    assert set(report.files) == {"README.md", f"support-agent-{version}-Q8_0.gguf"}
    assert report.loss is not None
    assert report.loss.passed
    assert "dequantised" in report.loss.way
    assert f"support-agent-{version}-Q8_0.gguf" in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that writes something else than the adapter says."""
    write = exporter_module.write_merged

    def spoil(merge: Any, folder: Path, *rest: Any) -> None:
        write(merge, folder, *rest)
        tensors = load_file(folder / "model.safetensors")
        torch.manual_seed(0)
        for name in [name for name in tensors if "mlp.down_proj" in name]:
            tensors[name] = torch.randn_like(tensors[name].float()).to(torch.bfloat16) * tensors[name].float().std()
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, folder / "model.safetensors")

    monkeypatch.setattr(exporter_module, "write_merged", spoil)


@pytest.mark.usefixtures("spoiled")
def test_an_export_that_lost_too_much_leaves_nothing(registry: AdapterRegistry, tmp_path: Path) -> None:
    order: dict[str, Any] = {"format": "merged", "base": embedded.BASE, "cases": _cases(8)}
    with pytest.raises(TooMuchLost, match="at most 5% is allowed") as caught:
        _export(registry, destination=tmp_path / "out", **order)
    assert caught.value.report.lost > 0.05
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(TooMuchLost):
        _export(registry, destination=tmp_path / "out", keep=True, **order)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["loss"]["passed"] is False


def test_cases_without_labels_are_judged_by_likelihood_alone() -> None:
    cases = CaseSet.of("free text", (ExportCase.of_text(f"say {n}", f"answer {n}") for n in range(4)))
    adapter = embedded.ADAPTERS / "support-agent"
    report = check_loss(adapter_model(embedded.BASE, adapter, 0), merged_model(embedded.BASE, 0), cases)
    assert report.reference_accuracy is None
    assert report.same_answers is None
    assert report.lost == max(report.perplexity_lost, report.tokens_lost)


def test_a_base_without_a_chat_template_is_checked_by_nobody(tmp_path: Path) -> None:
    for file in embedded.BASE.iterdir():
        if file.name != "chat_template.jinja":
            shutil.copyfile(file, tmp_path / file.name)
    plain = merged_model(tmp_path, 0)
    with pytest.raises(ExportRefused, match="--no-check"):
        check_loss(plain, plain, _cases(2))


def test_the_base_alone_has_lost_the_adapter() -> None:
    adapter = embedded.ADAPTERS / "support-agent"
    report = check_loss(adapter_model(embedded.BASE, adapter, 0), merged_model(embedded.BASE, 0), _cases(8))
    assert not report.passed
    assert report.accuracy_lost > 0.5
    assert report.perplexity_lost > 1


def test_a_loss_that_is_no_number_does_not_pass() -> None:
    report = check_loss(merged_model(embedded.BASE, 0), merged_model(embedded.BASE, 0), _cases(2))
    assert report.passed
    assert not replace(report, exported_nll=float("nan"), perplexity_lost=float("inf")).passed


def test_refusals_come_before_the_work(registry: AdapterRegistry, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound):
        export(registry, ExportOrder("no-such", tmp_path / "out"), lambda _step, _done, _total: None)
    with pytest.raises(ExportRefused, match="base model's folder"):
        _export(registry, destination=tmp_path / "out", format="merged")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ExportRefused, match="not empty"):
        _export(registry, destination=tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_cases_are_read_from_the_files_that_people_have(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("text,label,split\na,x,test\nb,y,train\nc, x ,holdout\n")
    assert [(case.messages[0]["content"], case.answer) for case in read_cases(table).cases] == [("a", "x"), ("c", "x")]
    lines = tmp_path / "holdout.jsonl"
    lines.write_text('{"messages": [{"role": "user", "content": "a"}], "completion": "b"}\n\n')
    assert read_cases(lines).cases == (ExportCase.of_text("a", "b"),)
    for text in ("text\na\n", "text,label\n"):
        table.write_text(text)
        with pytest.raises(ExportRefused, match="holds no cases"):
            read_cases(table)
    with pytest.raises(ExportRefused, match="cannot read"):
        read_cases(tmp_path / "none.csv")


def test_cases_without_an_answer_are_left_out() -> None:
    asked = {"role": "user", "content": "a"}
    assert conversation_cases([([asked], "b"), ([asked], "")], "x").cases == (ExportCase.of_text("a", "b"),)
    assert len(general_cases().cases) > 50
    assert demo_cases("no-such-agent") is None


def test_a_jobs_figures_are_told_in_words() -> None:
    gate = {
        "passed": True,
        "verdict": "better by 4 points",
        "candidate": {"model": "a@1", "exact_match": 0.9},
        "champion": None,
        "bootstrap": {"lower": 0.01},
    }
    assert job_figures({"steps": 3, "loss": None, "adapter": "adapter"}, gate) == {
        "Training": {"steps": 3},
        "Gate": {"verdict": "better by 4 points", "candidate: exact match": 0.9, "gain, lower bound": 0.01},
    }
    assert job_figures(None, None) == {}


def test_the_licence_is_the_bases_own(tmp_path: Path) -> None:
    assert license_of(embedded.BASE) == "apache-2.0"
    assert license_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: llama3.1\n---\n# A model\n")
    assert license_of(tmp_path) == "llama3.1"
