"""`loradock keys`: API keys, in the file that the settings name. Works without a server; a running one sees it soon."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.routing import Quality, RoutingWishes
from configs.settings import SettingsError
from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, settings_of
from serving.cli.output import GOOD, Output

if TYPE_CHECKING:
    from serving.auth import Caller

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
    *,
    admin: Annotated[bool, typer.Option("--admin", help="May change adapters, cases and jobs.")] = False,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep its requests as cases.")] = True,
    quality: Annotated[
        Quality | None, typer.Option("--quality", help="What its routes weigh where a request does not say.")
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option("--max-cost", metavar="USD", help="Most that a request of it may be expected to cost."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it, once: only its hash is kept."""
    from serving.auth import add_key

    out = Output(as_json)
    if max_cost is not None and not 0 < max_cost < math.inf:
        raise Misuse(f"--max-cost {max_cost:g}: must be above 0")
    with _keys_file(ctx) as path:
        routing = RoutingWishes(quality=quality, max_cost=max_cost)
        key = add_key(path, name, admin=admin, record=record, routing=routing)
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
    out.json({"file": str(path), "keys": [_document(caller) for caller in callers]})
    if callers:
        rows = [
            (each.name, each.admin, each.record, each.wishes.quality, _usd(each.wishes.max_cost)) for each in callers
        ]
        out.table(("key", "admin", "recorded", "quality", ">max USD"), rows)
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


def _document(caller: Caller) -> dict[str, Any]:
    wishes = {name: value for name, value in dataclasses.asdict(caller.wishes).items() if value is not None}
    return {"name": caller.name, "admin": caller.admin, "record": caller.record, "routing": wishes}


def _usd(amount: float | None) -> str | None:
    return None if amount is None else f"{amount:g}"


@contextmanager
def _keys_file(ctx: typer.Context) -> Iterator[Path]:
    path = settings_of(ctx).settings.keys_file
    try:
        yield path
    except SettingsError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None
