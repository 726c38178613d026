"""The queue, the destinations and the store as Prometheus sees them: read from the ledger at each scrape, so that every
replica shows the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.errors import TagsError
from service.ledger.jobs import ENDED
from service.ledger.ledger import Ledger

STATES = ("waiting", "running", *ENDED)


class LedgerMetrics(Collector):
    """Registered once per app. A ledger that does not answer gives `tags_ledger_up 0`, and nothing else of it."""

    def __init__(self, ledger: Ledger, *, reserve_bytes: int = 0) -> None:
        """Args: reserve_bytes: below so much free space nothing is received any more."""
        self._ledger, self._reserve_bytes = ledger, reserve_bytes

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._of_store()
        try:
            families = list(self._of_ledger())
        except TagsError:
            families = []
        yield GaugeMetricFamily("tags_ledger_up", "1 when the ledger's database answers.", value=bool(families))
        yield from families

    def _of_ledger(self) -> Iterator[GaugeMetricFamily]:
        counts = self._ledger.jobs.counts()
        by_kind = GaugeMetricFamily("tags_jobs", "Jobs.", labels=["kind", "state", "priority"])
        for labels, count in counts.items():
            by_kind.add_metric(labels, count)
        yield by_kind
        by_state = Counter(dict.fromkeys(STATES, 0))  # each state is always there, so that an alert sees a 0
        for (_, state, _), count in counts.items():
            by_state[state] += count
        jobs = GaugeMetricFamily("tags_ledger_jobs", "Jobs by state; a dead one waits for a person.", labels=["state"])
        for state, count in by_state.items():
            jobs.add_metric([state], count)
        yield jobs
        open_deliveries = sum(
            count for (kind, state, _), count in counts.items() if kind == "delivery" and state not in ENDED
        )
        waiting = "Results that a destination does not hold yet, those being sent included."
        yield GaugeMetricFamily("tags_deliveries_waiting", waiting, value=open_deliveries)
        oldest = "How long the oldest due job has waited; 0 without one."
        yield GaugeMetricFamily(
            "tags_ledger_oldest_waiting_seconds", oldest, value=self._ledger.jobs.oldest_waiting_s()
        )
        circuits = GaugeMetricFamily("tags_circuit_open", "1 while a destination is spared.", labels=["destination"])
        for circuit in self._ledger.circuits.states():
            circuits.add_metric([circuit.destination], float(circuit.open_for_s > 0))
        yield circuits

    def _of_store(self) -> Iterator[GaugeMetricFamily]:
        """Nothing where the space cannot be known, as in an object store of others."""
        free_bytes = self._ledger.store.free_bytes()
        if free_bytes is not None:
            yield GaugeMetricFamily("tags_store_free_bytes", "Free where objects are kept.", value=free_bytes)
            reserve = "Below so many free bytes nothing is received (TAGS_MIN_FREE_BYTES)."
            yield GaugeMetricFamily("tags_store_reserve_bytes", reserve, value=self._reserve_bytes)
