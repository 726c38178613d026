"""One accepted association, from A-ASSOCIATE-RQ to its end (PS3.8 section 9), in the thread that calls `run`.

What enters: a connected socket. What leaves: messages for a `Service`, whose data sets are written to its sinks as they
come off the wire, so that memory does not grow with an object. pynetdicom encodes and decodes the negotiation; its own
message loop, which polls with two threads per association, is not used (docs/decisions/0012-dimse.md).
"""

from __future__ import annotations

import io
import socket
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_unrestricted

from service.dimse.command import Command, answer_to, read_command

ASSOCIATE_RQ, P_DATA_TF, RELEASE_RQ, ABORT = 0x01, 0x04, 0x05, 0x07  # PDU types; PS3.8 9.3.1
RELEASE_RP_PDU = struct.pack(">BBII", 0x06, 0, 4, 0)
ABORT_PDU = struct.pack(">BBIBBBB", ABORT, 0, 4, 0, 0, 2, 0)  # source: service provider
PDU_HEADER, PDV_HEADER = struct.Struct(">BBI"), struct.Struct(">IBB")
COMMAND_BIT, LAST_BIT = 1, 2  # message control header; PS3.8 Annex E.2
CALLER_UNKNOWN, CALLED_UNKNOWN, TOO_MANY = (1, 1, 3), (1, 1, 7), (2, 3, 2)  # result, source, reason; PS3.8 Table 9-21
MAX_REQUEST_BYTES = 1024 * 1024  # 128 contexts with all transfer syntaxes need a tenth
MAX_COMMAND_BYTES = 64 * 1024
MAX_PDU_BYTES = 0  # any: what is not a command goes on block by block
BLOCK_BYTES = 256 * 1024
DECODING_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, struct.error)


class ProtocolBroken(Exception):
    """The peer sent what PS3.8 does not allow; the association is aborted."""


class Sink(Protocol):
    """Where one message's data set goes."""

    def write(self, fragment: memoryview, /) -> object:
        """It takes everything: a failure is told by the status."""
        ...

    def finish(self) -> int:
        """The whole data set is there. Returns: the status of the answer."""
        ...

    def abandon(self) -> None:
        """The rest never comes."""
        ...


class Service(Protocol):
    """What is done with messages. Called in the association's thread."""

    def begin(self, association: Association, command: Command, transfer_syntax_uid: str) -> Sink:
        """A request that brings a data set."""
        ...

    def perform(self, association: Association, command: Command) -> int:
        """A request without one. Returns: the status."""
        ...

    def ended(self, association: Association) -> None: ...


@dataclass(frozen=True)
class Entity:
    """Who we are, and whom and what we accept. `contexts`: beside all storage SOP classes, which are always accepted.
    `calling_ae_titles`: anyone when it is empty."""

    ae_title: str
    calling_ae_titles: tuple[str, ...]
    contexts: Sequence[PresentationContext]
    idle_s: float


@dataclass(frozen=True)
class Requestor:
    """The peer. `ae_title` is what it calls itself, "" before it has said so."""

    ae_title: str
    address: str


