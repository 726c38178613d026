"""The phantom watchdog: a made-up CT with a known tumour goes the real way, again and again, and is measured.

The way: HTTP to this service, through the ingress where TAGS_PUBLIC_URL names it; object store; ledger; a worker of any
replica; engine; the SEG and its proof; HTTP back. Not a rule: a rule starts from a text, by which the shipped bundle
finds nothing, so that the figure would mean nothing. Nothing is left: it is a request that does not wait, which no
report counts as received, and its objects and its job are removed. Nothing goes to a destination. Decision 19.
"""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from anyio import to_thread
from pydicom import dcmread

from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.phantom import Identity, write_phantom
from service.dicom.seg_reader import read_seg
from service.dicom.series import Series
from service.errors import TagsError
from service.ledger.ledger import Ledger
from service.settings import Settings
from service.telemetry.metrics import WatchdogMetrics
from service.telemetry.request_log import describe_fault
from service.telemetry.work_log import WorkLog, WorkRecord
from service.tls import client_context

IDENTITY = Identity("TAGS^Watchdog", "TAGS-WATCHDOG", "tags watchdog")
POLL_S = 0.5
TRAVEL_S = 300.0  # a queue full of others' work may stand before it
HTTP_S = 60.0  # one call
LIMITS = SeriesLimits(max_instances=1000, max_voxels=2**26)


class JourneyFailed(Exception):
    """Where the phantom got stuck. `reason` is a slug, `detail` safe text."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, eq=False)
class Traveller:
    """The phantom, ready to be sent, and the truth."""

    upload: bytes  # ZIP
    prompts: str
    series: Series  # its geometry; the files are gone
    tumour: np.ndarray  # (D, H, W) bool


@dataclass(frozen=True)
class Sighting:
    """What came back. `seconds`: from the first byte sent to the last received."""

    dice: float
    volume_ratio: float  # found / true
    seconds: float


def new_traveller() -> Traveller:
    """Blocking, for some seconds of one core."""
    with tempfile.TemporaryDirectory(prefix="tags-") as directory:
        phantom = write_phantom(Path(directory), IDENTITY)
        # A box: by it the shipped bundle finds most of a tumour, while by a click it may find next to nothing.
        return traveller_of(
            sorted(Path(directory).iterdir()), {"boxes": [{"lps_mm": phantom.box_lps_mm}]}, phantom.tumour
        )


def traveller_of(files: Sequence[Path], prompts: dict[str, Any], tumour: np.ndarray) -> Traveller:
    """Args: files: of one series, read now and not needed afterwards. tumour: (D, H, W) bool on its grid."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in files:
            archive.write(path, path.name)
    series = read_series(files, series_instance_uid=None, limits=LIMITS)
    return Traveller(stream.getvalue(), json.dumps(prompts), series, tumour)


def own_url(settings: Settings) -> str:
    """Where senders reach this service: TAGS_PUBLIC_URL, else its own address."""
    scheme = "https" if settings.tls_certificate_file else "http"
    return settings.public_url or f"{scheme}://{own_host(settings)}:{settings.port}"


def own_host(settings: Settings) -> str:
    """Where this machine reaches what listens on TAGS_HOST."""
    everywhere = settings.host in ("0.0.0.0", "::", "")  # noqa: S104  # nosec B104
    return "127.0.0.1" if everywhere else settings.host


def own_client(settings: Settings) -> httpx.AsyncClient:
    """A client of this service, as a sender would have it, with TAGS_PROBE_KEY for its caller."""
    key = settings.probe_key.get_secret_value()
    return httpx.AsyncClient(
        base_url=own_url(settings),
        timeout=HTTP_S,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        verify=client_context(ca_file=settings.public_ca_file),
        trust_env=False,
    )


