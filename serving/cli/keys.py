"""`loradock keys`: API keys, in the file that the settings name. Works without a server; a running one sees it soon."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from configs.settings import SettingsError
from serving.cli.errors import CliError
from serving.cli.options import AsJson, settings_of
from serving.cli.output import GOOD, Output

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")]


def build() -> typer.Typer:
    """The group."""
    group = typer.Typer(no_args_is_help=True, help="Manage API keys. A running server heeds changes within seconds.")
    group.command("add")(add)
    group.command("list")(list_keys)
    group.command("remove")(remove)
    return group


def add(
    ctx: typer.Context,
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="May change adapters, cases and jobs.")] = False,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep its requests as cases.")] = True,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it, once: only its hash is kept."""
    from serving.auth import add_key

    out = Output(as_json)
    with _keys_file(ctx) as path:
        key = add_key(path, name, admin=admin, record=record)
    out.json({"name": name, "admin": admin, "key": key, "file": str(path)})
    # the key alone on standard output, so that a script can take it
    out.line(key, f"bold {GOOD}" if out.is_terminal else "")
    out.aside.print(
        f"It is not shown again. Use it as LORADOCK_API_KEY, or as the client's api_key. Hash kept in {path}"
    )


def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List names and rights."""
    from serving.auth import KeyRing

    out = Output(as_json)
    with _keys_file(ctx) as path:
        callers = KeyRing(path).callers()
    out.json({"file": str(path), "keys": [dataclasses.asdict(caller) for caller in callers]})
    if callers:
        out.table(("key", "admin", "recorded"), [(each.name, each.admin, each.record) for each in callers])
    else:
        out.line(f"no keys in {path}: on loopback none are needed")


def remove(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Revoke a key."""
    from serving.auth import remove_key

    out = Output(as_json)
    with _keys_file(ctx) as path:
        remove_key(path, name)
    out.json({"name": name, "removed": True, "file": str(path)})
    out.line(f"{name} is revoked")


@contextmanager
def _keys_file(ctx: typer.Context) -> Iterator[Path]:
    path = settings_of(ctx).settings.keys_file
    try:
        yield path
    except SettingsError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None
