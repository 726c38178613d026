"""Sources and destinations: do they answer, and does a phantom get there, is listed, and comes back the same. Blocking.

The phantom is one made-up CT image of a patient who says so, with the same UIDs each time, so that however often this
runs an archive holds one object of ours; its name keeps it from every rule (quality control).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread

from service.delivery.deliver import deliver
from service.delivery.failure import DeliveryFailed
from service.dicom.facts import read_facts
from service.dicom.phantom import Identity, write_one_image
from service.dicomweb.client import DicomwebClient, Outgoing
from service.dimse import asking
from service.doctor.check import Check
from service.doctor.machine import clock_offset_s
from service.errors import SourceUnavailable
from service.ledger.commitments import Commitments
from service.rules.document import Destination, DicomwebPeer, DimsePeer, Routing
from service.settings import Settings
from service.watchdog import own_host

IDENTITY = Identity("TAGS^Doctor^Phantom", "TAGS-DOCTOR", "tags doctor")
MAX_BYTES = 16 * 1024**2
FIX_WEB = "Start the server, or correct url and ca_file in the routing file; this machine must reach it."
FIX_ACCESS = "Correct username, password_env or token_env in the routing file, and the user's rights there."
FIX_LISTENER = "Start the service with TAGS_DIMSE_PORT; nothing else may listen on that port."
FIX_DIMSE = "Start the node, or correct host and port in the routing file; this machine must reach it."
FIX_TITLES = (
    "Let the node know our AE title (TAGS_DIMSE_AE_TITLE) and address, and correct ae_title in the routing file."
)
FIX_STORE = "Let the node take CT and SEG objects from us, and say with `verify` how to ask whether they are there."
FIX_COMMITMENT = (
    "Let the node report storage commitment to our DICOM port (TAGS_DIMSE_PORT), under our AE title; or say "
    "`verify: qido` with a `qido` server."
)
FIX_QUERY = "Let us query the node; without it a delivery cannot be proved."
FIX_RETRIEVE = "Let us retrieve from the node: prior objects and pulled series come that way."


@dataclass(frozen=True)
class Told:
    """The checks, and by how many seconds each server's clock is ahead of ours."""

    checks: tuple[Check, ...]
    offsets_s: dict[str, float]


def check_peers(routing: Routing, ae_title: str, commitments: Commitments | None, *, store: bool) -> Told:
    """Args: commitments: of the ledger, which a delivery needs. store: whether to send the phantom."""
    checks: list[Check] = []
    offsets_s: dict[str, float] = {}
    for name, source in routing.sources.items():
        checks.append(_web(f"source {name}", source, offsets_s))
    for name, destination in routing.destinations.items():
        checks += _destination(f"destination {name}", destination, ae_title, commitments, store, offsets_s)
    if not checks:
        checks = [Check("PACS", "skipped", "the routing file names no source and no destination")]
    return Told(tuple(checks), offsets_s)


def check_listener(settings: Settings) -> list[Check]:
    """Our own DICOM port, asked as a sender would."""
    if settings.dimse_port is None:
        return [Check("DICOM port", "skipped", "TAGS_DIMSE_PORT is not set")]
    if settings.dimse_tls:
        return [Check("DICOM port", "skipped", "it speaks TLS, for which this would need a sender's certificate")]
    peer = DimsePeer(host=own_host(settings), port=settings.dimse_port, ae_title=settings.dimse_ae_title, timeout_s=10)
    caller = settings.dimse_calling_ae_titles.partition(",")[0].strip() or settings.dimse_ae_title
    try:
        asking.echo(peer, caller)
    except DeliveryFailed as error:
        return [Check("DICOM port", "red", error.detail, FIX_LISTENER)]
    return [Check("DICOM port", "green", "C-ECHO answers")]


def _destination(
    name: str,
    destination: Destination,
    ae_title: str,
    commitments: Commitments | None,
    store: bool,
    offsets_s: dict[str, float],
) -> list[Check]:
    web = destination.stow or destination.qido
    reached = [_echo(name, destination.dimse, ae_title)] if destination.dimse else []
    reached += [_web(name, peer, offsets_s) for peer in (destination.stow, destination.qido) if peer]
    if any(check.state == "red" for check in reached):
        return reached
    if not store:
        return [*reached, Check(f"{name}: store", "skipped", "left out, as was asked for")]
    if commitments is None:
        return [*reached, Check(f"{name}: store", "skipped", "a delivery needs the database, which does not answer")]
    with tempfile.TemporaryDirectory(prefix="tags-") as directory:
        item = _phantom(Path(directory))
        sent = _stored(name, destination, item, ae_title, commitments)
        if sent.state == "red":
            return [*reached, sent]
        back = _queried_by_web(name, web, item) if web else _queried_by_dimse(name, destination, item, ae_title)
        return [*reached, sent, *back]


