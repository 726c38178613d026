"""API keys for senders that cannot renew a token, such as a PACS: a file with the hash of each, one a line.

    # name   roles (commas between; - for none)   SHA-256 of the key   last day, if it ends
    pacs     push                                 3f0c...              2027-12-31

A key is 32 random bytes, so that a plain SHA-256 cannot be tried through; a password could. The file is read again when
it changes. One that cannot be read lets no key in: a revocation that does not parse must not leave the key valid.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from service.access.caller import Caller, Role
from service.errors import AuthenticationUnavailable

PREFIX = "tags_"
KEY_BYTES = 32
NO_ROLES = "-"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
HASH = re.compile(r"[0-9a-f]{64}")


class KeysInvalid(ValueError):
    """The key file cannot be used; the text says which line, without its content."""


@dataclass(frozen=True)
class ApiKey:
    """One line of the file. `expires_at`: seconds since the epoch."""

    name: str
    roles: frozenset[Role]
    digest: str  # SHA-256 of the key, hexadecimal
    expires_at: float | None = None


def new_key() -> str:
    """A fresh key. It is shown once and kept nowhere."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def key_line(name: str, roles: frozenset[Role], key: str, last_day: date | None = None) -> str:
    """The line of the file for a key. Raises: KeysInvalid: the name has more than letters, digits, `._-`."""
    if not NAME.fullmatch(name):
        raise KeysInvalid("a key's name has 1 to 64 letters, digits, dots, dashes or underscores")
    listed = ",".join(sorted(roles)) or NO_ROLES
    return " ".join([name, listed, digest_of(key), *([last_day.isoformat()] if last_day else [])])


def read_keys(text: str) -> tuple[ApiKey, ...]:
    """The keys of a file's text. Raises: KeysInvalid."""
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if (content := line.partition("#")[0].strip()) == "":
            continue
        keys.append(_read_line(content.split(), number))
    if len({key.name for key in keys}) != len(keys):
        raise KeysInvalid("two keys have the same name")
    return tuple(keys)


def _read_line(fields: list[str], number: int) -> ApiKey:
    if len(fields) not in (3, 4) or not NAME.fullmatch(fields[0]) or not HASH.fullmatch(fields[2]):
        raise KeysInvalid(f"line {number}: give a name, roles, the SHA-256 of the key and, if it ends, the last day")
    try:
        roles = frozenset(Role(name) for name in fields[1].split(",") if name and fields[1] != NO_ROLES)
    except ValueError as error:
        raise KeysInvalid(f"line {number}: roles are {', '.join(Role)}, with commas between, or -") from error
    return ApiKey(fields[0], roles, fields[2], _end_of(fields[3], number) if len(fields) == 4 else None)


def _end_of(last_day: str, number: int) -> float:
    try:
        following = date.fromisoformat(last_day) + timedelta(days=1)
    except ValueError as error:
        raise KeysInvalid(f"line {number}: the last day is a date such as 2027-12-31") from error
    return datetime.combine(following, time(), UTC).timestamp()


class KeyFile:
    """The keys of a file, as it stands now. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Raises: KeysInvalid: unreadable, or not valid."""
        self._path, self._lock = path, threading.Lock()
        self._stamp = self._look()
        self._keys: tuple[ApiKey, ...] | None = self._read()

    def caller(self, key: str, now: float) -> Caller | None:
        """Whose key it is; None for one that is unknown or over. Raises: AuthenticationUnavailable."""
        digest, found = digest_of(key), None
        for known in self._current():
            if hmac.compare_digest(known.digest, digest):
                found = known
        if found is None or (found.expires_at is not None and found.expires_at <= now):
            return None
        return Caller(found.name, found.roles, "key", expires_at=found.expires_at)

    def _current(self) -> tuple[ApiKey, ...]:
        with self._lock:
            if (stamp := self._look()) != self._stamp:
                self._stamp = stamp
                try:
                    self._keys = self._read()
                except KeysInvalid:
                    self._keys = None
            if self._keys is None:
                raise AuthenticationUnavailable("TAGS_API_KEYS_FILE is not valid; no API key is accepted until it is")
            return self._keys

    def _read(self) -> tuple[ApiKey, ...]:
        try:
            return read_keys(self._path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise KeysInvalid("TAGS_API_KEYS_FILE cannot be read") from error

    def _look(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return (-1, -1, -1)
        return (status.st_mtime_ns, status.st_size, status.st_ino)
