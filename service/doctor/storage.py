"""Database and object store: opened, written, read back. Blocking."""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy.engine import make_url

from service.doctor.check import Check
from service.errors import LedgerRefused
from service.ledger.ledger import Ledger, open_ledger
from service.ledger.objects import ObjectStore, Staging, open_store
from service.settings import Settings

FIX_DATABASE = (
    "Start the database, or correct TAGS_DATABASE_URL: host, port, name, user, password; this machine must reach it."
)
FIX_SCHEMA = "Run the version of the service that made this database, or give TAGS_DATABASE_URL an empty one."
FIX_STORE = "Correct TAGS_OBJECT_STORE_URL and its credentials; this user must be able to write, read and remove there."
CONTENT = b"tags doctor" * 1000


@dataclass(frozen=True, eq=False)
class Opened:
    """The ledger, where it could be opened, and by how much its clock is ahead of ours, where that is another's."""

    ledger: Ledger | None
    checks: tuple[Check, ...]
    clock_offset_s: float | None = None


def open_database(settings: Settings) -> Opened:
    """The ledger's database; the caller closes the ledger."""
    url = _plain(settings.database_url)
    where = f"{make_url(url).get_backend_name()} at {make_url(url).host or 'a local socket'}" if url else "SQLite"
    try:
        ledger = open_ledger(
            settings.data_dir,
            database_url=url,
            object_store_url="memory://doctor",  # the real store is examined by itself
            lease_s=settings.job_lease_s,
        )
    except LedgerRefused as error:
        fix = FIX_SCHEMA if "schema" in error.detail else FIX_DATABASE
        return Opened(None, (Check("database", "red", error.detail, fix),))
    with ledger.database.reading() as connection:
        offset_s = ledger.database.now(connection) - time.time() if url else None
    dead = sum(count for (_, state, _), count in ledger.jobs.counts().items() if state == "dead")
    checks = [Check("database", "green", f"{where} answers")]
    if dead:
        fix = "Look at them at /jobs?state=dead, mend the cause, then POST /jobs/{id}/replay."
        checks.append(Check("jobs", "amber", f"{dead} jobs wait for a person", fix))
    return Opened(ledger, tuple(checks), offset_s)


def _plain(secret: str | SecretStr) -> str:
    return secret.get_secret_value() if isinstance(secret, SecretStr) else secret


def check_store(settings: Settings) -> list[Check]:
    """One object there and back. Raises: StorageFull, LedgerUnavailable."""
    store = open_store(settings.object_store_url or str(settings.data_dir.resolve() / "objects"))
    staging = Staging(settings.data_dir / "staging")
    _there_and_back(store, staging)
    free_bytes = store.free_bytes()
    if free_bytes is not None and free_bytes < settings.min_free_bytes:
        fix = "Free or add space where objects are kept, or lower TAGS_MIN_FREE_BYTES: nothing is received now."
        return [Check("object store", "red", f"{free_bytes} bytes are free, {settings.min_free_bytes} must be", fix)]
    return [Check("object store", "green", "an object was written, read back and removed")]


def _there_and_back(store: ObjectStore, staging: Staging) -> None:
    directory, key = staging.directory(), f"doctor/{uuid4()}"
    try:
        staged = directory / "object"
        staged.write_bytes(CONTENT)
        store.put([(staged, key)])
        with store.open(key) as stream:
            if stream.read() != CONTENT:
                raise OSError(0, "other bytes came back than were written")
        store.remove(key)
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