def _web(name: str, peer: DicomwebPeer, offsets_s: dict[str, float]) -> Check:
    """A query for one study: reached, let in, answered."""
    name = f"{name}: query"
    try:
        with DicomwebClient(peer) as client:
            response = client.asked()
    except DeliveryFailed as error:
        return Check(name, "red", error.detail, FIX_WEB)
    if (offset_s := clock_offset_s(response)) is not None:
        offsets_s[name.rpartition(":")[0]] = offset_s
    if response.status_code in (401, 403):
        return Check(name, "red", f"QIDO-RS was answered with {response.status_code}", FIX_ACCESS)
    if response.status_code not in (200, 204):
        return Check(name, "red", f"QIDO-RS was answered with {response.status_code}", FIX_WEB)
    return Check(name, "green", "QIDO-RS answers")


def _echo(name: str, peer: DimsePeer, ae_title: str) -> Check:
    try:
        asking.echo(peer, ae_title)
    except DeliveryFailed as error:
        fix = FIX_TITLES if "rejected" in error.detail else FIX_DIMSE
        return Check(f"{name}: echo", "red", error.detail, fix)
    return Check(f"{name}: echo", "green", "C-ECHO answers")


def _stored(
    name: str, destination: Destination, item: Outgoing, ae_title: str, commitments: Commitments
) -> Check:  # fmt: skip
    """A delivery as every result is delivered, proof included."""
    try:
        proof = deliver(
            destination, [item], job_id="doctor", ae_title=ae_title, commitments=commitments, stage=lambda _: None
        )
    except DeliveryFailed as error:
        fix = FIX_COMMITMENT if "commitment" in error.detail else FIX_STORE
        return Check(f"{name}: store", "red", error.detail, fix)
    found = f"the phantom is there, by {proof}; it stays, as patient {IDENTITY.patient_id}"
    if proof == "none":
        fix = "Set `verify` for this destination: without proof an object that it drops is lost silently."
        return Check(f"{name}: store", "amber", "the phantom was sent; nothing proves that it is there", fix)
    return Check(f"{name}: store", "green", found)


def _queried_by_web(name: str, peer: DicomwebPeer, item: Outgoing) -> list[Check]:
    with tempfile.TemporaryDirectory(prefix="tags-") as directory, DicomwebClient(peer) as client:
        try:
            if client.missing([item]):
                return [Check(f"{name}: query", "red", "QIDO-RS does not list the phantom", FIX_QUERY)]
            study, series = item.study_instance_uid, item.series_instance_uid
            paths = client.fetch_series(study, series, Path(directory), max_bytes=MAX_BYTES)
        except DeliveryFailed as error:
            return [Check(f"{name}: query", "red", error.detail, FIX_QUERY)]
        except SourceUnavailable as error:
            return [Check(f"{name}: retrieve", "red", error.detail, FIX_RETRIEVE)]
        return [_compared(name, [dcmread(path) for path in paths], item, "WADO-RS")]


def _queried_by_dimse(name: str, destination: Destination, item: Outgoing, ae_title: str) -> list[Check]:
    peer = destination.dimse
    assert peer is not None
    checks = [_asked(f"{name}: query", FIX_QUERY, lambda: _listed(name, peer, item, ae_title))]

    def retrieve() -> Check:
        dataset = asking.fetched(peer, ae_title, item)
        return _compared(name, [dataset] if dataset else [], item, "C-GET")

    return [*checks, _asked(f"{name}: retrieve", FIX_RETRIEVE, retrieve)]


def _listed(name: str, peer: DimsePeer, item: Outgoing, ae_title: str) -> Check:
    if asking.is_found(peer, ae_title, item):
        return Check(f"{name}: query", "green", "C-FIND lists the phantom")
    return Check(f"{name}: query", "red", "C-FIND does not list the phantom", FIX_QUERY)


def _asked(name: str, fix: str, ask: Callable[[], Check]) -> Check:
    """Amber where the node does not offer it: deliveries do not need C-FIND and C-GET."""
    try:
        return ask()
    except (DeliveryFailed, ValueError) as error:
        found = error.detail if isinstance(error, DeliveryFailed) else "the node does not offer it"
        return Check(name, "amber", found, fix)


def _compared(name: str, datasets: list[Dataset], item: Outgoing, how: str) -> Check:
    sent = dcmread(item.path)
    for dataset in datasets:
        if dataset.SOPInstanceUID == sent.SOPInstanceUID and dataset.PixelData == sent.PixelData:
            return Check(f"{name}: retrieve", "green", f"{how} gives the phantom back, every pixel the same")
    return Check(f"{name}: retrieve", "red", f"{how} does not give back what was stored", FIX_RETRIEVE)


def _phantom(directory: Path) -> Outgoing:
    path = write_one_image(directory, IDENTITY)
    return Outgoing.of(path, read_facts(path))
