"""The ledger as one thing: database, object store, staging, and the tables' own verbs. Opened once per process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.ledger.circuits import Circuits
from service.ledger.commitments import Commitments
from service.ledger.database import Database
from service.ledger.jobs import Jobs
from service.ledger.objects import ObjectStore, Staging, open_store
from service.ledger.receiving import Receiver
from service.ledger.retention import Retention
from service.ledger.series import SeriesTable


@dataclass(frozen=True, eq=False)
class Ledger:
    """Threads may share it; a forked child must open its own."""

    database: Database
    store: ObjectStore
    staging: Staging
    receiver: Receiver
    jobs: Jobs
    series: SeriesTable
    circuits: Circuits
    commitments: Commitments
    retention: Retention

    def close(self) -> None:
        self.receiver.close()
        self.database.close()


def open_ledger(data_dir: Path, *, database_url: str = "", object_store_url: str = "", lease_s: float = 60.0) -> Ledger:
    """Args: data_dir: holds what the two URLs do not say: ledger.db, objects/; always staging/.

    Raises: LedgerUnavailable, StorageFull.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(database_url or f"sqlite:///{data_dir.resolve() / 'ledger.db'}")
    store = open_store(object_store_url or str(data_dir.resolve() / "objects"))
    staging = Staging(data_dir / "staging")
    staging.remove_stale()
    return Ledger(
        database=database,
        store=store,
        staging=staging,
        receiver=Receiver(database, store),
        jobs=Jobs(database, lease_s=lease_s),
        series=SeriesTable(database),
        circuits=Circuits(database),
        commitments=Commitments(database),
        retention=Retention(database, store),
    )
