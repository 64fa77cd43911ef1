"""The numbers of several processes as those of one. Imports Prometheus' client: see ``scrape``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

# Of a gauge the sum is what all have together; of these it would say nothing.
GAUGES: Final[Mapping[str, Callable[[Sequence[float]], float]]] = {
    "conductor_heartbeat_age_seconds": max,
    "process_max_fds": min,
    "process_start_time_seconds": min,
}


def of(texts: Iterable[bytes]) -> bytes:
    """One text for all: counters, histograms and most gauges are added up."""
    return _text(_families(texts))


def lasting(texts: Iterable[bytes]) -> bytes:
    """What remains of processes that have ended: what they counted, and no gauge."""
    return _text([family for family in _families(texts) if family.type != "gauge"])


def _families(texts: Iterable[bytes]) -> list[Metric]:
    found: dict[str, list[Metric]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            found.setdefault(family.name, []).append(family)
    return [_one(families) for families in found.values()]


def _one(families: Sequence[Metric]) -> Metric:
    first = families[0]
    values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            values.setdefault(key, []).append(sample.value)
    together = GAUGES.get(first.name, sum)
    made = Metric(first.name, first.documentation, first.type)
    for (name, labels), each in values.items():
        made.add_sample(name, dict(labels), together(each))
    return made


def _text(families: Sequence[Metric]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Collector(families))
    return generate_latest(registry)


class _Collector:
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
