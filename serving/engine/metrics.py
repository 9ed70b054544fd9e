"""The metrics of several engines as one valid Prometheus exposition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


class _Parsed:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def merge_metrics(scraped: Mapping[str, bytes]) -> bytes:
    """One exposition from `{engine name: its exposition}`: a family stands once, samples get a label `engine_name`.

    Families that describe a process (`process_*`, `python_*`) are kept; the label tells whose they are.
    """
    families: dict[str, Metric] = {}
    for engine, text in scraped.items():
        for family in text_string_to_metric_families(text.decode("utf-8", "replace")):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged.samples.extend(
                sample._replace(labels={**sample.labels, "engine_name": engine}) for sample in family.samples
            )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Parsed(families.values()))
    return generate_latest(registry)
