"""Prometheus metrics of the gateway. The engine's own are appended to the scrape, as the engine gives them."""

from __future__ import annotations

import os
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serving.engine.base import Answering, EngineState
from serving.residency import AdapterState, Residency
from serving.workers import METRICS_VARIABLE

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1)


def forget_process(pid: int | None) -> None:
    """Take the live gauges of a gateway process that has died out of the sum."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics, in a registry of their own; one object for one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter("loradock_requests", "Requests", ["path", "status"], registry=registry)
        self._routes = Counter("loradock_routes", "Decisions", ["reason", "agent"], registry=registry)
        self._duration = Histogram(
            "loradock_request_seconds", "Receipt to last byte", ["path"], buckets=_SECONDS, registry=registry
        )
        self._overhead = Histogram(
            "loradock_overhead_seconds",
            "Receipt to dispatch, without a cold wait",
            buckets=_OVERHEAD,
            registry=registry,
        )
        self._cold_wait = Histogram(
            "loradock_cold_wait_seconds", "Wait of requests for a cold adapter", buckets=_SECONDS, registry=registry
        )
        self._load = Histogram(
            "loradock_adapter_load_seconds",
            "Loads of adapters into an engine",
            ["engine", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage = Histogram(
            "loradock_adapter_stage_seconds",
            "Reading of adapters before the load",
            ["engine"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "loradock_tokens", "Tokens, as the engine counts", ["kind", "adapter"], registry=registry
        )
        self.drops = Counter("loradock_recorder_drops", "Outcomes that were not recorded", registry=registry)
        self.in_flight = Gauge(
            "loradock_requests_in_flight", "Requests now", registry=registry, multiprocess_mode="livesum"
        )
        self._adapters = Gauge(
            "loradock_adapters",
            "Adapters by state",
            ["engine", "state"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._slots = Gauge(
            "loradock_adapter_slots", "Slots", ["engine", "use"], registry=registry, multiprocess_mode="livemax"
        )
        self._evictions = Gauge(
            "loradock_adapter_evictions", "Evictions", ["engine"], registry=registry, multiprocess_mode="livemax"
        )
        self._longest_wait = Gauge(
            "loradock_adapter_longest_wait_seconds",
            "Longest load, from asking to ready",
            ["engine"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._engine_up = Gauge(
            "loradock_engine_up", "1 when ready", ["engine", "base"], registry=registry, multiprocess_mode="livemax"
        )
        self._engine_restarts = Gauge(
            "loradock_engine_restarts", "Restarts", ["engine"], registry=registry, multiprocess_mode="livemax"
        )
        # A label lookup costs more than the increment; the label sets are small.
        self._request_child = lru_cache(1024)(self._requests.labels)
        self._route_child = lru_cache(4096)(self._routes.labels)
        self._duration_child = lru_cache(64)(self._duration.labels)
        self._token_child = lru_cache(4096)(self._tokens.labels)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._request_child(path, status).inc()
        self._duration_child(path).observe(seconds)

    def route(self, reason: str, agent: str | None, overhead_s: float, cold_wait_s: float) -> None:
        """A request has been dispatched."""
        self._route_child(reason, agent or "none").inc()
        self._overhead.observe(overhead_s)
        if cold_wait_s > 0:
            self._cold_wait.observe(cold_wait_s)

    def tokens(self, adapter: str, prompt: int, completion: int) -> None:
        """Tokens of one request, by adapter (`name@version`) or `none`."""
        self._token_child("prompt", adapter).inc(prompt)
        self._token_child("completion", adapter).inc(completion)

    def load(self, engine: str, seconds: float, outcome: str) -> None:
        """A load has ended with `ok` or `failed`."""
        self._load.labels(engine, outcome).observe(seconds)

    def stage(self, engine: str, seconds: float) -> None:
        """An adapter's files have been read."""
        self._stage.labels(engine).observe(seconds)

    def exposition(self) -> bytes:
        """Prometheus text of this process, or of all gateway processes when there are several."""
        if METRICS_VARIABLE not in os.environ:
            return generate_latest(self.registry)
        collected = CollectorRegistry()
        MultiProcessCollector(collected)  # type: ignore[no-untyped-call]
        return generate_latest(collected)

    def read_engine(self, engine: Answering) -> None:
        """Set the gauges of one engine."""
        status = engine.status
        self._engine_up.labels(engine.name, engine.base_name).set(status.state is EngineState.READY)
        self._engine_restarts.labels(engine.name).set(status.restarts)

    def read_residency(self, residency: Residency) -> None:
        """Set the gauges of one engine's adapters."""
        name = residency.engine.name
        states = [entry.state for entry in residency.entries()]
        for state in AdapterState:
            self._adapters.labels(name, state.value).set(states.count(state))
        resident = list(residency.slots.values()) if residency.engine.slots else []
        self._slots.labels(name, "total").set(residency.engine.slots)
        self._slots.labels(name, "used").set(len(resident))
        self._slots.labels(name, "pinned").set(sum(entry.pinned for entry in resident))
        self._evictions.labels(name).set(residency.evictions)
        self._longest_wait.labels(name).set(residency.longest_wait_s)
