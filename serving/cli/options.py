"""Options that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.errors import Misuse

if TYPE_CHECKING:
    from configs.settings import LoadedSettings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Server to talk to, instead of the one in the settings.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file. [dim](default: ./loradock.toml)[/dim]"),
]
Agent = Annotated[str | None, typer.Option("--agent", metavar="AGENT", help="Agent that the task is for.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use this many rows, drawn with a fixed seed.")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Requests in flight at once.")]


@dataclass(frozen=True)
class Globals:
    """Options given before the command."""

    config: Path | None = None


def settings_of(
    ctx: typer.Context, config: Path | None = None, flags: dict[str, object] | None = None
) -> LoadedSettings:
    """The settings that the command runs under. Raises Misuse naming what is wrong."""
    from configs.settings import SettingsError, load_settings  # half of what `--help` would take

    given = ctx.find_object(Globals) or Globals()
    try:
        return load_settings(flags, config or given.config)
    except SettingsError as error:
        raise Misuse(str(error)) from None
