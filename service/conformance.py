"""The DICOM conformance statement (PS3.2), made of the running configuration: what it says is what the code offers.

What enters: settings and routing file. What leaves: Markdown. `tags conformance` prints it; docs/conformance.md is that
of the defaults with a DICOM listener, and a test holds it to them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from fastapi import FastAPI
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from service.dicom.header import ENHANCED, SINGLE_FRAME
from service.dicom.seg import SOP_CLASSES
from service.dicom.transfer_syntaxes import readable_transfer_syntaxes
from service.dimse.association import MAX_PDU_BYTES
from service.dimse.scp import IDLE_S
from service.ledger.search import SEARCHABLE
from service.preview import RESEARCH_USE
from service.rules.document import Routing
from service.settings import Settings

CREATED = (
    (SOP_CLASSES["binary"], "`seg`"),
    (SOP_CLASSES["labelmap"], "`seg`, where the destination's profile asks for it"),
    (RTStructureSetStorage, "`rtstruct`"),
    (Comprehensive3DSRStorage, "`sr` (TID 1500)"),
    (SecondaryCaptureImageStorage, "`sc` (key images)"),
)
NETWORK = """```
 PACS, modality --C-STORE, C-ECHO-->  TAGS  --C-STORE, N-ACTION-->  PACS
 PACS           --STOW-RS---------->        --STOW-RS, QIDO-RS--->
 viewer, PACS   --QIDO-RS, WADO-RS->        --WADO-RS (pull)----->
```"""


def statement(settings: Settings, routing: Routing, app: FastAPI) -> str:
    """Args: app: that of these settings, for its DICOMweb addresses."""
    sections = [
        ["# DICOM conformance statement", "", f"**{RESEARCH_USE}**"],
        [
            f"TAGS {version('tags-service')}, after PS3.2. Made by `tags conformance` of the configuration; a test "
            "holds this page, which is that of the defaults with a DICOM listener, up to date."
        ],
        ["## Overview", "", NETWORK],
        _table(("service", "user (SCU, client)", "provider (SCP, server)"), _services(settings, routing)),
        ["## Received objects", ""],
        [
            "Every storage SOP class is received and kept, private ones included. Of these, volumes are segmented:",
        ],
        _table(("SOP class", "UID", "form"), [
            *[(_name(uid), f"`{uid}`", "one image per object") for uid in SINGLE_FRAME],
            *[(_name(uid), f"`{uid}`", "multi-frame") for uid in ENHANCED],
        ]),
        ["Pixel data are read in these transfer syntaxes; others are received, kept, and not segmented:", ""],
        _table(("transfer syntax", "UID"), [(it["name"], f"`{it['uid']}`") for it in readable_transfer_syntaxes()]),
        ["## Created objects", ""],
        _table(("SOP class", "UID", "format", "transfer syntax"), [
            (_name(uid), f"`{uid}`", said, UID(ExplicitVRLittleEndian).name) for uid, said in CREATED
        ]),
        ["Each is read again by other code and validated before it is released (decision 13).", ""],
        ["## DIMSE", ""], _dimse(settings),
        ["## DICOMweb", ""], _web(app),
        ["QIDO-RS matches, with wildcards in text and ranges of dates and times:", ""],
        _table(("level", "attributes"), [(level, ", ".join(names)) for level, names in SEARCHABLE.items()]),
        ["## Destinations and sources", ""], _peers(routing),
        ["## Character sets", ""],
        ["Any that pydicom decodes is read. Created objects keep the set of their source where they hold its text."],
        ["## Security", ""], _security(settings, routing),
        ["No attribute is coerced on receipt: objects are kept byte by byte."],
    ]  # fmt: skip
    return "\n\n".join("\n".join(section).strip() for section in sections) + "\n"


def _services(settings: Settings, routing: Routing) -> list[tuple[str, str, str]]:
    listens = "yes" if settings.dimse_port is not None else "off (TAGS_DIMSE_PORT)"
    return [
        ("Verification", "`tags doctor`", listens),
        ("Storage (C-STORE)", "deliveries", listens),
        ("Storage Commitment Push Model", "deliveries", "reports are received: " + listens),
        ("Query/Retrieve (C-FIND, C-GET)", "`tags doctor`", "no"),
        ("STOW-RS", "deliveries", "yes"),
        ("QIDO-RS", "proof of deliveries", "yes"),
        ("WADO-RS", "pull from a source", "yes"),
        ("Modality Worklist, MPPS, Print, Media", "no", "no"),
    ]


def _dimse(settings: Settings) -> list[str]:
    titles = settings.dimse_calling_ae_titles or "any"
    lines = _table(("property", "value"), [
        ("AE title", f"`{settings.dimse_ae_title}`; associations that call another are rejected"),
        ("port", str(settings.dimse_port) if settings.dimse_port is not None else "none"),
        ("calling AE titles", titles),
        ("associations at once", str(settings.dimse_max_associations)),
        ("maximum PDU", "unlimited" if MAX_PDU_BYTES == 0 else str(MAX_PDU_BYTES)),
        ("idle time-out", f"{IDLE_S:g} s"),
        ("asynchronous operations", "no"),
        ("acknowledgement", "after the object is durable: bytes synced, row committed"),
    ])  # fmt: skip
    lines += ["C-STORE is answered with (PS3.4 Table B.2-1):", ""]
    lines += _table(("status", "when"), [
        ("0000", "stored, or held already with the same content"),
        ("A700", "no room, or no database: send again later"),
        ("A900", "the data set names another SOP instance than the command"),
        ("C000", "the data set cannot be read"),
    ])  # fmt: skip
    classes = [UID(context.abstract_syntax or "") for context in AllStoragePresentationContexts]
    lines += [
        f"Presentation contexts accepted: Verification (`{Verification}`), Storage Commitment Push Model "
        f"(`{StorageCommitmentPushModel}`, both roles), and these {len(classes)} storage SOP classes and any that is "
        f"private or not known here, each in the transfer syntax that is proposed first.",
        "",
    ]
    return lines + _table(("SOP class", "UID"), [(uid.name, f"`{uid}`") for uid in sorted(classes)])


def _web(app: FastAPI) -> list[str]:
    methods = defaultdict(list)
    for method, path, summary in _routes(app):
        methods[(path, summary)].append(method)
    rows = [(", ".join(sorted(found)), f"`{path}`", summary) for (path, summary), found in sorted(methods.items())]
    return _table(("method", "address", "what"), rows)


def _routes(app: FastAPI) -> Iterable[tuple[str, str, str]]:
    for path, operations in app.openapi()["paths"].items():
        if path.startswith("/dicom-web"):
            for method, operation in operations.items():
                yield method.upper(), path, operation.get("summary", "")


def _peers(routing: Routing) -> list[str]:
    rows = [(f"source {name}", "WADO-RS", "-") for name in routing.sources]
    for name, destination in routing.destinations.items():
        way = "STOW-RS" if destination.stow else "C-STORE"
        rows.append((f"destination {name}", way, destination.how_to_verify))
    if not rows:
        return ["None is configured.", ""]
    return _table(("name", "service", "proved by"), rows)


def _security(settings: Settings, routing: Routing) -> list[str]:
    listener = "yes" if settings.dimse_tls else "no (TAGS_DIMSE_TLS)"
    if settings.dimse_tls and settings.dimse_tls_client_ca_file:
        listener += ", with client certificates"
    ways = [("a file", settings.audit_file), ("syslog over TLS (A.6)", settings.audit_syslog)]
    audit = " and ".join(way for way, target in ways if target) or "off (TAGS_AUDIT_FILE, TAGS_AUDIT_SYSLOG)"
    requests = "every `POST /segment`" if settings.deidentify_requests else "`POST /segment` where it asks"
    rules = "".join(f", results of the rule {rule.name}" for rule in routing.rules if rule.deidentified)
    has_key = bool(settings.deidentification_key.get_secret_value())
    return _table(("PS3.15", "here"), [
        ("TLS by BCP 195 (Annex B), DICOM listener", listener),
        ("TLS by BCP 195, DICOMweb", "yes" if settings.tls_certificate_file else "by what stands before the service"),
        ("Audit trail messages (A.5)", audit + (", without which nothing is done" if settings.audit_required else "")),
        ("Basic Application Level Confidentiality Profile (Annex E), by replacement",
         requests + rules if has_key else "off (TAGS_DEIDENTIFICATION_KEY)"),
    ])  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(cells) + " |" for cells in lines), ""]


def _name(uid: str) -> str:
    return "Label Map Segmentation Storage" if uid == SOP_CLASSES["labelmap"] else UID(uid).name
