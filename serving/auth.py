"""API keys: kept as SHA-256 hashes in a TOML file, checked on every route but `/health`.

A key is 256 random bits, so one unsalted hash is enough: there is no dictionary to try. The file is read again when it
changes, so that a key can be added or revoked without a restart. Where keys were needed once they stay needed until a
restart: a file that goes away, as while an editor or a volume replaces it, must not open every route. Without keys only
addresses and local names lead here, so that no web page reads what is here under a name of its own (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import secrets
import time
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.routing import RoutingWishes
from configs.settings import NAME_PATTERN, Settings, SettingsError
from router import NO_WISHES, Wishes
from serving.errors import Forbidden, Unauthorized

log = logging.getLogger(__name__)

KEY_PREFIX = "ld-"
RELOAD_S = 1.0
LOCAL_DOMAINS = (".localhost", ".localdomain", ".local", ".internal", ".home.arpa", ".test")
"""that the public DNS does not resolve (RFC 6761, 6762, 8375; ICANN for .internal; .localdomain by custom)"""


class _StoredKey(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    admin: bool = False
    record: bool = True
    routing: RoutingWishes = RoutingWishes()


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[_StoredKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: the key's name, or `local` where no keys are configured.

    Requests of a caller with `record` false become no cases. `wishes` hold for all routes of the caller.
    """

    name: str
    admin: bool
    record: bool = True
    wishes: Wishes = NO_WISHES


LOCAL = Caller("local", admin=True)
TRAINING = Caller("loradock-training", admin=False, record=False)
"""the training worker, which the server starts itself"""


class KeyRing:
    """The configured keys; none where the file is missing. With `required`, no keys means that nobody may enter.

    Raises SettingsError when the file is malformed. What cannot be read later is logged, and the former keys stay.
    """

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self._path = path
        self._required = required
        self._stamp: tuple[int, int] | None = None
        self._checked = 0.0
        self._callers: dict[str, Caller] = {}
        self._admitted: dict[str, Caller] = {}
        self._load()

    def __bool__(self) -> bool:
        return bool(self._callers)

    def callers(self) -> list[Caller]:
        """Names and rights of all keys."""
        return list(self._callers.values())

    def admit(self, token: str, caller: Caller) -> None:
        """Let a process of ours in that carries `token`; nothing is stored."""
        self._admitted[_hash(token)] = caller

    def identify(self, authorization: str | None, host: str | None) -> Caller:
        """The caller behind these headers `Authorization` and `Host`.

        Raises Unauthorized; Forbidden where no key is needed and a name of elsewhere leads here, as a web page's does
        that has its own name rebound to this machine to read what it answers.
        """
        self._reload_if_changed()
        if not self._required:
            if not _is_local_name(host or ""):
                raise Forbidden(
                    f"without API keys this endpoint does not answer to the name {host}: use localhost or an address, "
                    "or create a key with 'loradock keys add NAME --admin'"
                )
            return LOCAL
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("an API key is needed: send it as 'Authorization: Bearer KEY'")
        hashed = _hash(token.strip())
        caller = self._callers.get(hashed) or self._admitted.get(hashed)
        if caller is None:
            raise Unauthorized("the API key is not valid")
        return caller

    def _reload_if_changed(self) -> None:
        now = time.monotonic()
        if now - self._checked < RELOAD_S:
            return
        self._checked = now
        try:
            if _stamp(self._path) != self._stamp:
                self._load()
        except (SettingsError, OSError) as error:
            log.warning("the API keys stay as they were: %s", error)

    def _load(self) -> None:
        self._stamp = _stamp(self._path)
        self._callers = {
            key.sha256: Caller(key.name, key.admin, key.record, _wishes(key)) for key in _read(self._path).keys
        }
        self._required = self._required or bool(self._callers)


def require_admin(caller: Caller) -> None:
    """Raises Forbidden unless `caller` may change adapters."""
    if not caller.admin:
        raise Forbidden("this route needs an admin key")


def refuse_foreign_page(caller: Caller, origin: str | None) -> None:
    """Raises Forbidden where a web page of elsewhere has a browser on this machine send what needs no key.

    `origin` is the header that browsers add, and other clients do not.
    """
    if caller is LOCAL and origin is not None and not _is_of_this_machine(origin):
        raise Forbidden(f"pages of {origin} may not change adapters without an API key")


def check_binding(settings: Settings, keys: KeyRing) -> None:
    """Raises SettingsError when the endpoint would be open to others without a key."""
    if not settings.is_loopback and not keys:
        raise SettingsError(
            f"host {settings.host} is reachable from other machines and no API keys are configured: "
            "create one with 'loradock keys add NAME --admin', or listen on 127.0.0.1"
        )


def add_key(path: Path, name: str, *, admin: bool, record: bool = True, routing: RoutingWishes | None = None) -> str:
    """Create a key called `name`, store its hash in `path`, and return the key, which is not kept anywhere."""
    stored = _read(path).keys
    if any(key.name == name for key in stored):
        raise SettingsError(f"a key named '{name}' exists already")
    token = KEY_PREFIX + secrets.token_urlsafe(32)
    key = _validated(name, token, admin, record).model_copy(update={"routing": routing or RoutingWishes()})
    _write(path, (*stored, key))
    return token


def remove_key(path: Path, name: str) -> None:
    """Revoke the key called `name`. Raises SettingsError if there is none."""
    stored = _read(path).keys
    kept = tuple(key for key in stored if key.name != name)
    if len(kept) == len(stored):
        raise SettingsError(f"no key is named '{name}'")
    if not kept:
        # An empty file would open every route again to whoever reaches the port.
        raise SettingsError(f"'{name}' is the last key; add another first, or delete {path} and restart to need none")
    _write(path, kept)


def _wishes(key: _StoredKey) -> Wishes:
    return NO_WISHES if key.routing == RoutingWishes() else Wishes.of(key.routing)


@lru_cache(maxsize=64)
def _is_local_name(host: str) -> bool:
    """No name in the public DNS: an address, a name without a dot, or one that is kept for local networks."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    return "." not in name or ":" in name or name.replace(".", "").isdigit() or name.endswith(LOCAL_DOMAINS)


def _is_of_this_machine(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _validated(name: str, token: str, admin: bool, record: bool) -> _StoredKey:
    try:
        return _StoredKey(name=name, sha256=_hash(token), admin=admin, record=record)
    except ValidationError:
        raise SettingsError(f"'{name}' is not a valid key name (lower-case letters, digits, '.', '_', '-')") from None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _read(path: Path) -> _KeysFile:
    try:
        return _KeysFile.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        return _KeysFile()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise SettingsError(f"{path}: {str(error).splitlines()[0]}") from None


def _write(path: Path, keys: tuple[_StoredKey, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "# API keys of loradock: only hashes are kept. Managed by 'loradock keys'.\n"
    for key in keys:
        text += f'\n[[keys]]\nname = "{key.name}"\nsha256 = "{key.sha256}"\nadmin = {str(key.admin).lower()}\n'
        text += "" if key.record else "record = false\n"
        wishes = [f"{name} = {json.dumps(value)}" for name, value in key.routing if value is not None]
        text += f"routing = {{ {', '.join(wishes)} }}\n" if wishes else ""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    temporary.replace(path)
