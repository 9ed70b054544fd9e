"""All commands in one app, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from serving.cli import adapters, bench, cases, chat, config, keys, overview, route, serve, train
from serving.cli.errors import CliError, Misuse
from serving.cli.options import ConfigFile, Globals

INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"loradock {version('loradock')}\n")
        raise typer.Exit


def build_app() -> typer.Typer:
    """The commands."""
    app = typer.Typer(
        name="loradock",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_loradock)
    for register in (serve, chat, route, overview, bench):
        register.add_commands(app)
    for name, group in (("adapters", adapters), ("cases", cases), ("keys", keys), ("config", config), ("train", train)):
        app.add_typer(group.build(), name=name)
    return app


def _loradock(
    ctx: typer.Context,
    config: ConfigFile = None,
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint in front of a team of agents' LoRA adapters.

    Commands find the server through the settings (`loradock config show`), and its API key in LORADOCK_API_KEY.
    """
    del show_version
    ctx.obj = Globals(config)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; whatever goes wrong is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = build_app()(args=list(arguments), prog_name="loradock", standalone_mode=False)
    except CliError as error:
        return _fail(error, arguments)
    except typer.TyperException as error:
        # without arguments, the help has been printed and the message is empty
        return _fail(Misuse(_explain(error)), arguments) if error.format_message() else Misuse.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED and sys.stderr.isatty():
        sys.stderr.write("\n")  # the shell's prompt belongs on a line of its own
    return code if isinstance(code, int) else 0


def _fail(error: CliError, arguments: Sequence[str]) -> int:
    sys.stderr.write(f"loradock: {error.message}\n")
    if "--json" in arguments:
        sys.stdout.write(json.dumps(error.envelope(), ensure_ascii=False) + "\n")
    return error.exit_code


def _explain(error: Any) -> str:
    """What is wrong with the arguments, and where their help is."""
    message = " ".join(error.format_message().split()).rstrip(".")
    ctx = getattr(error, "ctx", None)
    return f"{message} (see '{ctx.command_path} --help')" if ctx is not None else message
