from __future__ import annotations

import gzip
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from serving.auth import add_key
from tests.serving.cli.conftest import Cli
from tests.serving.cli.parrot import BASE, Running, running, write_adapter


@pytest.fixture
def server(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """An endpoint that the settings lead to, with one adapter."""
    with running(tmp_path / "home") as endpoint:
        monkeypatch.setenv("LORADOCK_PORT", endpoint.url.rpartition(":")[2])
        assert cli("adapters", "add", "legal-agent", write_adapter(tmp_path / "one", 1)).code == 0
        yield endpoint


def _add(cli: Cli, tmp_path: Path, name: str, seed: int, *options: str) -> str:
    added = cli("adapters", "add", name, write_adapter(tmp_path / f"{name}-{seed}", seed), *options, "--json").json
    return f"{name}@{added['version']}"


def _champion(cli: Cli, agent: str = "legal-agent") -> str:
    models = {entry["id"]: entry for entry in cli("models", "--json").json["data"]}
    return str(models[agent]["adapter"])


def test_a_registered_adapter_is_listed_and_shown(cli: Cli, server: Running) -> None:
    listed = cli("adapters", "list")
    assert (listed.code, listed.err) == (0, "")
    assert "legal-agent@" in listed.out
    assert "champion" in listed.out
    shown = cli("adapters", "show", "legal-agent")
    assert shown.code == 0
    digest = cli("adapters", "show", "legal-agent", "--json").json["digest"]
    assert digest in shown.out
    assert "register" in shown.out


def test_a_relative_source_means_the_folder_here(cli: Cli, server: Running, alone: Path) -> None:
    write_adapter(alone / "here", 5)
    assert cli("adapters", "add", "other", "here").code == 0


def test_refusals_of_the_server_are_one_line(cli: Cli, server: Running, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "bad")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')
    for arguments in (
        ["adapters", "add", "bad", folder],
        ["adapters", "add", "../x", folder],
        ["adapters", "show", "nobody"],
        ["adapters", "promote", "legal-agent@ffffffffffff"],
        ["adapters", "rollback", "legal-agent"],
        ["chat", "hi", "--model", "legal-agnt"],
        ["route", "hi", "--model", "legal-agnt"],
    ):
        result = cli(*arguments)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1), arguments
        refused = cli(*arguments, "--json")
        assert refused.json["error"]["message"] in refused.err


def test_champions_are_switched_and_rolled_back(cli: Cli, server: Running, tmp_path: Path) -> None:
    first = _champion(cli)
    second = _add(cli, tmp_path, "legal-agent", 2)
    third = _add(cli, tmp_path, "lawyer", 3, "--agent", "legal-agent")
    assert _champion(cli) == first
    assert cli("adapters", "promote", second).code == 0
    assert _champion(cli) == second
    assert cli("adapters", "switch", "legal-agent", "lawyer").code == 0
    assert _champion(cli) == third
    assert cli("adapters", "rollback", "legal-agent").code == 0
    assert _champion(cli) == second
    wrong = cli("adapters", "switch", "support", "lawyer")
    assert (wrong.code, _champion(cli)) == (1, second)
    assert "belongs to agent legal-agent" in wrong.err
    assert cli("adapters", "retire", second).code == 0
    assert _champion(cli) != second
    assert second in " ".join(
        f"{each['name']}@{each['version']}" for each in cli("adapters", "list", "--retired", "--json").json["data"]
    )


def test_adapters_are_loaded_and_unloaded(cli: Cli, server: Running) -> None:
    assert "is ready after" in cli("adapters", "load", "legal-agent").out
    assert cli("adapters", "unload", "legal-agent").code == 0
    deadline = time.monotonic() + 5
    while cli("adapters", "show", "legal-agent", "--json").json["residency"]["state"] != "absent":
        assert time.monotonic() < deadline


def test_a_pinned_adapter_stays_loaded(cli: Cli, server: Running) -> None:
    assert cli("adapters", "pin", "legal-agent").code == 0
    refused = cli("adapters", "unload", "legal-agent")
    assert refused.code == 1
    assert "unpin it first" in refused.err
    assert cli("adapters", "unpin", "legal-agent").code == 0
    assert not cli("adapters", "show", "legal-agent", "--json").json["pinned"]