class Association:
    """`run` it in a thread of its own; `stop` it from any other."""

    def __init__(
        self,
        connection: socket.socket,
        address: str,
        entity: Entity,
        service: Service,
        *,
        is_one_too_many: Callable[[], bool],
    ) -> None:
        self.requestor = Requestor("", address)
        self._connection, self._entity, self._service = connection, entity, service
        self._stream: io.BufferedReader = io.BufferedReader(connection.makefile("rb", buffering=0), BLOCK_BYTES)
        self._is_one_too_many = is_one_too_many
        self._transfer_syntaxes: Mapping[int, str] = {}  # of accepted contexts
        self._command_bytes = bytearray()
        self._message: tuple[int, Command, Sink] | None = None  # the one whose data set is arriving
        self._block = memoryview(bytearray(BLOCK_BYTES))

    def run(self) -> None:
        self._connection.settimeout(self._entity.idle_s)
        with suppress(OSError):
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._connection, self._stream:
            try:
                if self._negotiate():
                    self._serve()
            except (ProtocolBroken, TimeoutError):
                with suppress(OSError):
                    self._connection.sendall(ABORT_PDU)
            except (EOFError, OSError):
                pass  # the peer is gone
            finally:
                if self._message:
                    self._message[2].abandon()
                self._service.ended(self)

    def stop(self) -> None:
        """Make `run` end soon, and let the peer know: not over TLS, whose state is the reading thread's."""
        if not isinstance(self._connection, ssl.SSLSocket):
            with suppress(OSError):
                self._connection.sendall(ABORT_PDU)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _negotiate(self) -> bool:
        """Returns: whether it was accepted. Raises: ProtocolBroken, EOFError, OSError."""
        header = self._exactly(PDU_HEADER.size)
        kind, _, length = PDU_HEADER.unpack(header)
        if kind != ASSOCIATE_RQ or length > MAX_REQUEST_BYTES:
            raise ProtocolBroken
        try:
            pdu = A_ASSOCIATE_RQ()
            pdu.decode(header + self._exactly(length))
            request = pdu.to_primitive()
            self.requestor = Requestor(str(request.calling_ae_title).strip(), self.requestor.address)
            answer = self._rejection(request) or self._acceptance(request)
        except DECODING_ERRORS as error:
            raise ProtocolBroken from error
        self._connection.sendall(answer)
        return bool(self._transfer_syntaxes)

    def _rejection(self, request: A_ASSOCIATE) -> bytes | None:
        entity = self._entity
        if str(request.called_ae_title).strip() != entity.ae_title.strip():
            reason = CALLED_UNKNOWN
        elif entity.calling_ae_titles and self.requestor.ae_title not in entity.calling_ae_titles:
            reason = CALLER_UNKNOWN
        elif self._is_one_too_many():
            reason = TOO_MANY
        else:
            return None
        pdu = A_ASSOCIATE_RJ()
        pdu.result, pdu.source, pdu.reason_diagnostic = reason
        return pdu.encode()

    def _acceptance(self, request: A_ASSOCIATE) -> bytes:
        roles: dict[UID, tuple[bool | None, bool | None]] = {
            item.sop_class_uid: (item.scu_role, item.scp_role)
            for item in request.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation) and item.sop_class_uid
        }
        proposed = request.presentation_context_definition_list
        contexts, accepted_roles = negotiate_unrestricted(proposed, list(self._entity.contexts), roles)
        self._transfer_syntaxes = {
            int(context.context_id or 0): str(context.transfer_syntax[0]) for context in contexts if context.result == 0
        }
        answer = A_ASSOCIATE()
        answer.application_context_name = request.application_context_name
        answer.calling_ae_title, answer.called_ae_title = request.calling_ae_title, request.called_ae_title
        answer.result, answer.result_source = 0x00, 0x01
        answer.presentation_context_definition_results_list = contexts
        length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
        length.maximum_length_received = MAX_PDU_BYTES
        implementation.implementation_class_uid = PYNETDICOM_IMPLEMENTATION_UID
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = PYNETDICOM_IMPLEMENTATION_VERSION
        answer.user_information = [length, implementation, version, *accepted_roles]
        pdu = A_ASSOCIATE_AC()
        pdu.from_primitive(answer)
        return pdu.encode()

    def _serve(self) -> None:
        while True:
            kind, _, length = PDU_HEADER.unpack(self._exactly(PDU_HEADER.size))
            if kind == P_DATA_TF:
                self._p_data(length)
            elif kind == RELEASE_RQ:
                self._exactly(4)
                self._connection.sendall(RELEASE_RP_PDU)
                return
            elif kind == ABORT:
                return
            else:
                raise ProtocolBroken

    def _p_data(self, left: int) -> None:
        """Presentation data values; PS3.8 9.3.5. Args: left: bytes of the PDU."""
        while left:
            size, context_id, control = PDV_HEADER.unpack(self._exactly(PDV_HEADER.size))
            size -= 2
            left -= PDV_HEADER.size + size
            if size < 0 or left < 0 or context_id not in self._transfer_syntaxes:
                raise ProtocolBroken
            if control & COMMAND_BIT:
                self._command(context_id, size, is_last=bool(control & LAST_BIT))
            else:
                self._data_set(context_id, size, is_last=bool(control & LAST_BIT))

    def _command(self, context_id: int, size: int, *, is_last: bool) -> None:
        if self._message or len(self._command_bytes) + size > MAX_COMMAND_BYTES:
            raise ProtocolBroken
        self._command_bytes += self._exactly(size)
        if not is_last:
            return
        try:
            command = read_command(bytes(self._command_bytes))
        except ValueError as error:
            raise ProtocolBroken from error
        self._command_bytes.clear()
        if command.has_data_set:
            sink = self._service.begin(self, command, self._transfer_syntaxes[context_id])
            self._message = (context_id, command, sink)
        else:
            self._answer(context_id, command, self._service.perform(self, command))

    def _data_set(self, context_id: int, size: int, *, is_last: bool) -> None:
        if self._message is None or self._message[0] != context_id:
            raise ProtocolBroken
        _, command, sink = self._message
        while size:
            block = self._block[: min(size, BLOCK_BYTES)]
            count = self._stream.readinto(block)
            if not count:
                raise EOFError
            sink.write(block[:count])
            size -= count
        if is_last:
            self._message = None
            self._answer(context_id, command, sink.finish())

    def _answer(self, context_id: int, command: Command, status: int) -> None:
        if command.is_answer or command.is_cancel:
            return
        content = answer_to(command, status)
        size = len(content) + 2
        header = PDU_HEADER.pack(P_DATA_TF, 0, size + 4) + PDV_HEADER.pack(size, context_id, COMMAND_BIT | LAST_BIT)
        self._connection.sendall(header + content)

    def _exactly(self, size: int) -> bytes:
        """Raises: EOFError: the peer closed."""
        content = self._stream.read(size)
        if len(content) < size:
            raise EOFError
        return content
