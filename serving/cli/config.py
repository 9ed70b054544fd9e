"""`loradock config`: what is set, from where, and a file to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from configs.settings import SETTINGS_FILE, EngineSettings, Settings, SettingsError, load_settings, sections
from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, ConfigFile, settings_of
from serving.cli.output import FAINT, GOOD, Output


def build() -> typer.Typer:
    """The group."""
    group = typer.Typer(no_args_is_help=True, help="Show, create and check settings.")
    group.command("show")(show)
    group.command("create")(create)
    group.command("validate")(validate)
    return group


def show(ctx: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show every setting, its value, and where the value comes from."""
    out = Output(as_json)
    loaded = settings_of(ctx, config)
    values = _flat(loaded.settings.model_dump(mode="json"))
    values["database_url"] = _without_password(values["database_url"])
    out.json({name: {"value": value, "origin": loaded.origins[name]} for name, value in values.items()})
    rows = [(name, _plain(value), loaded.origins[name]) for name, value in values.items()]
    out.table(("setting", "value", "from"), rows)


def create(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path(SETTINGS_FILE),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a settings file in which everything is explained and commented out."""
    out = Output(as_json)
    try:
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(template())
    except FileExistsError:
        raise CliError(f"{file} exists already; --force replaces it") from None
    except OSError as error:
        raise CliError(f"{file}: {error.strerror}") from None
    out.json({"file": str(file)})
    out.line(f"wrote {file}: uncomment what you want to change")


def validate(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Settings file.")] = Path(SETTINGS_FILE),
    as_json: AsJson = False,
) -> None:
    """Check a settings file by itself: one line for each problem, and exit code 1 when there are any."""
    out = Output(as_json)
    if not file.is_file():
        raise Misuse(f"{file} is no file")
    problems: tuple[str, ...] = ()
    try:
        load_settings(file=file, environ={})
    except SettingsError as error:
        problems = tuple(
            problem.removeprefix(f"{file}: ").removesuffix(f" (from {file})") for problem in error.problems
        )
    out.json({"file": str(file), "valid": not problems, "problems": problems})
    for problem in problems:
        out.line(f"{file}: {problem}", "red")
    if problems:
        raise typer.Exit(1)
    out.line(f"{file} is valid", GOOD if out.is_terminal else FAINT)


def template() -> str:
    """A commented `loradock.toml`, made from the settings model."""
    lines = ["# Settings of loradock. A flag or a LORADOCK_* variable goes before this file.", ""]
    for name, field in Settings.model_fields.items():
        if name not in {"engines", *sections()}:
            lines += [f"# {field.description}", f"#{_assignment(name, field.default)}", ""]
    lines += ["# Several engines, the weakest tier first; they go before `engine`.", "#[[engines]]"]
    for name, field in EngineSettings.model_fields.items():
        default = "base" if field.is_required() else field.get_default(call_default_factory=True)
        lines += [f"# {field.description}", f"#{_assignment(name, default)}"]
    for section, model in sections().items():
        lines += ["", f"# {Settings.model_fields[section].description}", f"#[{section}]"]
        for name, field in model.model_fields.items():
            lines += [f"# {field.description}", f"#{_assignment(name, field.default)}"]
    return "\n".join(lines) + "\n"


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Sections as `section.key`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": each for key, each in value.items()} if name in sections() else {name: value}
    return flat


def _assignment(name: str, default: Any) -> str:
    if default is None:
        return f'{name} = "..."  # not set by default'
    if isinstance(default, (dict, tuple)):
        return f"{name} = {'{}' if isinstance(default, dict) else '[]'}"
    # for strings, numbers and booleans, JSON is TOML
    return f"{name} = {json.dumps(default, default=str)}"


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if value and isinstance(value, (dict, list)) else value


def _without_password(url: str | None) -> str | None:
    """A database URL that can be shown."""
    if url is None:
        return None
    before, at, host = url.rpartition("@")
    scheme, _, login = before.partition("://")
    user, colon, _ = login.partition(":")
    return f"{scheme}://{user}:***{at}{host}" if colon else url
