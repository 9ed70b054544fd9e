"""`loradock serve`: the flags, made from the settings model, and what the terminal shows while the server runs."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from configs.settings import ALLOWED_RANKS, EMBEDDED, Settings, SettingsError
from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, ConfigFile, settings_of
from serving.cli.output import BAD, FAINT, GOOD, Output, safe

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from adapters_registry.model import RegistrySnapshot
    from serving.engine.base import Engine, EngineStatus

NOT_FLAGS = frozenset({"engines", "routing", "training"})
"""settings that are tables: for the file or the environment"""


def serve(ctx: typer.Context, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Start the endpoint and its engines, and serve until Ctrl-C.

    Every flag is a setting: without it, its LORADOCK_* variable counts, then the settings file, then the default.
    """
    from serving.workers import shared_metrics

    settings = settings_of(ctx, config, flags).settings
    with shared_metrics(settings):
        _serve(settings, Output(as_json))


def _serve(settings: Settings, out: Output) -> None:
    with out.working("loading"):
        from adapters_registry import DatabaseError, RegistryError
        from serving.server import serve

    events = Terminal(settings, out) if out.is_terminal and not out.as_json else Lines(settings, out)
    try:
        serve(settings, events)
    except SettingsError as error:
        raise Misuse(str(error)) from None
    except (RegistryError, DatabaseError) as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(_explain(error, settings)) from None
    finally:
        events.close()


def _signature() -> inspect.Signature:
    """Of `serve`, with a flag for every setting."""
    fixed = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson),
    ]
    return inspect.Signature([*fixed, *setting_flags()])


def setting_flags() -> list[inspect.Parameter]:
    """One parameter for each setting. Values stay text: the settings model is what checks them."""
    flags = []
    for name, field in Settings.model_fields.items():
        if name in NOT_FLAGS:
            continue
        flag = f"--{name.replace('_', '-')}"
        shown = field.default if not isinstance(field.default, bool) else str(field.default).lower()
        about = _sentence(field.description or "") + (f" [dim](default: {shown})[/dim]" if shown is not None else "")
        if field.annotation is bool:
            kind: Any = bool
            option = typer.Option(f"{flag}/--no-{name.replace('_', '-')}", help=about, show_default=False)
        else:
            kind = str
            option = typer.Option(flag, help=about, metavar=_metavar(field.annotation), show_default=False)
        annotation = Annotated[kind | None, option]
        flags.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return flags


def _sentence(text: str) -> str:
    return escape(f"{text[:1].upper()}{text[1:]}.")


def _metavar(annotation: Any) -> str:
    members = [member for member in get_args(annotation) if member is not type(None)]
    if members and all(isinstance(member, str) for member in members):
        return "|".join(members)
    kind = members[0] if members else annotation
    return {int: "N", float: "SECONDS", Path: "PATH"}.get(kind, "TEXT")


def _explain(error: OSError, settings: Settings) -> str:
    where = f"port {settings.port} on {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there, or choose another with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {settings.host} is no address of this machine"
    if error.errno == errno.EACCES and error.filename is None:
        return f"{where} is not allowed to this user"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


class Lines:
    """What happens, a line each; with `--json` the summary alone, once everything is ready."""

    def __init__(self, settings: Settings, out: Output) -> None:
        self._out = out
        self._log = settings.home / "logs"
        self._keys = settings.keys_file.exists()
        self._rank_is_open = {
            engine.name for engine in settings.engines if engine.model != EMBEDDED and engine.max_lora_rank is None
        }
        self._url = ""
        self._said: dict[str, tuple[str, str]] = {}

    def listening(self, url: str) -> None:
        """See ServeEvents."""
        self._url = url
        self._say(f"listening on {url}")

    def engine_status(self, name: str, status: EngineStatus) -> None:
        """See ServeEvents."""
        now = (status.state.value, status.detail)
        # an engine is stopped before the start and after the end only, where it goes without saying
        if now[0] != "stopped" and self._said.get(name) != now:
            self._said[name] = now
            self._say(f"engine {name}: {': '.join(part for part in now if part)}")

    def ready(self, engines: Sequence[Engine], registered: RegistrySnapshot) -> None:
        """See ServeEvents."""
        summary = self._summary(engines, registered)
        self._out.json(summary)
        for agent, champion in summary["agents"].items():
            self._say(f"agent {agent}: {champion or 'no adapter'}")
        for hint in summary["hints"]:
            self._say(hint)
        failed = [engine["name"] for engine in summary["engines"] if engine["state"] != "ready"]
        state = f"not ready: engine {', '.join(failed)}" if failed else "ready"
        self._say(f"{state}; endpoint {self._url}/v1, log in {self._log}")

    def stopping(self) -> None:
        """See ServeEvents."""
        self._say("stopping")

    def close(self) -> None:
        """The server has ended."""

    def _say(self, text: str) -> None:
        self._out.line(f"loradock: {text}")
        self._out.console.file.flush()

    def _summary(self, engines: Sequence[Engine], registered: RegistrySnapshot) -> dict[str, Any]:
        champions = {agent: registered.champion(agent) for agent in registered.agents}
        return {
            "url": self._url,
            "engines": [_describe(engine) for engine in engines],
            "agents": {agent: champion and champion.engine_name for agent, champion in champions.items()},
            "hints": [hint for engine in engines if (hint := self._hint(engine, registered))],
            "log": str(self._log),
        }

    def _hint(self, engine: Engine, registered: RegistrySnapshot) -> str | None:
        """Slots of a larger rank than any adapter has cost time in every step of a GPU, for which staging stands."""
        if engine.name not in self._rank_is_open or not engine.staging or engine.status.state.value != "ready":
            return None
        bases = (engine.base_name, *engine.base_aliases)
        largest = max((version.rank for version in registered.versions.values() if version.base in bases), default=None)
        fitting = next((rank for rank in ALLOWED_RANKS if largest is not None and rank >= largest), None)
        if fitting is None or fitting >= engine.max_lora_rank:
            return None
        return (
            f"engine {engine.name}: no adapter has a rank above {largest}; its setting max_lora_rank = {fitting} would "
            "make answers faster (docs/profiles.md), but larger adapters are refused then, and training makes none"
        )


