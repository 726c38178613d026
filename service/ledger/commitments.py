"""Storage commitments asked for and answered. The answer may come to another process than the one that asked."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update

from service.ledger.database import Database
from service.ledger.tables import commitment


class Commitments:
    """Blocking; threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(self, transaction_uid: str, job_id: str) -> None:
        with self._database.writing() as connection:
            row = {"transaction_uid": transaction_uid, "job_id": job_id, "failed": None}
            self._database.insert_new(connection, commitment, [row])

    def answer(self, transaction_uid: str, failed: Sequence[str]) -> None:
        """One that nobody asked for is passed over."""
        with self._database.writing() as connection:
            this = commitment.c.transaction_uid == transaction_uid
            connection.execute(update(commitment).where(this).values(failed="\\".join(failed)))

    def failed(self, transaction_uid: str) -> tuple[str, ...] | None:
        """SOP Instance UIDs that were not taken over; None while there is no answer."""
        with self._database.reading() as connection:
            found = select(commitment.c.failed).where(commitment.c.transaction_uid == transaction_uid)
            answer = connection.execute(found).scalar()
        return None if answer is None else tuple(uid for uid in answer.split("\\") if uid)
