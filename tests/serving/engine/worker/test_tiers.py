from __future__ import annotations

from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from serving.engine.worker.tiers import TierCollector


def test_events_are_counters_and_workers_hold_parts_of_the_same_adapters() -> None:
    worker = {"host": {"capacity_bytes": 100, "used_bytes": 40, "adapters": 3, "hits": 2, "read_seconds": 0.5}}
    registry = CollectorRegistry()
    registry.register(TierCollector(SimpleNamespace(tiers=[worker, worker])))
    lines = generate_latest(registry).decode().splitlines()
    assert 'loradock_tier_used_bytes{tier="host"} 80.0' in lines
    assert 'loradock_tier_adapters{tier="host"} 3.0' in lines
    assert 'loradock_tier_hits_total{tier="host"} 4.0' in lines
    assert 'loradock_tier_read_seconds_total{tier="host"} 1.0' in lines
    assert "# TYPE loradock_tier_hits_total counter" in lines
    assert "# TYPE loradock_tier_adapters gauge" in lines
