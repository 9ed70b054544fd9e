"""`loradock adapters`: register adapters, see them, move them in and out, choose who serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli import adapter_bench, adapter_checks, adapter_export
from serving.cli.client import Server, segment, server_of
from serving.cli.errors import CliError, Misuse
from serving.cli.options import AsJson, Url
from serving.cli.output import Output, megabytes

Name = Annotated[str, typer.Argument(metavar="NAME", help="Adapter: NAME or NAME@VERSION.")]


def build() -> typer.Typer:
    """The group."""
    group = typer.Typer(no_args_is_help=True, help="Register adapters, inspect and load them, choose who serves.")
    group.command("add")(add)
    group.command("list")(list_adapters)
    group.command("show")(show)
    group.command("load")(load)
    group.command("unload")(unload)
    group.command("switch")(switch)
    group.command("promote")(promote)
    group.command("rollback")(rollback)
    group.command("pin")(pin)
    group.command("unpin")(unpin)
    group.command("retire")(retire)
    group.command("export")(adapter_export.export)
    adapter_bench.add_commands(group)
    adapter_checks.add_commands(group)
    return group


def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the adapter.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, archive, Hub repository, or URL.")],
    *,
    agent: Annotated[
        str | None, typer.Option("--agent", help="Agent that it serves. [dim](default: NAME)[/dim]")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Base model. [dim](default: the one that it records)[/dim]")
    ] = None,
    alias: Annotated[
        str | None, typer.Option("--alias", metavar="champion|challenger|none", help="What it becomes.")
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it loaded.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Register an adapter: fetched, checked and stored, or refused with the reason."""
    out = Output(as_json)
    body = {"name": name, "source": _absolute(source), "agent": agent, "base": base, "alias": alias, "pin": pin}
    with server_of(ctx, url) as server, out.working(f"registering {name}"):
        added = server.post(
            "/v1/adapters", {key: value for key, value in body.items() if value is not None}, patient=True
        )
    out.json(added)
    out.line(f"{_title(added)} is registered for agent {added['agent']} ({added['state']})")


def list_adapters(
    ctx: typer.Context,
    retired: Annotated[bool, typer.Option("--retired", help="Retired versions too.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List adapters and where they are loaded."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        document = server.get("/v1/adapters", include_retired=retired)
    out.json(document)
    if not document["data"]:
        out.line("no adapters: register one with 'loradock adapters add NAME SOURCE'")
        return
    rows = [
        (
            _title(each),
            each["agent"],
            each["state"],
            each["residency"]["state"] + (", pinned" if each["pinned"] else ""),
            each["rank"],
            megabytes(each["size_bytes"]),
        )
        for each in document["data"]
    ]
    out.table(("adapter", "agent", "state", "resident", ">rank", ">size"), rows)


def show(ctx: typer.Context, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Show one adapter, its versions, and what was done with it."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        adapter = server.get(f"/v1/adapters/{segment(name)}")
    out.json(adapter)
    residency = adapter["residency"]
    out.fields(
        (
            ("adapter", _title(adapter)),
            ("agent", adapter["agent"]),
            ("state", adapter["state"]),
            ("base", adapter["base"]),
            ("rank", adapter["rank"]),
            ("size", megabytes(adapter["size_bytes"])),
            ("pinned", adapter["pinned"]),
            (
                "resident",
                f"{residency['state']} on engine {residency['engine']}"
                if residency["engine"]
                else "no engine for its base",
            ),
            ("source", adapter["source"]),
            ("registered", _when(adapter["created_at"])),
            ("digest", adapter["digest"]),
        )
    )
    out.gap()
    versions = [
        (each["version"], each["state"], each["residency"]["state"], _when(each["created_at"]))
        for each in adapter["versions"]
    ]
    out.table(("version", "state", "resident", "registered"), versions)
    if adapter["audit"]:
        out.gap()
        entries = [
            (_when(str(each["at"])), each["action"], each["version"], each["actor"], each["detail"])
            for each in adapter["audit"]
        ]
        out.table(("when", "action", "version", "by", "detail"), entries)


def load(ctx: typer.Context, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Load an adapter now, and wait until it is."""
    out = Output(as_json)
    with server_of(ctx, url) as server, out.working(f"loading {name}"):
        adapter = _act(server, name, "load")
    out.json(adapter)
    out.line(f"{_title(adapter)} is {adapter['residency']['state']} after {adapter['waited_ms']:.0f} ms")


def unload(ctx: typer.Context, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Free an adapter's slot once its requests have ended. The next request loads it again."""
    out = Output(as_json)
    with server_of(ctx, url) as server, out.working(f"unloading {name}"):
        adapter = _act(server, name, "unload")
    out.json(adapter)
    out.line(f"{_title(adapter)} is {adapter['residency']['state']}")


def switch(
    ctx: typer.Context,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Agent that gets another champion.")],
    name: Name,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Let another of AGENT's adapters serve it from the next request on."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        adapter = server.get(f"/v1/adapters/{segment(name)}")
        if adapter["agent"] != agent:
            raise CliError(f"{_title(adapter)} belongs to agent {adapter['agent']}, not {agent}")
        _promoted(out, server, _title(adapter))


def promote(ctx: typer.Context, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Make an adapter, by default its newest version, its agent's champion."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        _promoted(out, server, name)


def rollback(ctx: typer.Context, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Return an agent to its champion before; NAME is the adapter's or the agent's."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        champion = _act(server, name, "rollback")
    out.json(champion)
    out.line(f"{_title(champion)} serves agent {champion['agent']} again")


def pin(ctx: typer.Context, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Keep an adapter loaded."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        adapter = _act(server, name, "pin")
    out.json(adapter)
    out.line(f"{_title(adapter)} stays loaded")


def unpin(ctx: typer.Context, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Let an adapter be evicted again."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        adapter = _act(server, name, "unpin")
    out.json(adapter)
    out.line(f"{_title(adapter)} may be evicted")


def retire(ctx: typer.Context, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Take an adapter (all its versions), or NAME@VERSION alone, out of service."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        retired = server.delete(f"/v1/adapters/{segment(name)}")
    out.json(retired)
    out.line(f"{retired['name']}: retired {', '.join(retired['retired'])}")


def _act(server: Server, name: str, action: str) -> Any:
    return server.post(f"/v1/adapters/{segment(name)}/{action}", patient=action == "load")


def _promoted(out: Output, server: Server, name: str) -> None:
    champion = _act(server, name, "promote")
    out.json(champion)
    out.line(f"{_title(champion)} serves agent {champion['agent']} now")


def _title(adapter: dict[str, Any]) -> str:
    return f"{adapter['name']}@{adapter['version']}"


def _when(moment: str) -> str:
    """An ISO moment to the second."""
    return moment[:19].replace("T", " ")


def _absolute(source: str) -> str:
    """A local source as the server must be told it: it runs in another folder."""
    path = Path(source).expanduser()
    if "://" not in source and path.exists():
        return str(path.absolute())
    if source.startswith((".", "/", "~")):
        raise Misuse(f"{source} does not exist")
    return source
