"""Prometheus metrics of one app: requests, stage times, load, engine state. No label holds anything from a request
but its route template, status and error slug."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds. A slice window takes milliseconds, a network on two cores about one second, a whole volume tens.
STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics, in a registry of their own, so that two apps in one process do not collide."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tags_requests_total", "Requests answered.", ["route", "status", "slug"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "tags_request_seconds", "Seconds per request.", ["route"], buckets=STAGE_BUCKETS, registry=self._registry
        )
        self.stages = Histogram(
            "tags_stage_seconds", "Seconds per stage.", ["stage"], buckets=STAGE_BUCKETS, registry=self._registry
        )
        self.running = Gauge("tags_segmentations_running", "Segmentations being computed.", registry=self._registry)
        self.waiting = Gauge(
            "tags_segmentations_waiting", "Requests being received or waiting their turn.", registry=self._registry
        )
        self.engine_up = Gauge("tags_engine_up", "1 when the last canary inference answered.", registry=self._registry)
        self.silenced = Counter(
            "tags_silenced_log_records_total", "Log records of DICOM libraries, withheld.", registry=self._registry
        )
        self.audit_failures = Counter(
            "tags_audit_failures_total", "Audit messages that could not be written.", registry=self._registry
        )
        self.instances = Counter(
            "tags_instances_total", "Instances received.", ["via", "outcome"], registry=self._registry
        )
        self.decisions = Counter("tags_series_decided_total", "Series decided.", ["reason"], registry=self._registry)
        self.deletions = Counter(
            "tags_series_deleted_total", "Series deleted by a retention rule.", ["rule"], registry=self._registry
        )
        self.attempts = Counter(
            "tags_job_attempts_total", "Attempts at jobs.", ["kind", "outcome", "slug"], registry=self._registry
        )

    def register(self, collector: Collector) -> None:
        """Add what is read at each scrape, such as the queue."""
        self._registry.register(collector)

    def observe_stages(self, seconds: dict[str, float]) -> None:
        for stage, value in seconds.items():
            self.stages.labels(stage).observe(value)

    def watchdog(self) -> WatchdogMetrics:
        """The watchdog's metrics, which are there only where it runs."""
        return WatchdogMetrics(self._registry)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Show them at a port of their own, for a process without an API. Returns: what closes it. Raises: OSError."""
        server, thread = start_http_server(port, host, self._registry)

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return close

    def text(self) -> bytes:
        """The exposition that Prometheus scrapes."""
        return generate_latest(self._registry)


class WatchdogMetrics:
    """What the phantom watchdog saw last. NaN before its first success, so that no alert takes that for a bad one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._dice = Gauge("tags_watchdog_dice", "Dice of the phantom's tumour, last time.", registry=registry)
        self._volume_ratio = Gauge("tags_watchdog_volume_ratio", "Volume found by volume true.", registry=registry)
        self._seconds = Gauge("tags_watchdog_seconds", "Seconds there and back.", registry=registry)
        for gauge in (self._dice, self._volume_ratio, self._seconds):
            gauge.set(float("nan"))
        self.failures = Counter("tags_watchdog_failures_total", "Journeys that failed.", registry=registry)
        self._last_success = Gauge(
            "tags_watchdog_last_success_timestamp_seconds", "When one last succeeded; 0 never.", registry=registry
        )

    def note(self, dice: float, volume_ratio: float, seconds: float) -> None:
        """A journey has succeeded, whatever was found."""
        self._dice.set(dice)
        self._volume_ratio.set(volume_ratio)
        self._seconds.set(seconds)
        self._last_success.set(time.time())
