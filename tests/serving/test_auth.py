import contextlib
import os
import stat
from pathlib import Path

import pytest

from configs.settings import Settings, SettingsError
from serving import auth
from serving.auth import LOCAL, Caller, KeyRing, add_key, check_binding, refuse_foreign_page, remove_key, require_admin
from serving.errors import Forbidden, Unauthorized

HOST = "localhost:8000"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "api_keys.toml"


def test_without_keys_everyone_is_local_and_admin(path: Path) -> None:
    ring = KeyRing(path)
    assert not ring
    assert ring.identify(None, HOST) is LOCAL
    require_admin(ring.identify(None, HOST))


def test_a_key_is_recognised_and_its_text_is_nowhere_on_disk(path: Path) -> None:
    token = add_key(path, "ci", admin=False)
    caller = KeyRing(path).identify(f"Bearer {token}", HOST)
    assert caller.name == "ci"
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(Forbidden):
        require_admin(caller)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer ld-wrong", "Basic abc", "ld-wrong"])
def test_anything_else_is_refused(path: Path, header: str | None) -> None:
    add_key(path, "ci", admin=True)
    with pytest.raises(Unauthorized):
        KeyRing(path).identify(header, HOST)


def test_a_revoked_key_stops_working_without_a_restart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "RELOAD_S", 0)
    first, second = add_key(path, "first", admin=True), add_key(path, "second", admin=False)
    ring = KeyRing(path)
    assert ring.identify(f"Bearer {first}", HOST).admin
    remove_key(path, "first")
    os.utime(path, ns=(1, 1))
    with pytest.raises(Unauthorized):
        ring.identify(f"Bearer {first}", HOST)
    assert ring.identify(f"Bearer {second}", HOST).name == "second"


def test_the_last_key_cannot_be_removed_because_that_would_open_every_route(path: Path) -> None:
    add_key(path, "only", admin=True)
    with pytest.raises(SettingsError, match="last key"):
        remove_key(path, "only")


@pytest.mark.parametrize(("name", "reason"), [("ci", "exists already"), ("Two Words", "not a valid key name")])
def test_names_are_checked(path: Path, name: str, reason: str) -> None:
    add_key(path, "ci", admin=True)
    with pytest.raises(SettingsError, match=reason):
        add_key(path, name, admin=True)


def test_a_malformed_file_is_an_error_and_not_an_open_door(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('[[keys]]\nname = "x"\nsha256 = "short"\n')
    with pytest.raises(SettingsError, match=r"api_keys\.toml"):
        KeyRing(path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_listening_for_others_needs_keys(path: Path, host: str) -> None:
    settings = Settings(host=host)
    with pytest.raises(SettingsError, match="loradock keys add"):
        check_binding(settings, KeyRing(path))
    add_key(path, "ci", admin=True)
    check_binding(settings, KeyRing(path))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_none(path: Path, host: str) -> None:
    check_binding(Settings(host=host), KeyRing(path))


def test_a_file_that_goes_away_opens_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "RELOAD_S", 0)
    token = add_key(path, "ci", admin=True)
    ring, kept = KeyRing(path), path.read_text()
    path.unlink()
    for header in (None, f"Bearer {token}"):
        with pytest.raises(Unauthorized):
            ring.identify(header, HOST)
    path.write_text(kept)
    assert ring.identify(f"Bearer {token}", HOST).name == "ci"


def test_where_keys_are_required_none_is_no_open_door(path: Path) -> None:
    with pytest.raises(Unauthorized):
        KeyRing(path, required=True).identify(None, HOST)


@pytest.mark.parametrize("content", [b"keys = 3", b"[[keys]", b"\xff\xfe"])
def test_a_file_spoilt_while_running_leaves_the_keys_as_they_were(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RELOAD_S", 0)
    token = add_key(path, "ci", admin=True)
    ring = KeyRing(path)
    path.write_bytes(content)
    for _ in range(2):
        assert ring.identify(f"Bearer {token}", HOST).name == "ci"
        with pytest.raises(Unauthorized):
            ring.identify(None, HOST)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (None, True),
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("192.168.1.7", True),
        ("[::1]:8000", True),
        ("gpu-box:8000", True),
        ("host.docker.internal:8000", True),
        ("Printer.Local.", True),
        ("localhost.localdomain", True),
        ("localhost@evil.example", False),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("[::1", False),
    ],
)
def test_without_keys_only_names_of_this_machine_or_network_lead_here(
    tmp_path: Path, host: str | None, allowed: bool
) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(Forbidden, match="loradock keys add"):
        assert KeyRing(tmp_path / "none.toml").identify(None, host) is LOCAL


def test_with_keys_any_name_leads_here(tmp_path: Path) -> None:
    token = add_key(tmp_path / "keys.toml", "ci", admin=True)
    assert KeyRing(tmp_path / "keys.toml").identify(f"Bearer {token}", "llm.example.com").name == "ci"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:3000", True),
        ("http://[::1]:8000", True),
        ("https://evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("null", False),
        ("http://[::1", False),
    ],
)
def test_without_keys_only_pages_of_this_machine_may_change_adapters(origin: str | None, allowed: bool) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(Forbidden, match="without an API key"):
        refuse_foreign_page(LOCAL, origin)


def test_with_a_key_the_page_does_not_matter() -> None:
    refuse_foreign_page(Caller("web", admin=True), "https://app.example")