def test_an_adapter_is_exported_as_it_came(cli: Cli, server: Running, tmp_path: Path) -> None:
    assert cli("adapters", "export", "legal-agent", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    weights = "adapter_model.safetensors"
    written, given = load_file(tmp_path / "out" / weights), load_file(tmp_path / "one" / weights)
    assert written.keys() == given.keys()
    assert all((written[name] == given[name]).all() for name in given)
    again = cli("adapters", "export", "legal-agent", tmp_path / "out")
    assert (again.code, again.out) == (1, "")


def test_export_without_a_home_says_so(cli: Cli, tmp_path: Path) -> None:
    result = cli("adapters", "export", "x", tmp_path / "out")
    assert result.code == 1
    assert "LORADOCK_HOME" in result.err


def test_chat_prints_the_answer_alone_and_who_gave_it_aside(cli: Cli, server: Running) -> None:
    champion = _champion(cli)
    result = cli("chat", "say blue", "--agent", "legal-agent")
    assert (result.code, result.out) == (0, "blue\n")
    assert champion in result.err
    assert "champion" in result.err
    document = cli("chat", "say blue", "--model", "legal-agent", "--session", "s1", "--json").json
    assert document["content"] == "blue"
    assert (document["adapter"], document["session"]) == (champion, "s1")
    assert document["usage"]["completion_tokens"] == 4
    assert document["ttft_ms"] > 0


def test_chat_asks_what_is_piped_in(cli: Cli, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("say green\n"))
    assert cli("chat", "--model", "legal-agent").out == "green\n"


def test_an_answer_cannot_steer_the_terminal(cli: Cli, server: Running) -> None:
    result = cli("chat", "say \x1b]0;owned\x07[red]x", "--model", "legal-agent")
    assert result.out == "]0;owned[red]x\n"


def test_an_answer_that_breaks_off_is_an_error(cli: Cli, server: Running) -> None:
    server.engine.breaks_off = True
    result = cli("chat", "say blue", "--model", "legal-agent", "--json")
    assert result.code == 1
    assert result.json["error"]["message"]


def test_route_explains_without_asking(cli: Cli, server: Running) -> None:
    decision = cli("route", "Is this clause void?", "--agent", "legal-agent", "--json").json
    assert decision["adapter"] == _champion(cli)
    shown = cli("route", "Is this clause void?", "--agent", "legal-agent")
    assert (shown.code, shown.err) == (0, "")
    for word in (decision["adapter"], decision["reason"], "P(success)", "utility", "features: chars"):
        assert word in shown.out


def test_status_counts_requests_and_slots(cli: Cli, server: Running) -> None:
    for _ in range(3):
        cli("chat", "say blue", "--model", "legal-agent")
    report = cli("status", "--json").json
    assert report["status"] == "ready"
    assert report["engines"][0]["slots_used"] == 1
    assert report["requests"]["served"] == 3
    assert report["requests"]["completion_tokens"] == 12
    assert sum(report["requests"]["by_reason"].values()) == 3
    text = cli("status")
    assert text.code == 0
    assert "1/3" in text.out


def test_models_lists_what_can_be_asked_for(cli: Cli, server: Running) -> None:
    text = cli("models").out
    for name in ("auto", BASE, "legal-agent"):
        assert any(line.startswith(f"{name} ") for line in text.splitlines())


def test_bench_of_an_adapter_scores_it_and_its_base(cli: Cli, server: Running, tmp_path: Path) -> None:
    rows = [*(f"text {i} {'ab'[i % 2]},{'ab'[i % 2]}" for i in range(20)), "wrong c,a", "unknown ?,?"]
    data = tmp_path / "cases.csv.gz"
    data.write_bytes(gzip.compress(("text,label\n" + "\n".join(rows) + "\n").encode()))
    report = cli("adapters", "bench", "legal-agent", "--data", data, "--concurrency", "4", "--json").json
    assert (report["rows"], report["errors"]) == (22, 0)
    assert report["accuracy"] == round(21 / 22, 4)
    assert report["base_accuracy"] == round(1 / 22, 4)
    assert report["answered_by"] == {_champion(cli): 22}
    assert report["ttft_p50_ms"] > 0
    assert report["tok_s"] > 0
    text = cli("adapters", "bench", "legal-agent", "--data", data, "--limit", "5")
    assert (text.code, text.err) == (0, "")
    assert "5 rows" in text.out


def test_bench_of_an_adapter_that_cannot_be_loaded_fails(cli: Cli, server: Running, tmp_path: Path) -> None:
    server.engine.refuse.add("legal-agent")
    (tmp_path / "cases.csv").write_text("text,label\nx a,a\n")
    result = cli("adapters", "bench", "legal-agent", "--data", tmp_path / "cases.csv")
    assert (result.code, result.out) == (1, "")
    assert "cannot be loaded" in result.err


def test_test_asks_adapter_and_base_the_same(cli: Cli, server: Running) -> None:
    report = cli("adapters", "test", "legal-agent", "--prompt", "say blue", "--json").json
    assert report["ok"]
    assert report["answers"][report["adapter"]]["content"] == "blue"
    assert report["answers"][BASE]["content"] == "?"
    assert cli("adapters", "test", "legal-agent").code == 0
    server.engine.breaks_off = True
    broken = cli("adapters", "test", "legal-agent")
    assert broken.code == 1
    assert "does not answer" in broken.out


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_bench_reports_latencies_and_rates(cli: Cli, server: Running, stream: str) -> None:
    arguments = ["bench", "--model", "legal-agent", "-n", "12", "--concurrency", "3", stream]
    report = cli(*arguments, "--json").json
    assert (report["requests"], report["errors"], report["concurrency"]) == (12, 0, 3)
    assert report["latency_ms"]["p50"] <= report["latency_ms"]["max"]
    assert report["requests_per_s"] > 0
    assert (report["ttft_ms"] is not None) == (stream == "--stream")
    text = cli(*arguments)
    assert (text.code, text.err) == (0, "")
    assert "p99" in text.out


def test_bench_counts_failures(cli: Cli, server: Running) -> None:
    result = cli("bench", "--model", "nobody", "-n", "3", "--json")
    assert result.code == 1
    assert result.json["errors"] == 3
    assert sum(result.json["error_messages"].values()) == 3


def test_with_keys_the_environment_holds_the_clients(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "home" / "api_keys.toml"
    admin, user = add_key(keys, "ops", admin=True), add_key(keys, "app", admin=False)
    with running(tmp_path / "home") as endpoint:
        adding = ("adapters", "add", "x", write_adapter(tmp_path / "x"), "--url", endpoint.url)
        without = cli("models", "--url", endpoint.url)
        assert without.code == 1
        assert "API key" in without.err
        monkeypatch.setenv("LORADOCK_API_KEY", user)
        assert cli("models", "--url", endpoint.url).code == 0
        assert cli("bench", "-n", "2", "--url", endpoint.url).code == 0
        assert "admin key" in cli(*adding).err
        monkeypatch.setenv("LORADOCK_API_KEY", admin)
        assert cli(*adding).code == 0


def test_bench_of_an_agent_scores_its_champion_whatever_that_is_called(
    cli: Cli, server: Running, tmp_path: Path
) -> None:
    first = _add(cli, tmp_path, "lawyer", 3, "--agent", "contracts")
    second = _add(cli, tmp_path, "clerk", 4, "--agent", "contracts")
    data = tmp_path / "cases.csv"
    data.write_text("text,label,split\nsay a,a,test\nsay b,b,train\n")
    for asked, scored in (("contracts", first), ("clerk", second), (second, second)):
        report = cli("adapters", "bench", asked, "--data", data, "--json").json
        assert (report["adapter"], report["rows"], report["answered_by"]) == (scored, 1, {scored: 1})
    assert "nobody" in cli("adapters", "bench", "nobody", "--data", data).err
