"""All commands in one app, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from serving.cli.errors import CliError, Misuse
from serving.cli.options import ConfigFile, Globals

INTERRUPTED = 130
COMPLETION = "_LORADOCK_COMPLETE"
"""set by a shell that asks what may follow"""

COMMANDS = {
    "serve": ("serve", "Start the endpoint and its engines, and serve until Ctrl-C."),
    "chat": ("chat", "Chat with the endpoint, or ask MESSAGE once."),
    "route": ("route", "Show the router's decision for TASK without running it."),
    "models": ("overview", "List what `model` may name: the router, bases, agents, adapters and their versions."),
    "status": ("overview", "Show engines, adapters and requests of the server."),
    "bench": ("bench", "Load the running endpoint and report latencies and rates."),
    "adapters": ("adapters", "Register adapters, inspect and load them, choose who serves."),
    "cases": ("cases", "Import, export, inspect and judge the cases to learn from."),
    "keys": ("keys", "Manage API keys. A running server heeds changes within seconds."),
    "config": ("config", "Show, create and check settings."),
    "train": ("train", "Plan, run and follow training jobs."),
    "router": ("router", "Fit the router's estimators, measure them, choose the version."),
}
"""Module and first line of help of each command. A group's module has `build`, another one the command by its name."""


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"loradock {version('loradock')}\n")
        raise typer.Exit


def build_app(wanted: Collection[str] = frozenset(COMMANDS)) -> typer.Typer:
    """The commands. Modules of those that are not `wanted` stay unloaded: these can be listed, not run."""
    app = typer.Typer(
        name="loradock",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_loradock)
    for name, (module, told) in COMMANDS.items():
        if name not in wanted:
            app.command(name, help=told)(_unloaded)
            continue
        part = importlib.import_module(f"serving.cli.{module}")
        if hasattr(part, "build"):
            app.add_typer(part.build(), name=name)
        else:
            app.command(name)(getattr(part, name))
    return app


def _unloaded() -> None:
    """Stand for a command that nobody named."""


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
    wanted = COMMANDS if COMPLETION in os.environ else COMMANDS.keys() & set(arguments)
    try:
        code = build_app(wanted)(args=list(arguments), prog_name="loradock", standalone_mode=False)
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
