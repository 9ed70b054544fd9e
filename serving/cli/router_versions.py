"""`loradock router versions`, `promote` and `rollback`: which fitted router decides. Needs no server.

A running server adopts the change within seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, settings_of
from serving.cli.output import Output

if TYPE_CHECKING:
    from training.routing import Version, Versions

ACTOR = "command line"
_EVERYONE = "everyone"
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="API key whose routes are meant ('local' where none are configured). [dim](default: everyone's who has no "
        "version of its own)[/dim]",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add the three."""
    app.command("versions")(versions)
    app.command("promote")(promote)
    app.command("rollback")(rollback)


def versions(ctx: typer.Context, *, key: Key = None, as_json: AsJson = False) -> None:
    """List the router versions that are kept, the newest first; where none serves, the rules do."""
    out = Output(as_json)
    with _opened(ctx, key) as (kept, scope):
        listed = kept.list(None if key is None else scope)
    out.json({"versions": [_document(each) for each in listed]})
    if listed:
        rows = [
            (
                each.version,
                _reader(each.scope),
                each.serves,
                each.origin,
                f"{each.created_at:%Y-%m-%d %H:%M}",
                _gain(each),
            )
            for each in listed
        ]
        out.table(("version", "for", "serves", "origin", "made (UTC)", ">log loss gained"), rows)
    else:
        out.line("no router version is kept: the rules decide")


def promote(
    ctx: typer.Context,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="A version that is kept, or a folder that `router fit` wrote.")
    ],
    *,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let VERSION decide from now on."""
    from router.learned import RouterModel, RouterModelInvalid

    out = Output(as_json)
    with _opened(ctx, key) as (kept, scope):
        if Path(version).is_dir():
            try:
                version = kept.add(scope, RouterModel.load(Path(version)), "installed", {})
            except RouterModelInvalid as error:
                raise Misuse(f"{version}: {error}") from None
        kept.promote(scope, version, actor=ACTOR)
    out.json({"version": version, "for": _reader(scope)})
    out.line(f"router version {version} decides for {_reader(scope)}")


def rollback(ctx: typer.Context, *, key: Key = None, as_json: AsJson = False) -> None:
    """Return to the router version that decided before, or to the rules; repeated, walks further back."""
    out = Output(as_json)
    with _opened(ctx, key) as (kept, scope):
        before = kept.rollback(scope, actor=ACTOR)
    out.json({"version": before, "for": _reader(scope)})
    out.line(f"{f'router version {before} decides' if before else 'the rules decide'} for {_reader(scope)}")


@contextmanager
def _opened(ctx: typer.Context, key: str | None) -> Iterator[tuple[Versions, str]]:
    """The versions, and the scope that is meant."""
    from adapters_registry import RegistryError, open_database
    from training.routing import Versions
    from training.routing.scopes import scope_named

    settings = settings_of(ctx).settings
    if key is not None and settings.routing.learning != "tenant":
        raise Misuse("--key: keys have router versions of their own only with routing.learning = 'tenant'")
    try:
        database = open_database(settings.database)
        try:
            yield Versions(database, settings.home), scope_named(key, settings.routing.learning)
        finally:
            database.close()
    except RegistryError as error:
        raise CliError(error.message) from None
    except OSError as error:
        raise CliError(f"{error.filename}: {error.strerror}") from None


def _reader(scope: str) -> str:
    """Whose a scope is, for people."""
    return scope if scope[:1].isalnum() else _EVERYONE  # no key's name begins as the scopes of all do


def _gain(version: Version) -> float | None:
    outcomes = version.report.get("outcomes") or {}
    return outcomes.get("gain")


def _document(version: Version) -> dict[str, Any]:
    return {
        "version": version.version,
        "for": _reader(version.scope),
        "serves": version.serves,
        "origin": version.origin,
        "created_at": version.created_at.isoformat(),
        "report": dict(version.report),
    }
