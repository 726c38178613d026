"""Syslog over TLS: messages of RFC 5424 in the frames of RFC 5425, as PS3.15 A.6 asks for audit messages.

RFC 5425 has no answer from the receiver: a message counts as written once the connection has taken it. A connection
that the receiver has closed is noticed before the next message, which then goes over a new one. Blocking; a receiver
that let a time-out pass is left alone for a while, since all work waits for its turn here.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from datetime import datetime

PRIORITY = 10 * 8 + 5  # facility security/authorization, severity notice: <85>
APP_NAME, MESSAGE_ID = "tags", "DICOM+RFC3881"
BOM = b"\xef\xbb\xbf"  # MSG-UTF8
TIMEOUT_S = 10.0
PAUSE_S = 30.0  # after a time-out; messages of that while fail at once


def syslog_message(message: bytes, *, host_name: str, at: datetime) -> bytes:
    """RFC 5424 6: header, no structured data, and the message in UTF-8."""
    stamp = at.isoformat(timespec="milliseconds")
    return f"<{PRIORITY}>1 {stamp} {host_name} {APP_NAME} {os.getpid()} {MESSAGE_ID} - ".encode() + BOM + message


def frame(message: bytes) -> bytes:
    """RFC 5425 4.3: octet counting."""
    return f"{len(message)} ".encode() + message


class SyslogOverTls:
    """A connection that is made when it is needed. One thread at a time."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host, self._port, self._context = host, port, context
        self._host_name = socket.gethostname()
        self._connection: ssl.SSLSocket | None = None
        self._spared_until = 0.0

    def write(self, message: bytes, at: datetime) -> None:
        """Raises: OSError."""
        if time.monotonic() < self._spared_until:
            raise TimeoutError
        framed = frame(syslog_message(message, host_name=self._host_name, at=at))
        if self._connection is not None and _was_closed(self._connection):
            self.close()
        try:
            if self._connection is None:
                plain = socket.create_connection((self._host, self._port), timeout=TIMEOUT_S)
                self._connection = self._context.wrap_socket(plain, server_hostname=self._host)
            self._connection.sendall(framed)
        except OSError as error:
            self.close()
            if isinstance(error, TimeoutError | socket.gaierror):  # a name that cannot be looked up takes as long
                self._spared_until = time.monotonic() + PAUSE_S
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _was_closed(connection: ssl.SSLSocket) -> bool:
    """Whether the receiver has ended the connection. It sends nothing else but, with TLS 1.3, session tickets."""
    readable, _, _ = select.select([connection], [], [], 0)
    if not readable:
        return False
    connection.settimeout(0)
    try:
        return connection.recv(1) == b""
    except ssl.SSLWantReadError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(TIMEOUT_S)