async def travel(client: httpx.AsyncClient, traveller: Traveller, ledger: Ledger, request_id: str) -> Sighting:
    """Once there and back. Raises: JourneyFailed; whatever it raises, nothing is left behind."""
    started = time.monotonic()
    location = await _sent(client, traveller, request_id)
    try:
        await _ended(client, location, started + TRAVEL_S)
        body = await _answered(client, "GET", f"{location}/result")
        seconds = time.monotonic() - started
    finally:
        with suppress(JourneyFailed):
            await _answered(client, "DELETE", location)  # cancels one that has not ended
            await _answered(client, "DELETE", location)  # forgets one that has
        with suppress(TagsError):
            await to_thread.run_sync(ledger.jobs.remove_request, location.rpartition("/")[2])
    found = await to_thread.run_sync(_mask_of, body, traveller.series)
    overlap, true = int((found & traveller.tumour).sum()), int(traveller.tumour.sum())
    return Sighting(2 * overlap / (int(found.sum()) + true), int(found.sum()) / true, round(seconds, 3))


async def _sent(client: httpx.AsyncClient, traveller: Traveller, request_id: str) -> str:
    """Returns: the job's address."""
    response = await _answered(
        client,
        "POST",
        "/segment?format=seg",
        files={"files": ("phantom.zip", traveller.upload)},
        data={"prompts": traveller.prompts},
        headers={"Prefer": "respond-async", "X-Request-ID": request_id},
    )
    document = json.loads(response)
    return f"/jobs/{document['id']}"


async def _ended(client: httpx.AsyncClient, location: str, deadline: float) -> None:
    while time.monotonic() < deadline:
        document = json.loads(await _answered(client, "GET", location))
        if document["state"] == "done":
            return
        if document["state"] in ("refused", "dead", "cancelled"):
            raise JourneyFailed(str(document["reason"]) or "job-failed", f"the job is {document['state']}")
        await asyncio.sleep(POLL_S)
    raise JourneyFailed("timed-out", f"no worker had finished it after {TRAVEL_S:g} s")


async def _answered(client: httpx.AsyncClient, method: str, address: str, **request: Any) -> bytes:
    try:
        response = await client.request(method, address, **request)
    except httpx.HTTPError as error:
        raise JourneyFailed("unreachable", f"{method} failed: {type(error).__name__}") from error
    if not response.is_success:
        raise JourneyFailed("refused", f"{method} was answered with {response.status_code}{_slug(response)}")
    return response.content


def _slug(response: httpx.Response) -> str:
    """Of a problem of this service; what stands before it answers otherwise."""
    if response.headers.get("content-type") != "application/problem+json":
        return ""
    return f" {json.loads(response.content)['type'].rpartition('#')[2]}"


def _mask_of(body: bytes, series: Series) -> np.ndarray:
    """The SEG on the grid of the phantom, by the reader of masks that are sent to us.

    With TAGS_DEIDENTIFY_REQUESTS its UIDs are pseudonyms; it still lies where the phantom lies.
    """
    found = dcmread(io.BytesIO(body))
    if found.get("PatientIdentityRemoved") == "YES":
        found.FrameOfReferenceUID = series.geometry.frame_of_reference_uid
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        found.save_as(file)
        file.flush()
        try:
            return read_seg(Path(file.name), series)
        except TagsError as error:
            raise JourneyFailed("unreadable-result", error.detail) from error


class Watchdog:
    """`run` until cancelled."""

    def __init__(self, settings: Settings, ledger: Ledger, metrics: WatchdogMetrics, log: WorkLog) -> None:
        self._settings, self._ledger, self._metrics, self._log = settings, ledger, metrics, log

    async def run(self) -> None:
        traveller: Traveller | None = None
        async with own_client(self._settings) as client:
            while True:
                await asyncio.sleep(self._settings.watchdog_interval_s)
                if traveller is None:
                    traveller = await to_thread.run_sync(new_traveller)
                await self._look(client, traveller)

    async def _look(self, client: httpx.AsyncClient, traveller: Traveller) -> None:
        record = WorkRecord("", "watchdog", 0, request_id=str(uuid4()))
        try:
            seen = await travel(client, traveller, self._ledger, record.request_id)
        except Exception as error:
            self._metrics.failures.inc()
            record.outcome = "failed"
            if isinstance(error, JourneyFailed):
                record.slug, record.fault = error.reason, error.detail
            else:
                record.slug, record.fault = "internal-error", describe_fault(error)
        else:
            self._metrics.note(seen.dice, seen.volume_ratio, seen.seconds)
            record.outcome = "done"
        self._log.write(record)
