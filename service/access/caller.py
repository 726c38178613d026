"""Who asks: a name, how it was proved, and the roles that were granted. No role includes another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Role(StrEnum):
    """What may be granted."""

    SEGMENT = "segment"  # POST /segment, and the jobs that come of one's own requests
    PUSH = "push"  # STOW-RS, and the notice that a study is complete
    READ = "read"  # what is held: QIDO-RS, WADO-RS, jobs, the ledger
    ADMIN = "admin"  # replay and cancel jobs of others


ALL_ROLES = frozenset(Role)


@dataclass(frozen=True)
class Caller:
    """One who asks. `name` is a key's name or a token's subject; `alias` what people call them, if known."""

    name: str
    roles: frozenset[Role]
    how: Literal["open", "proxy", "key", "token"]
    alias: str = ""
    expires_at: float | None = None  # seconds since the epoch

    @property
    def identity(self) -> str:
        """Tells a key from a token's subject of the same name."""
        return f"{self.how}:{self.name}"


ANYONE = Caller("anyone", ALL_ROLES, "open")


def roles_named(names: object) -> frozenset[Role]:
    """The roles among a claim's or a file's names; others mean something elsewhere. Takes a list or a spaced text."""
    listed = names.split() if isinstance(names, str) else names if isinstance(names, list) else []
    return frozenset(Role(name) for name in listed if isinstance(name, str) and name in set(Role))
