"""The phantom watchdog over a real socket: what it measures, what it says when something fails, what it leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import watchdog
from service.errors import ModelNotReady
from service.ledger.report import reconcile
from service.watchdog import Traveller, traveller_of
from tests.fakes.engine import FakeEngine
from tests.pacs.live import LiveGateway, live_gateway
from tests.phantoms import write_ct_series

METRICS = (
    "tags_watchdog_dice",
    "tags_watchdog_volume_ratio",
    "tags_watchdog_seconds",
    "tags_watchdog_failures_total",
    "tags_watchdog_last_success_timestamp_seconds",
)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traveller:
    """A phantom that the engine without networks can segment, in a moment."""
    phantom = write_ct_series(tmp_path / "phantom", patient_name="TAGS^Watchdog")
    places = {"points": [{"lps_mm": phantom.centre_lps_mm.tolist()}]}
    traveller = traveller_of(phantom.paths, places, phantom.tumour)
    monkeypatch.setattr(watchdog, "new_traveller", lambda: traveller)
    monkeypatch.setattr(watchdog, "POLL_S", 0.05)
    return traveller


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def gateway(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveGateway]:
    with live_gateway(tmp_path / "data", engine, watchdog_interval_s=0.5, job_attempts=1) as started:
        yield started


def value(gateway: LiveGateway, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", gateway.client.get("/metrics").text, re.M)
    assert found, name
    return float(found[1])


def kept(directory: Path) -> list[Path]:
    return [path for path in (directory / "data" / "objects").rglob("*") if path.is_file()]


def test_what_it_sees_is_measured_and_nothing_of_it_is_left(gateway, tmp_path):
    last = "tags_watchdog_last_success_timestamp_seconds"
    gateway.wait_for("a sighting", lambda: value(gateway, last) > 0)
    first, failures = value(gateway, last), value(gateway, "tags_watchdog_failures_total")  # before it listened
    gateway.wait_for("another", lambda: value(gateway, last) > first)
    assert value(gateway, "tags_watchdog_failures_total") == failures
    assert value(gateway, "tags_watchdog_dice") > 0.8
    assert 0.7 < value(gateway, "tags_watchdog_volume_ratio") < 1.4
    assert 0 < value(gateway, "tags_watchdog_seconds") < 60
    gateway.wait_for("no job between two journeys", lambda: not gateway.jobs())
    gateway.wait_for("no object between two journeys", lambda: not kept(tmp_path))
    assert reconcile(gateway.ledger.database).instances == 0
    assert gateway.client.get("/dicom-web/studies").json() == []
    assert '"kind": "watchdog"' in gateway.log.getvalue()


def test_it_sees_as_well_where_every_request_is_deidentified(tmp_path, engine):
    settings = {"deidentify_requests": True, "deidentification_key": "k" * 32}
    with live_gateway(tmp_path / "data", engine, watchdog_interval_s=0.5, **settings) as gateway:
        gateway.wait_for("a sighting", lambda: value(gateway, "tags_watchdog_last_success_timestamp_seconds") > 0)
        assert value(gateway, "tags_watchdog_dice") > 0.8


def test_an_engine_that_fails_is_counted_and_leaves_nothing_either(tmp_path):
    with live_gateway(
        tmp_path / "data", FakeEngine(error=ModelNotReady("gone")), watchdog_interval_s=0.5, job_attempts=1
    ) as gateway:
        gateway.wait_for("a failure", lambda: value(gateway, "tags_watchdog_failures_total") >= 1)
        assert value(gateway, "tags_watchdog_last_success_timestamp_seconds") == 0
        assert value(gateway, "tags_engine_up") == 0
        assert str(value(gateway, "tags_watchdog_dice")) == "nan"
        gateway.wait_for("its line", lambda: '"slug": "model-not-ready"' in gateway.log.getvalue())


def test_a_job_that_no_worker_takes_is_given_up_and_its_objects_go(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "TRAVEL_S", 1.0)
    with live_gateway(tmp_path / "data", watchdog_interval_s=2, worker=False) as gateway:
        gateway.wait_for("its line", lambda: '"slug": "timed-out"' in gateway.log.getvalue())
        gateway.wait_for("no job between two journeys", lambda: not gateway.jobs())
        gateway.wait_for("no object between two journeys", lambda: not kept(tmp_path))


def test_a_wrong_mask_shows_in_dice_and_volume(tmp_path):
    """An engine that takes all bright tissue for the tumour."""
    with live_gateway(tmp_path / "data", FakeEngine(threshold=0.0), watchdog_interval_s=0.5) as gateway:
        gateway.wait_for("a sighting", lambda: value(gateway, "tags_watchdog_last_success_timestamp_seconds") > 0)
        assert value(gateway, "tags_watchdog_dice") < 0.5
        assert value(gateway, "tags_watchdog_volume_ratio") > 2


def test_an_address_where_nobody_is_counts_as_a_failure(tmp_path):
    with live_gateway(tmp_path / "data", watchdog_interval_s=0.5, public_url="http://127.0.0.1:9") as gateway:
        gateway.wait_for("a failure", lambda: value(gateway, "tags_watchdog_failures_total") >= 1)
        gateway.wait_for("its line", lambda: '"slug": "unreachable"' in gateway.log.getvalue())


def test_without_an_interval_there_is_no_watchdog(tmp_path):
    with live_gateway(tmp_path / "data") as gateway:
        text = gateway.client.get("/metrics").text
    assert "tags_watchdog" not in text


def test_the_queue_the_deliveries_and_the_disk_are_shown(gateway):
    text = gateway.client.get("/metrics").text
    for name in ("tags_ledger_oldest_waiting_seconds", "tags_deliveries_waiting", "tags_store_free_bytes", *METRICS):
        assert re.search(rf"^{name} ", text, re.M), name
    for state in ("waiting", "running", "done", "refused", "dead", "cancelled"):
        assert f'tags_ledger_jobs{{state="{state}"}}' in text
    assert 'tags_request_seconds_count{route="/metrics"}' in gateway.client.get("/metrics").text
