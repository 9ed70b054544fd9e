from __future__ import annotations

import pytest

from configs import SettingsError
from configs.agents import load_presets

SHIPPED = {"legal", "security", "support", "qa", "analyst", "deploy", "spec", "marketing"}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return write


def test_the_shipped_presets_are_complete():
    presets = load_presets()
    assert set(presets) == SHIPPED
    for name, preset in presets.items():
        assert preset.name == name
        assert preset.base is None
        assert preset.description
        assert preset.recognise.strong


def test_no_term_is_claimed_by_two_agents_as_strong():
    presets = load_presets().values()
    terms = [term.lower() for preset in presets for term in preset.recognise.strong]
    assert sorted(terms) == sorted(set(terms))


def test_a_users_file_adds_an_agent(write):
    folder = write(
        "billing.yaml", "description: Bills\nrecognise: {strong: [invoice number]}\nrouting: {adapter_lift: 0.5}"
    )
    presets = load_presets(folder)
    assert set(presets) == SHIPPED | {"billing"}
    assert presets["billing"].recognise.strong == ("invoice number",)
    assert presets["billing"].routing.adapter_lift == 0.5


def test_a_users_file_changes_a_preset_key_by_key(write):
    shipped = load_presets()["legal"]
    changed = load_presets(write("legal.yml", "base: big\nrecognise: {strong: [tort]}"))["legal"]
    assert (changed.base, changed.recognise.strong) == ("big", ("tort",))
    assert changed.recognise.weak == shipped.recognise.weak
    assert changed.description == shipped.description
    assert load_presets()["legal"] == shipped


def test_other_files_are_left_alone(write):
    write("README.md", "x")
    assert set(load_presets(write("notes.yaml.bak", ":"))) == SHIPPED


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.yaml", "descripton: x", "unknown setting 'descripton'"),
        ("a.yaml", "description: x\nname: b", "unknown setting 'name'"),
        ("a.yaml", "base: x", "description: "),
        ("a.yaml", "description: ''", "description: "),
        ("legal.yaml", "routing: {lift: 1}", "unknown setting 'routing.lift'"),
        ("legal.yaml", "routing: {adapter_lift: 2}", "routing.adapter_lift: "),
        ("legal.yaml", "routing: 3", "routing: "),
        ("legal.yaml", "recognise: {strong: ['--']}", "recognise.strong: "),
        ("legal.yaml", "recognise: {strong: [no]}", "recognise.strong.0: "),
        ("legal.yaml", "recognise: {strong: a b}", "recognise.strong: "),
        ("A b.yaml", "description: x", "name: "),
        ("a.yaml", "- x", "must be a mapping"),
        ("a.yaml", "", "must be a mapping"),
        ("a.yaml", "a: [", "a.yaml: "),
        ("a.yaml", b"\xff\xfe\x00", "a.yaml: "),
        ("a.yaml", "description: !!python/object/apply:os.getcwd []", "a.yaml: "),
        ("a.yaml", "#" * (1 << 20) + "\n", "larger than"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_that_names_file_and_key(name, content, told, write):
    with pytest.raises(SettingsError) as refused:
        load_presets(write(name, content))
    message = str(refused.value)
    assert told in message
    assert name in message
    assert "\n" not in message


def test_two_files_for_one_agent_are_refused(write):
    write("a.yml", "description: x")
    with pytest.raises(SettingsError, match="agent 'a' has two files"):
        load_presets(write("a.yaml", "description: y"))


def test_a_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(SettingsError, match="agents_dir"):
        load_presets(tmp_path / "none")
