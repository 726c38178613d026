"""One database behind SQLAlchemy: SQLite in a file, or PostgreSQL when several replicas share it.

What enters: a URL. What leaves: short transactions. A writing one takes SQLite's write lock at its start (`BEGIN
IMMEDIATE`), so that it never fails half-way for another writer's sake; a commit is on the disk when it returns. Driver
errors become LedgerUnavailable or StorageFull here and nowhere else.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import LedgerUnavailable, StorageFull
from service.ledger.tables import SCHEMA_VERSION, metadata, schema

BUSY_TIMEOUT_MS = 30_000  # another process's write transaction takes milliseconds; a stalled disk may take seconds
FULL = ("database or disk is full", "no space left on device", "could not extend file")
SCHEMA_LOCK = 0x7A65  # PostgreSQL advisory lock, any fixed number


class Database:
    """Threads may share it. `close` it when done."""

    def __init__(self, url: str) -> None:
        """Raises: LedgerUnavailable: unreachable, or made by another version of the service."""
        self._is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._engine = _sqlite(url) if self._is_sqlite else create_engine(url, pool_pre_ping=True, pool_size=10)
        try:
            self._prepare()
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view. Raises: LedgerUnavailable."""
        with _translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable once the block has ended. Raises: LedgerUnavailable, StorageFull."""
        with (
            _translated(),
            self._engine.connect() as connection,
            connection.execution_options(tags_writes=True).begin(),
        ):
            yield connection

    def now(self, connection: Connection) -> float:
        """Seconds since the epoch by one clock for all replicas."""
        if self._is_sqlite:
            return time.time()
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def insert_new(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert the rows that collide with no unique constraint; leave the others as they are."""
        if rows:
            statement: Any = (sqlite.insert if self._is_sqlite else postgresql.insert)(table)
            connection.execute(statement.on_conflict_do_nothing(), list(rows))

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self) -> None:
        with self.writing() as connection:
            if not self._is_sqlite:  # two replicas that start at once would both create
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})
            metadata.create_all(connection)
            version = connection.execute(select(schema.c.version)).scalar()
            if version is None:
                connection.execute(insert(schema).values(version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise LedgerUnavailable(
                    f"the database has schema {version}, this version of the service needs {SCHEMA_VERSION}"
                )


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL loses the last commits at a power cut
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # deleted rows hold patient data: they are overwritten

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("tags_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        if any(phrase in str(error).lower() for phrase in FULL):
            raise StorageFull("the disk of the database is full") from error
        raise LedgerUnavailable("the database does not answer; nothing was recorded") from error
    except SQLAlchemyError as error:
        raise LedgerUnavailable("the database could not be used") from error


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
