"""`loradock models` and `loradock status`: what can be asked for, and how the server is."""

from __future__ import annotations

import math
from collections import defaultdict
from importlib.metadata import version
from typing import Any

import typer

from serving.cli.client import Server, server_of
from serving.cli.options import AsJson, Url
from serving.cli.output import Output

NOT_READY = 503
_OURS = "loradock_"
_INFERENCE = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


def models(ctx: typer.Context, url: Url = None, as_json: AsJson = False) -> None:
    """List what `model` may name: the router, bases, agents, adapters and their versions."""
    out = Output(as_json)
    with server_of(ctx, url) as server:
        document = server.get("/v1/models")
    out.json(document)
    rows = [
        (
            entry["id"],
            str(entry.get("kind", "model")).removeprefix("adapter_"),
            entry.get("adapter") or (entry.get("agent") and f"for {entry['agent']}"),
            entry.get("parent"),
            entry.get("max_model_len"),
        )
        for entry in document["data"]
    ]
    out.table(("model", "kind", "leads to", "base", ">context"), rows)


def status(ctx: typer.Context, url: Url = None, as_json: AsJson = False) -> None:
    """Show engines, adapters and requests of the server.

    Exit code 1 while no engine is ready.
    """
    out = Output(as_json)
    with server_of(ctx, url) as server:
        report = read_status(server)
    out.json(report)
    _print_status(out, report)
    if report["status"] != "ready":
        raise typer.Exit(1)


def read_status(server: Server) -> dict[str, Any]:
    """Engines with their slots, adapters, and counts since the server's start."""
    health = server.get("/health")
    ready = server.get("/ready", accept=(NOT_READY,))
    adapters = server.get("/v1/adapters")["data"]
    counts = _Counts(server.text("/metrics"))
    for engine in ready["engines"]:
        for use in ("used", "pinned"):
            engine[f"slots_{use}"] = int(counts.total("loradock_adapter_slots", engine=engine["name"], use=use))
    served = [sum(counts.total("loradock_requests_total", path=path) for path in _INFERENCE)]
    failed = counts.by("loradock_requests_total", "status")
    return {
        "status": ready["status"],
        "url": server.url,
        "version": health.get("version"),
        "client_version": version("loradock"),
        "engines": ready["engines"],
        "adapters": adapters,
        "requests": {
            "served": int(served[0]),
            "in_flight": int(counts.total("loradock_requests_in_flight")),
            "server_errors": int(sum(count for code, count in failed.items() if code.startswith("5"))),
            "by_reason": {name: int(count) for name, count in counts.by("loradock_routes_total", "reason").items()},
            "completion_tokens": int(counts.total("loradock_tokens_total", kind="completion")),
            "recorder_drops": int(counts.total("loradock_recorder_drops_total")),
        },
    }


def _print_status(out: Output, report: dict[str, Any]) -> None:
    requests = report["requests"]
    reasons = ", ".join(
        f"{name} {count}" for name, count in sorted(requests["by_reason"].items(), key=lambda kv: -kv[1])
    )
    out.fields(
        (
            ("server", report["url"]),
            ("state", report["status"]),
            ("version", report["version"] or report["client_version"]),
            ("requests", f"{requests['served']} served, {requests['in_flight']} in flight"),
            ("errors", f"{requests['server_errors']} of the server" if requests["server_errors"] else None),
            ("routed by", reasons),
            ("tokens", f"{requests['completion_tokens']} generated"),
        )
    )
    out.gap()
    out.table(
        ("engine", "base", "state", ">restarts", ">slots", "detail"),
        [
            (
                engine["name"],
                engine["base"],
                engine["state"],
                engine["restarts"],
                f"{engine['slots_used']}/{engine['slots']}" if engine["slots"] else "none",
                engine["detail"],
            )
            for engine in report["engines"]
        ],
    )
    if report["adapters"]:
        out.gap()
        out.table(
            ("adapter", "agent", "state", "resident", ">in flight"),
            [
                (
                    f"{adapter['name']}@{adapter['version']}",
                    adapter["agent"],
                    adapter["state"],
                    adapter["residency"]["state"],
                    adapter["residency"]["in_flight"],
                )
                for adapter in report["adapters"]
            ],
        )


class _Counts:
    """The gateway's own samples out of Prometheus text."""

    def __init__(self, text: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        own = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(_OURS))
        self._samples = [
            sample
            for family in text_string_to_metric_families(own)
            for sample in family.samples
            if not math.isnan(sample.value)
        ]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels."""
        wanted = labels.items()
        return float(sum(each.value for each in self._samples if each.name == name and wanted <= each.labels.items()))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums by the values of a label."""
        sums: dict[str, float] = defaultdict(float)
        for sample in self._samples:
            if sample.name == name:
                sums[sample.labels.get(label, "")] += sample.value
        return dict(sums)
