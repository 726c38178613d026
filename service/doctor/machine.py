"""Settings, disk and clock."""

from __future__ import annotations

import email.utils
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from service.doctor.check import Check, State
from service.rules.document import DicomwebPeer, Routing, RoutingInvalid, read_routing
from service.settings import GIB, Settings

OFF_S, FAR_OFF_S = 5.0, 60.0  # tokens are refused beyond a minute; DICOM times should not differ by seconds
BUILT_AT = 1_764_000_000.0  # November 2025: a clock before it was never set


def check_settings(settings: Settings, environment: Mapping[str, str]) -> list[Check]:
    """Names that are no setting: the service ignores them, and a typing error would go unnoticed."""
    known = {f"TAGS_{name.upper()}" for name in type(settings).model_fields}
    unknown = sorted(name for name in environment if name.startswith("TAGS_") and name not in known)
    if unknown:
        fix = "Correct the names, or remove them; docs/settings.md lists those that are read."
        return [Check("settings", "amber", f"no setting: {', '.join(unknown)}", fix)]
    return [Check("settings", "green", f"{len(known)} settings are valid")]


def check_routing(settings: Settings) -> tuple[Routing, list[Check]]:
    """The routing file, and an empty one where it cannot be used."""
    if settings.routing_file is None:
        return Routing(), [Check("routing", "skipped", "TAGS_ROUTING_FILE is not set: nothing is segmented by itself")]
    try:
        routing = read_routing(settings.routing_file, settings.profiles_dir)
    except RoutingInvalid as error:
        fix = "Correct TAGS_ROUTING_FILE; `tags rules test` explains each decision by it."
        return Routing(), [Check("routing", "red", str(error), fix)]
    empty = sorted({name for peer in peers_of(routing) for name in (peer.password_env, peer.token_env)} - {""})
    empty = [name for name in empty if not os.environ.get(name)]
    if empty:
        fix = "Set these variables for this process; the routing file names them for passwords and tokens."
        return routing, [Check("routing", "red", f"empty: {', '.join(empty)}", fix)]
    nameless = [rule.name for rule in routing.rules if rule.deidentified]
    if nameless and not settings.deidentification_key.get_secret_value():
        fix = "Set TAGS_DEIDENTIFICATION_KEY, the same for each gateway and worker: `openssl rand -hex 32`."
        return routing, [Check("routing", "red", f"no key for pseudonyms, by rule {', '.join(nameless)}", fix)]
    found = f"{len(routing.rules)} rules, {len(routing.destinations)} destinations, {len(routing.sources)} sources"
    return routing, [Check("routing", "green", found)]


def peers_of(routing: Routing) -> list[DicomwebPeer]:
    """Every DICOMweb server of the routing file."""
    ways = [peer for item in routing.destinations.values() for peer in (item.stow, item.qido) if peer]
    return [*routing.sources.values(), *ways]


def check_disk(settings: Settings) -> list[Check]:
    """Room and leave to write, where data are kept and where uploads lie."""
    temporary = settings.temporary_dir or Path(tempfile.gettempdir())
    upload_bytes = settings.max_upload_bytes + settings.max_inflated_bytes
    return [
        _disk("disk: data", settings.data_dir, "TAGS_DATA_DIR", settings.min_free_bytes, 2 * settings.min_free_bytes),
        _disk("disk: uploads", temporary, "TAGS_TEMPORARY_DIR", settings.max_upload_bytes, upload_bytes),
    ]


def _disk(name: str, directory: Path, setting: str, least_bytes: int, enough_bytes: int) -> Check:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fix = f"Give this user leave to write in the directory of {setting}, on a disk that works."
        return Check(name, "red", f"it cannot be written: {error.strerror}", fix)
    free_bytes = shutil.disk_usage(directory).free
    found = f"{free_bytes / GIB:.1f} GiB are free"
    if free_bytes < least_bytes:
        fix = f"Free or add space for {setting}: {least_bytes / GIB:.1f} GiB must be free, below that data are refused."
        return Check(name, "red", found, fix)
    if free_bytes < enough_bytes:
        fix = f"Add space for {setting} soon: {enough_bytes / GIB:.1f} GiB would do."
        return Check(name, "amber", found, fix)
    return Check(name, "green", found)


def clock_offset_s(response: httpx.Response) -> float | None:
    """Seconds by which the clock of whoever answered is ahead of ours; None where the answer has no date."""
    dated = response.headers.get("date")
    return email.utils.parsedate_to_datetime(dated).timestamp() - time.time() if dated else None


def check_clock(offsets_s: Mapping[str, float], now: float | None = None) -> list[Check]:
    """Args: offsets_s: seconds by which each other machine's clock is ahead of ours."""
    if (time.time() if now is None else now) < BUILT_AT:
        return [Check("clock", "red", "this machine's clock was never set", "Set it, and let NTP keep it (chrony).")]
    if not offsets_s:
        return [Check("clock", "skipped", "no other machine's clock could be seen")]
    return [_clock(name, offset_s) for name, offset_s in offsets_s.items()]


def _clock(name: str, offset_s: float) -> Check:
    found = f"{abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} this machine"
    fix = "Let NTP keep both clocks (chrony, or the host's time service): tokens, leases and DICOM times go by them."
    state: State = "red" if abs(offset_s) > FAR_OFF_S else "amber" if abs(offset_s) > OFF_S else "green"
    return Check(f"clock: {name}", state, found, fix if state != "green" else "")
