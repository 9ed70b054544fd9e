from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from configs import EngineSettings, Settings, SettingsError, load_settings
from configs.settings import setting_names


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """No `loradock.toml` in sight, and an environment that must not matter: `environ` is what is passed in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORADOCK_WORKERS", "7")


def load(flags=None, file=None, **environ):
    return load_settings(flags, file, {f"LORADOCK_{key}": value for key, value in environ.items()})


@pytest.fixture
def toml(tmp_path):
    def write(content, name="loradock.toml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# -- precedence and origins --------------------------------------------------------------------------------------------


def test_flag_over_environment_over_file_over_default(toml):
    toml('port = 1\nhost = "127.0.0.2"\ncold_wait_ms = 9')
    loaded = load({"port": 3, "log_level": None}, PORT="2", HOST="127.0.0.3")
    settings = loaded.settings
    assert (settings.port, settings.host, settings.cold_wait_ms, settings.workers) == (3, "127.0.0.3", 9, 1)
    assert loaded.origins["port"] == "flag"
    assert loaded.origins["host"] == "env LORADOCK_HOST"
    assert loaded.origins["cold_wait_ms"] == "loradock.toml"
    assert loaded.origins["workers"] == loaded.origins["log_level"] == "default"


def test_every_setting_has_an_origin():
    assert set(load().origins) == set(setting_names())


def test_a_named_file_is_read_instead_of_the_one_in_the_folder(toml):
    toml("port = 1")
    other = toml("port = 2", "other.toml")
    loaded = load(file=other)
    assert loaded.settings.port == 2
    assert loaded.origins["port"] == str(other)


def test_the_process_environment_counts_where_none_is_passed():
    loaded = load_settings()
    assert (loaded.settings.workers, loaded.origins["workers"]) == (7, "env LORADOCK_WORKERS")


def test_settings_made_in_code_do_not_look_around(toml):
    toml("port = 1")
    assert (Settings().workers, Settings().port) == (1, 8000)


def test_a_bad_value_that_is_overridden_does_no_harm(toml):
    toml('port = "many"')
    assert load({"port": 5}).settings.port == 5
    assert load(PORT="6").settings.port == 6


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_counts_as_not_given(value, toml):
    toml("port = 1")
    loaded = load(PORT=value, HOST=value)
    assert (loaded.settings.port, loaded.settings.host) == (1, "127.0.0.1")
    assert loaded.origins["port"] == "loradock.toml"


def test_other_variables_are_not_ours():
    environ = {"LORADOCK_TEST_ENGINE": "x", "PORT": "1", "loradock_port": "2", "LORADOCKPORT": "3"}
    assert load_settings(environ=environ).settings.port == 8000


def test_values_of_the_environment_are_parsed_by_their_type(tmp_path):
    settings = load(PREFETCH="false", COLD_TIMEOUT_S="1.5", HOME="~/x", AGENTS_DIR="agents").settings
    assert settings.prefetch is False
    assert settings.cold_timeout_s == 1.5
    assert settings.home.is_absolute()
    assert "~" not in str(settings.home)
    assert settings.agents_dir == tmp_path / "agents"


# -- one clear line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"flags": {"prot": 1}}, "unknown setting 'prot'"),
        ({"PROT": "1"}, "unknown setting LORADOCK_PROT"),
        ({"ENGINES__0__NAME": "x"}, "unknown setting LORADOCK_ENGINES__0__NAME"),
        ({"PORT": "many"}, "port: "),
        ({"PORT": "65536"}, "port: "),
        ({"COLD_POLICY": "hope"}, "cold_policy: "),
        ({"COLD_TIMEOUT_S": "nan"}, "cold_timeout_s: "),
        ({"ENGINE": "ftp://host"}, "engine: "),
        ({"ENGINE": "http://[::bad"}, "engine: "),
        ({"ENGINES": "[{"}, "engines: "),
        ({"ENGINES": "x"}, "engines: "),
        ({"ENGINES": '{"name": "a"}'}, "engines: "),
        ({"ENGINES": '[{"name": "a", "modl": "b"}]'}, "unknown setting 'engines.0.modl'"),
        ({"ENGINES": '[{"name": "a", "slots": 0}]'}, "engines.0.slots: "),
        ({"ENGINES": '[{"name": "a", "max_lora_rank": 12}]'}, "engines.0.max_lora_rank: must be one of 1, 8"),
        ({"ENGINES": '[{"name": "a", "url": "http://h"}]'}, "takes no url"),
        ({"ENGINES": '[{"name": "a", "kind": "openai"}]'}, "needs a url"),
        ({"ENGINES": '[{"name": "a", "kind": "openai", "url": "h:1"}]'}, "engines.0.url: must be a URL"),
        ({"ENGINES": '[{"name": "A b"}]'}, "engines.0.name: "),
        ({"ENGINES": '[{"name": "a"}, {"name": "a", "model": "m"}]'}, "every engine name must differ"),
        ({"ENGINES": '[{"name": "a"}, {"name": "b"}]'}, "every base model name must differ"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_that_names_the_key(given, named):
    with pytest.raises(SettingsError) as refused:
        load(**given)
    message = str(refused.value)
    assert named in message
    assert "\n" not in message


def test_an_error_tells_where_the_value_came_from(toml):
    toml('prot = 1\nport = "many"')
    with pytest.raises(SettingsError) as refused:
        load(COLD_WAIT_MS="soon")
    message = str(refused.value)
    assert "unknown setting 'prot' (from loradock.toml)" in message
    assert "cold_wait_ms: " in message
    assert "(from env LORADOCK_COLD_WAIT_MS)" in message


def test_a_value_never_shows_in_an_error():
    with pytest.raises(SettingsError) as refused:
        load(PORT="hunter2", ENGINES='[{"name": "a", "api_key": "hunter2"}]')
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("content", [b"port = ", b"[engines", b"\xff\xfe", b"port = 1\nport = 2"])
def test_a_file_that_is_no_toml_is_told_by_its_name(content, toml):
    toml(content)
    with pytest.raises(SettingsError, match=r"loradock\.toml"):
        load()


def test_a_named_file_that_is_missing_or_a_folder_is_told(tmp_path):
    with pytest.raises(SettingsError, match="does not exist"):
        load(file=tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load(file=tmp_path)


# -- engines -----------------------------------------------------------------------------------------------------------


def test_engines_come_from_the_file_or_as_json(toml):
    toml('[[engines]]\nname = "a"\nmodel = "org/A-7B"\nargs = { max_model_len = 512 }\n')
    (engine,) = load().settings.resolved_engines
    assert (engine.name, engine.base_name, engine.args) == ("a", "A-7B", {"max_model_len": 512})
    tiers = [{"name": "s", "model": "/models/s/"}, {"name": "l", "kind": "openai", "model": "x", "url": "http://h/v1/"}]
    loaded = load(ENGINES=json.dumps(tiers))
    assert [each.base_name for each in loaded.settings.resolved_engines] == ["s", "x"]
    assert loaded.settings.engines[1].url == "http://h"
    assert loaded.origins["engines"] == "env LORADOCK_ENGINES"


@pytest.mark.parametrize("shorthand", ["auto", "cpu", "gpu", "h200"])
def test_the_shorthand_names_a_profile_of_the_embedded_base(shorthand):
    (engine,) = load(ENGINE=shorthand).settings.resolved_engines
    assert (engine.kind, engine.profile, engine.base_name) == ("vllm", shorthand, "loradock-tiny")


@pytest.mark.parametrize(
    "url", ["http://host:8001", "http://host:8001/", "http://host:8001/v1", "http://host:8001/v1/"]
)
def test_the_shorthand_may_be_a_servers_url_with_or_without_v1(url):
    (engine,) = load(ENGINE=url).settings.resolved_engines
    assert (engine.kind, engine.url) == ("vllm-remote", "http://host:8001")


def test_listed_engines_go_before_the_shorthand():
    settings = load(ENGINE="gpu", ENGINES='[{"name": "a"}]').settings
    assert [engine.name for engine in settings.resolved_engines] == ["a"]


def test_the_public_name_of_a_base():
    assert EngineSettings(name="a").base_name == "loradock-tiny"
    assert EngineSettings(name="a", model="org/Name").base_name == "Name"
    assert EngineSettings(name="a", model="org/Name", served_name="nice").base_name == "nice"


# -- derived -----------------------------------------------------------------------------------------------------------


def test_state_lies_in_home_unless_told_otherwise(tmp_path):
    settings = load(HOME=str(tmp_path)).settings
    assert settings.database == f"sqlite:///{tmp_path}/loradock.db"
    assert settings.keys_file == tmp_path / "api_keys.toml"
    settings = load(DATABASE_URL="postgresql://h/d", API_KEYS_FILE=str(tmp_path / "k")).settings
    assert (settings.database, settings.keys_file) == ("postgresql://h/d", tmp_path / "k")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_told_from_the_rest(host, loopback):
    assert Settings(host=host).is_loopback is loopback


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1


# -- sections ----------------------------------------------------------------------------------------------------------


def test_a_section_is_a_table_in_the_file_and_variables_with_two_underscores(toml):
    toml("[training]\ncooldown_s = 5\npoll_s = 2\n")
    loaded = load(TRAINING__COOLDOWN_S="0", TRAINING__BUDGET_USD="1.5")
    training = loaded.settings.training
    assert (training.cooldown_s, training.poll_s, training.budget_usd) == (0, 2, 1.5)
    assert loaded.origins["training.cooldown_s"] == "env LORADOCK_TRAINING__COOLDOWN_S"
    assert loaded.origins["training.poll_s"].endswith("loradock.toml")
    assert loaded.origins["training.dry_run"] == "default"


def test_unknown_keys_of_a_section_are_errors(toml):
    with pytest.raises(SettingsError, match="LORADOCK_TRAINING__SPEED"):
        load(TRAINING__SPEED="1")
    with pytest.raises(SettingsError, match="LORADOCK_PORT__X"):
        load(PORT__X="1")
    toml("[training]\nspeed = 1\n")
    with pytest.raises(SettingsError, match=r"unknown setting 'training.speed' \(from .*loradock.toml\)"):
        load()


def test_a_bad_value_of_a_section_names_its_variable():
    with pytest.raises(SettingsError, match=r"training.poll_s: .* \(from env LORADOCK_TRAINING__POLL_S\)"):
        load(TRAINING__POLL_S="soon")
