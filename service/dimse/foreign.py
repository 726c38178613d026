"""What pynetdicom is told before its first use in a process."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress

from pynetdicom import _config
from pynetdicom.transport import AssociationSocket


def prepare_pynetdicom() -> None:
    """Any number of times. It logs data sets, and nothing of it may reach a log (decision 5); it checks UIDs that a
    sender has chosen long ago; and of a connection that the peer has reset, 3.0.4 leaves the descriptor open."""
    _config.ENFORCE_UID_CONFORMANCE = False
    logger = logging.getLogger("pynetdicom")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    AssociationSocket._shutdown_socket = _shut_down_and_close  # type: ignore[assignment, method-assign]


def _shut_down_and_close(connection: AssociationSocket) -> None:
    """Its own leaves out `close` where `shutdown` fails."""
    if (held := connection.socket) is None:
        return
    with suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        held.close()