class Terminal(Lines):
    """A progress bar for each engine while it starts, then a panel with what to do next."""

    def __init__(self, settings: Settings, out: Output) -> None:
        super().__init__(settings, out)
        # begins here, before logging is set up, so that what is logged meanwhile appears above the bars
        self._progress: Progress | None = self._begin()
        self._bars: dict[str, TaskID] = {}

    def engine_status(self, name: str, status: EngineStatus) -> None:
        """Move the engine's bar; after the start, tell changes as lines."""
        progress = self._progress
        if progress is None:
            super().engine_status(name, status)
            return
        if name not in self._bars:
            self._bars[name] = progress.add_task(escape(f"engine {name}"), total=None, detail="")
        settled = status.state.value in {"ready", "failed"}
        progress.update(
            self._bars[name],
            total=1 if settled or status.progress else None,
            completed=1 if settled else status.progress,
            detail=escape(safe(status.detail or status.state.value)),
        )
        self._said[name] = (status.state.value, status.detail)

    def ready(self, engines: Sequence[Engine], registered: RegistrySnapshot) -> None:
        """Replace the bars by the panel."""
        self.close()
        summary = self._summary(engines, registered)
        self._out.console.print(panel(summary))
        self._out.console.print(Text(safe(example(summary, with_key=self._keys))), soft_wrap=True)

    def stopping(self) -> None:
        """Tell that streams get their time."""
        self.close()
        self._out.line("stopping: running answers end first", FAINT)

    def close(self) -> None:
        """Remove the bars."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin(self) -> Progress:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}[/dim]"),
            console=self._out.console,
            transient=True,
        )
        progress.start()
        return progress


def panel(summary: dict[str, Any]) -> Panel:
    """What serves."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style=FAINT, no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("endpoint", Text(f"{summary['url']}/v1", style="bold"))
    for engine in summary["engines"]:
        ready = engine["state"] == "ready"
        more = "" if ready else f": {engine['state']}, {engine['detail']}"
        slots = f", {engine['slots']} adapter slots" if engine["slots"] else ""
        facts.add_row(
            "base", Text(safe(f"{engine['base']} (engine {engine['name']}{slots}){more}"), style=GOOD if ready else BAD)
        )
    for agent, champion in summary["agents"].items():
        facts.add_row("agent", Text(safe(f"{agent}: {champion}" if champion else f"{agent}: no adapter")))
    for hint in summary["hints"]:
        facts.add_row("hint", Text(safe(hint)))
    facts.add_row("log", Text(summary["log"]))
    return Panel.fit(facts, title="loradock serves", title_align="left", border_style=GOOD, padding=(0, 1))


def example(summary: dict[str, Any], *, with_key: bool) -> str:
    """A first request to paste into a shell, in lines of under 80 columns; the same for Python."""
    agent = next((agent for agent, champion in summary["agents"].items() if champion), None)
    key = """  -H "Authorization: Bearer $LORADOCK_API_KEY" \\\n""" if with_key else ""
    return f"""
curl {summary["url"]}/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
{key}  -d '{{"model": "{agent or "auto"}",
       "messages": [{{"role": "user", "content": "Hello"}}]}}'

OpenAI(base_url="{summary["url"]}/v1", api_key=...)  # in Python
loradock chat                                        # in another terminal
"""


def _describe(engine: Engine) -> dict[str, Any]:
    status = engine.status
    return {
        "name": engine.name,
        "base": engine.base_name,
        "state": status.state.value,
        "detail": status.detail,
        "slots": engine.slots,
    }


serve.__signature__ = _signature()  # type: ignore[attr-defined]
