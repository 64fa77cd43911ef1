"""The numbers as Prometheus text. Imports its client, so import this where it is used."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from conductor_cli.telemetry import events, meters, sums
from conductor_cli.telemetry.catalogue import BUCKETS, CATALOGUE, HISTOGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric


def text() -> bytes:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Families())
    own = generate_latest(registry)
    others = meters.contributed()
    return sums.of([own, *others]) if others else own


class _Families:
    def collect(self) -> Iterator[Metric]:
        yield from _counters()
        yield from _histograms()
        yield from _gauges()


def _counters() -> Iterator[Metric]:
    counts = meters.counts()
    for name, event in CATALOGUE.items():
        if event.counted:
            metric = f"conductor_{name.replace('.', '_')}_total"
            family = CounterMetricFamily(metric, event.help, labels=event.labels)
            unlabelled = {} if event.labels else {(name,): 0}  # zero from the start, for alerts
            for key, value in (unlabelled | counts).items():
                if key[0] == name:
                    family.add_metric(key[1:], value)
            yield family


def _histograms() -> Iterator[Metric]:
    observed = meters.observed()
    bounds = [*map(str, BUCKETS), "+Inf"]
    for name, histogram in HISTOGRAMS.items():
        family = HistogramMetricFamily(histogram.metric, histogram.help, labels=histogram.labels)
        for key, cells in observed.items():
            if key[0] == name:
                running = list(accumulate(cells[:-1]))
                family.add_metric(key[1:], list(zip(bounds, running, strict=True)), cells[-1])
        yield family


def _gauges() -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily] = {}
    for gauge in meters.gauges():
        family = families.setdefault(
            gauge.name, GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
        )
        try:
            values = [(dict(zip(gauge.labels, k, strict=True)), v) for k, v in gauge.read().items()]
        except Exception as error:
            events.emit("gauge.failed", gauge=gauge.name, error=repr(error))
            continue
        for labels, value in values:
            family.add_sample(gauge.name, labels, value)
    yield from families.values()
