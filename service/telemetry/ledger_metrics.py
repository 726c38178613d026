"""The queue and the destinations as Prometheus sees them: read from the ledger at each scrape, so that every replica
shows the same."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.errors import TagsError
from service.ledger.ledger import Ledger


class LedgerMetrics(Collector):
    """Registered once per app. A ledger that does not answer gives `tags_ledger_up 0` and nothing else."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("tags_ledger_up", "1 when the ledger's database answers.")
        jobs = GaugeMetricFamily("tags_jobs", "Jobs.", labels=["kind", "state", "priority"])
        oldest = GaugeMetricFamily("tags_jobs_oldest_waiting_seconds", "How long the oldest due job has waited.")
        open_circuits = GaugeMetricFamily(
            "tags_circuit_open", "1 while a destination is spared.", labels=["destination"]
        )
        try:
            for labels, count in self._ledger.jobs.counts().items():
                jobs.add_metric(labels, count)
            oldest.add_metric([], self._ledger.jobs.oldest_waiting_s())
            for state in self._ledger.circuits.states():
                open_circuits.add_metric([state.destination], float(state.open_for_s > 0))
        except TagsError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield from (up, jobs, oldest, open_circuits)
