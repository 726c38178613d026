"""A circuit breaker per destination, in the database, so that all replicas spare one that is down.

After OPENING_FAILURES in a row nothing is tried for a while, longer each time; then deliveries go on, and the first
success closes the circuit. One destination's trouble never holds up another's deliveries.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select, update

from service.ledger.database import Database
from service.ledger.tables import circuit

OPENING_FAILURES = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 600.0


@dataclass(frozen=True)
class CircuitState:
    """`open_for_s` is 0 for a circuit that lets deliveries through."""

    destination: str
    failures: int
    open_for_s: float


class Circuits:
    """Blocking; threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def states(self) -> list[CircuitState]:
        """Of destinations whose last delivery failed."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            rows = connection.execute(select(circuit).order_by(circuit.c.destination)).all()
        return [CircuitState(row.destination, row.failures, max(0.0, row.open_until - now)) for row in rows]

    def open_destinations(self) -> list[str]:
        return [state.destination for state in self.states() if state.open_for_s > 0]

    def note_failure(self, destination: str) -> None:
        with self._database.writing() as connection:
            now = self._database.now(connection)
            self._database.insert_new(
                connection, circuit, [{"destination": destination, "failures": 0, "open_until": 0.0}]
            )
            this = circuit.c.destination == destination
            connection.execute(update(circuit).where(this).values(failures=circuit.c.failures + 1))
            failures = connection.execute(select(circuit.c.failures).where(this)).scalar_one()
            if failures >= OPENING_FAILURES:
                pause_s = min(FIRST_PAUSE_S * 2 ** (failures - OPENING_FAILURES), LONGEST_PAUSE_S)
                connection.execute(update(circuit).where(this).values(open_until=now + pause_s))

    def note_success(self, destination: str) -> None:
        with self._database.writing() as connection:
            connection.execute(delete(circuit).where(circuit.c.destination == destination))
