"""The tiers of adapters in the engine's own metrics: disk, host memory, slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Tiered(Protocol):
    """What is read: for each worker, figures by tier; see `serving.engine.worker.staging.Stager.tiers`."""

    @property
    def tiers(self) -> Sequence[Mapping[str, Mapping[str, float]]]: ...  # noqa: D102 - told above


class TierCollector(Collector):
    """One family per figure, `loradock_tier_<figure>`, labelled by tier; workers are added up."""

    def __init__(self, engine: Tiered) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The figures of the last load."""
        families: dict[str, dict[str, float]] = {}
        for worker in self._engine.tiers:
            for tier, figures in worker.items():
                for figure, value in figures.items():
                    by_tier = families.setdefault(figure, {})
                    by_tier[tier] = by_tier.get(tier, 0.0) + value
        for figure, by_tier in families.items():
            family = GaugeMetricFamily(f"loradock_tier_{figure}", "Tiers of adapters", labels=["tier"])
            for tier, value in by_tier.items():
                family.add_metric([tier], value)
            yield family


def expose(engine: Tiered) -> None:
    """Let the engine's own `/metrics` tell its tiers."""
    REGISTRY.register(TierCollector(engine))
