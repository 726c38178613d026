"""The end of a segmentation job, in one transaction: its results, its deliveries, and that it is done.

A worker that was overtaken writes none of the three. Results are instances like those received, so that QIDO-RS and
WADO-RS answer with them; their UIDs are fixed here, so that a repeated delivery sends the same objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import update

from service.ledger.database import Database
from service.ledger.jobs import Lease, NewJob, enqueue, fence, finish
from service.ledger.objects import ObjectStore
from service.ledger.receiving import Arrival, check_kept, record
from service.ledger.tables import series


def conclude(
    database: Database,
    store: ObjectStore,
    lease: Lease,
    *,
    results: Sequence[Arrival],
    deliveries: Sequence[NewJob],
    output: Mapping[str, Any],
    reason: str = "",
) -> None:
    """Raises: LeaseLost: another worker has the job; nothing was written but objects that nothing names.
    StorageFull, LedgerUnavailable: nothing was written."""
    store.put([(result.staged, result.object_key) for result in results])
    with database.writing() as connection:
        fence(connection, lease)
        check_kept(database, connection, results)
        record(database, connection, results)
        # Our own series are decided at birth: no rule may ever look at them.
        own = series.c.series_instance_uid.in_({result.facts.series_instance_uid for result in results})
        decided = {"decided_revision": series.c.revision, "decision": "refused", "reason": "own-result"}
        connection.execute(update(series).where(own).values(decided))
        enqueue(database, connection, deliveries)
        finish(connection, lease, database.now(connection), reason=reason, output=dict(output))
