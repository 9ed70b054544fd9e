"""The tiers of adapters in the engine's own metrics: disk, host memory, slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STATES = {"capacity", "capacity_bytes", "used_bytes", "adapters"}
"""figures that tell how it is; the others add up what has happened"""
SHARED = {"adapters", "capacity"}
"""figures that every worker tells of the same adapters and slots, as each holds a part of all of them"""


class Tiered(Protocol):
    """What is read: for each worker, figures by tier; see `serving.engine.worker.staging.Stager.tiers`."""

    @property
    def tiers(self) -> Sequence[Mapping[str, Mapping[str, float]]]: ...  # noqa: D102 - told above


class TierCollector(Collector):
    """One family per figure, labelled by tier: `loradock_tier_<figure>`, with `_total` behind what adds up.

    Bytes and events of several workers are summed, adapters and slots are not.
    """

    def __init__(self, engine: Tiered) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The figures of the last load."""
        families: dict[str, dict[str, float]] = {}
        for worker in self._engine.tiers:
            for tier, figures in worker.items():
                for figure, value in figures.items():
                    by_tier = families.setdefault(figure, {})
                    before = by_tier.get(tier, 0.0)
                    by_tier[tier] = max(before, value) if figure in SHARED else before + value
        for figure, by_tier in families.items():
            kind = GaugeMetricFamily if figure in STATES else CounterMetricFamily
            family = kind(f"loradock_tier_{figure}", "Tiers of adapters", labels=["tier"])
            for tier, value in by_tier.items():
                family.add_metric([tier], value)
            yield family


def expose(engine: Tiered) -> None:
    """Let the engine's own `/metrics` tell its tiers."""
    REGISTRY.register(TierCollector(engine))
