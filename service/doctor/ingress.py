"""This service as its senders reach it: address, certificate, clock, body limits, and the phantom's journey.

Body limits are asked for without a body: a proxy refuses by Content-Length alone (413), or asks for the body
(100 Continue), or waits for it; the connection is then closed. Source: RFC 9110 10.1.1.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import SplitResult, urlsplit
from uuid import uuid4

import httpx
from anyio import to_thread

from service.access.listening import is_loopback
from service.doctor.check import Check, State
from service.doctor.machine import clock_offset_s
from service.ledger.ledger import Ledger
from service.settings import Settings
from service.tls import client_context
from service.watchdog import JourneyFailed, new_traveller, own_client, own_url, travel

WAIT_S = 5.0  # a proxy that waits for the body has not refused its length
CONNECT_S = 10.0
SOON_DAYS = 21
DAY_S = 86400.0
MOST_HEAD_BYTES = 64 * 1024
GOOD_DICE = 0.5  # by a box the shipped bundle reaches more on this phantom; a site's own bundle should, too
FIX_REACH = "Start the service, or let TAGS_PUBLIC_URL and the proxy or ingress lead to it."
FIX_READY = "See the check of the engine; the gateway says 503 until it answers."
FIX_CERTIFICATE = (
    "Renew the certificate of TAGS_PUBLIC_URL, for this very host name, with its chain; or name its authority in "
    "TAGS_PUBLIC_CA_FILE."
)
FIX_FILE = "Renew the certificate of TAGS_TLS_CERTIFICATE_FILE, and start the service again."
FIX_LIMIT = (
    "Raise the limit of proxy or ingress (nginx: client_max_body_size; ingress-nginx: "
    "nginx.ingress.kubernetes.io/proxy-body-size) to at least"
)
FIX_JOURNEY = "Look at the log lines with this request id; the other checks name the part."
FIX_DICE = "Compare with the bundle's measured quality: the engine, its precision or the bundle is not what it was."


async def check_reach(settings: Settings) -> tuple[list[Check], dict[str, float]]:
    """Liveness, readiness, clock. Returns: checks, and by how much the clock there is ahead."""
    where = "TAGS_PUBLIC_URL" if settings.public_url else "its own address"
    async with own_client(settings) as client:
        try:
            live = await client.get("/health/live")
            ready = await client.get("/health/ready")
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ConnectError) and "certificate" in str(error).lower():
                return [Check("certificate", "red", "it is not trusted, or not for this host", FIX_CERTIFICATE)], {}
            return [Check("service", "red", f"{where} cannot be reached: {type(error).__name__}", FIX_REACH)], {}
    ahead_s = clock_offset_s(live)
    offset_s = {} if ahead_s is None else {"service": ahead_s}
    if live.status_code != httpx.codes.OK:
        return [
            Check("service", "red", f"{where} answers {live.status_code}, not as this service", FIX_REACH)
        ], offset_s
    if ready.status_code != httpx.codes.OK:
        return [Check("service", "red", f"it is not ready: {ready.status_code}", FIX_READY)], offset_s
    return [Check("service", "green", f"{where} leads to a service that is ready")], offset_s


async def check_certificate(settings: Settings) -> list[Check]:
    """Raises: OSError: no connection, or no trust."""
    parts = urlsplit(own_url(settings))
    if parts.scheme != "https":
        if is_loopback(parts.hostname or ""):
            return [Check("certificate", "skipped", "plain HTTP on this machine only")]
        fix = "Put TLS before the service, and say https in TAGS_PUBLIC_URL: images of patients travel in the clear."
        return [Check("certificate", "red", "plain HTTP across the network", fix)]
    async with _connected(parts, settings) as (_, writer):
        certificate = writer.get_extra_info("peercert")
        version = writer.get_extra_info("ssl_object").version()
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / DAY_S
    found = f"{version}, valid for {days:.0f} days more"
    if days < SOON_DAYS:
        return [Check("certificate", "amber", found, FIX_CERTIFICATE)]
    return [Check("certificate", "green", found)]


def check_certificate_file(settings: Settings) -> list[Check]:
    """The certificate that this service itself shows, where it does. Raises: OSError."""
    path = settings.tls_certificate_file
    if path is None:
        return [Check("certificate file", "skipped", "TLS is for what stands before the service")]
    from cryptography.x509 import load_pem_x509_certificates

    try:
        certificate, *_ = load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        return [Check("certificate file", "red", "it holds no certificate in PEM", FIX_FILE)]
    days = (certificate.not_valid_after_utc.timestamp() - time.time()) / DAY_S
    found = f"valid for {days:.0f} days more" if days > 0 else "it has expired"
    state: State = "red" if days <= 0 else "amber" if days < SOON_DAYS else "green"
    return [Check("certificate file", state, found, FIX_FILE if state != "green" else "")]


async def check_limits(settings: Settings) -> list[Check]:
    """Whether a proxy lets bodies through that the service takes. Raises: OSError."""
    ways = (("/segment", settings.max_upload_bytes), ("/dicom-web/studies", settings.max_store_bytes))
    checks = []
    for path, most_bytes in ways:
        name = f"body limit: {path}"
        status, problem = await _status_for_length(settings, path, most_bytes)
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            found = f"413 to {most_bytes} bytes, {'by the service' if problem else 'by what stands before it'}"
            checks.append(Check(name, "red", found, f"{FIX_LIMIT} {most_bytes} bytes."))
        elif status >= 500:
            found = f"{status} before the body was sent"
            checks.append(Check(name, "red", found, FIX_REACH))
        else:
            said = {0: "the body is waited for", 100: "the body is asked for"}.get(status, f"{status}, but not 413")
            checks.append(Check(name, "green", f"{most_bytes} bytes may come: {said}"))
    return checks


async def _status_for_length(settings: Settings, path: str, length: int) -> tuple[int, bool]:
    """The answer to a head that announces a body; 0 for none within WAIT_S. And whether it is a problem of ours."""
    parts = urlsplit(own_url(settings))
    key = settings.probe_key.get_secret_value()
    kind = 'multipart/related; type="application/dicom"; boundary=b' if "dicom-web" in path else (
        "multipart/form-data; boundary=b"
    )  # fmt: skip
    head = [
        f"POST {parts.path.rstrip('/')}{path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {length}",
        f"Content-Type: {kind}", "Expect: 100-continue", "Connection: close",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]  # fmt: skip
    async with _connected(parts, settings) as (reader, writer):
        writer.write("\r\n".join((*head, "", "")).encode())
        await writer.drain()
        try:
            async with asyncio.timeout(WAIT_S):
                answer = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return 0, False
        except asyncio.IncompleteReadError as error:
            answer = error.partial
    status = answer.partition(b"\r\n")[0].split(b" ")
    number = int(status[1]) if len(status) > 1 and status[1].isdigit() else 502
    return number, b"application/problem+json" in answer.lower()


@asynccontextmanager
async def _connected(
    parts: SplitResult, settings: Settings
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Over when the block is: a TLS peer that never says goodbye is not waited for, and nothing stays open."""
    context = client_context(ca_file=settings.public_ca_file) if parts.scheme == "https" else None
    port = parts.port or (443 if context else 80)
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context, limit=MOST_HEAD_BYTES)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):  # the peer's own reset
            await writer.wait_closed()


async def check_journey(settings: Settings, ledger: Ledger) -> list[Check]:
    """The watchdog's phantom, once there and back."""
    traveller = await to_thread.run_sync(new_traveller)
    request_id = str(uuid4())
    async with own_client(settings) as client:
        try:
            seen = await travel(client, traveller, ledger, request_id)
        except JourneyFailed as error:
            found = f"{error.reason}: {error.detail}; request id {request_id}"
            return [Check("phantom", "red", found, FIX_JOURNEY)]
    found = f"Dice {seen.dice:.2f}, volume {seen.volume_ratio:.2f} of the true one, {seen.seconds:.1f} s"
    if seen.dice < GOOD_DICE:
        return [Check("phantom", "amber", found, FIX_DICE)]
    return [Check("phantom", "green", found)]
