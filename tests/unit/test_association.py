"""The upper layer byte by byte, over a socket pair: what PS3.8 allows is served, anything else is aborted."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from service.dimse.association import ABORT_PDU, RELEASE_RP_PDU, Association, Entity
from service.dimse.command import (
    C_ECHO,
    C_STORE,
    DATA_SET_TYPE,
    FIELD,
    HEADER,
    MESSAGE_ID,
    STATUS,
    Command,
    read_command,
)
from service.dimse.scp import contexts

VERIFICATION, CT = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.70"


@dataclass
class Notes:
    """Implements Service and Sink: keeps what comes."""

    content: bytearray = field(default_factory=bytearray)
    syntaxes: list[str] = field(default_factory=list)
    abandoned: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def begin(self, association: Association, command: Command, transfer_syntax_uid: str) -> Notes:
        self.syntaxes.append(transfer_syntax_uid)
        return self

    def perform(self, association: Association, command: Command) -> int:
        return 0x0000 if command.number(FIELD) == C_ECHO else 0x0211

    def ended(self, association: Association) -> None:
        self.over.set()

    def write(self, fragment: memoryview, /) -> None:
        self.content += fragment

    def finish(self) -> int:
        return 0xB000

    def abandon(self) -> None:
        self.abandoned += 1


@dataclass
class Peer:
    """The other end."""

    connection: socket.socket
    notes: Notes
    association: Association

    def associate(self, *, called: str = "TAGS", calling: str = "CT1") -> bytes:
        """Contexts 1 for C-ECHO and 3 for CT. Returns: the answer."""
        self.connection.sendall(request(called, calling))
        return self.pdu()

    def pdu(self) -> bytes:
        """b"" once the connection is closed."""
        header = self.exactly(6)
        return header + self.exactly(int.from_bytes(header[2:6], "big")) if header else b""

    def exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size and (block := self.connection.recv(size - len(content))):
            content += block
        return content

    def answer(self) -> Command:
        """Of a P-DATA-TF with one command."""
        return read_command(self.pdu()[12:])


def request(called: str, calling: str) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    proposed = [build_context(VERIFICATION, IMPLICIT), build_context(CT, [JPEG, IMPLICIT])]
    for number, context in enumerate(proposed):
        context.context_id = 1 + 2 * number
    primitive.presentation_context_definition_list = proposed
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16382, "1.2.3"
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def command(kind: int, *, with_data: bool) -> bytes:
    values = {FIELD: kind, MESSAGE_ID: 7, DATA_SET_TYPE: 1 if with_data else 0x0101}
    return b"".join(HEADER.pack(0, element, 2) + struct.pack("<H", value) for element, value in sorted(values.items()))


def value(context: int, control: int, content: bytes) -> bytes:
    return struct.pack(">IBB", len(content) + 2, context, control) + content


def p_data(*values: bytes) -> bytes:
    content = b"".join(values)
    return struct.pack(">BBI", 4, 0, len(content)) + content


@pytest.fixture
def is_full() -> list[bool]:
    return [False]


@pytest.fixture
def peer(is_full: list[bool]) -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(30)
    entity, notes = Entity("TAGS", ("CT1",), contexts(), 5.0), Notes()
    association = Association(ours, "127.0.0.1", entity, notes, is_one_too_many=lambda: is_full[0])
    thread = threading.Thread(target=association.run)
    thread.start()
    with theirs:
        yield Peer(theirs, notes, association)
    thread.join(30)
    assert notes.over.is_set()


def test_an_echo_is_answered_and_a_release_too(peer):
    accepted = A_ASSOCIATE_AC()
    accepted.decode(peer.associate())
    assert [item.result for item in accepted.presentation_context] == [0, 0]
    assert peer.association.requestor.ae_title == "CT1"
    peer.connection.sendall(p_data(value(1, 3, command(C_ECHO, with_data=False))))
    answer = peer.answer()
    assert (answer.number(FIELD), answer.number(STATUS)) == (0x8030, 0)
    peer.connection.sendall(struct.pack(">BBII", 5, 0, 4, 0))
    assert peer.pdu() == RELEASE_RP_PDU
    assert peer.pdu() == b""


def test_fragments_may_be_cut_and_gathered_in_any_way(peer):
    peer.associate()
    content, data = command(C_STORE, with_data=True), bytes(range(256)) * 3000
    peer.connection.sendall(p_data(value(3, 1, content[:7])))
    peer.connection.sendall(p_data(value(3, 3, content[7:]), value(3, 0, data[:5])))
    peer.connection.sendall(p_data(value(3, 0, data[5:700_000])) + p_data(value(3, 2, data[700_000:])))
    answer = peer.answer()
    assert (answer.number(FIELD), answer.number(STATUS), answer.number(0x0120)) == (0x8001, 0xB000, 7)
    assert peer.notes.content == data
    assert peer.notes.syntaxes == [JPEG]  # the first that was proposed: the sender's own


@pytest.mark.parametrize(("called", "calling", "reason"), [("OTHER", "CT1", 7), ("TAGS", "STRANGER", 3)])
def test_another_name_is_rejected_for_good(peer, called, calling, reason):
    assert peer.associate(called=called, calling=calling)[6:] == bytes([0, 1, 1, reason])
    assert peer.pdu() == b""


def test_one_association_too_many_is_rejected_for_now(peer, is_full):
    is_full[0] = True
    assert peer.associate()[6:] == bytes([0, 2, 3, 2])


BROKEN = {
    "another protocol": b"GET / HTTP/1.1\r\nHost: tags\r\n\r\n",
    "data before the association": p_data(value(1, 3, command(C_ECHO, with_data=False))),
    "an endless request": struct.pack(">BBI", 1, 0, 2**31),
    "a request of noise": struct.pack(">BBI", 1, 0, 200) + b"\xff" * 200,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_request_is_aborted(peer, content):
    peer.connection.sendall(content)
    assert peer.pdu() == ABORT_PDU


BROKEN_DATA = {
    "a context that was not accepted": p_data(value(5, 3, command(C_ECHO, with_data=False))),
    "data without a command": p_data(value(3, 2, b"1234")),
    "a value longer than its PDU": struct.pack(">BBI", 4, 0, 6) + struct.pack(">IBB", 500, 1, 3),
    "a value without a header": struct.pack(">BBI", 4, 0, 6) + struct.pack(">IBB", 1, 1, 3),
    "an endless command": p_data(value(1, 1, bytes(60_000))) + p_data(value(1, 1, bytes(60_000))),
    "a broken command": p_data(value(1, 3, b"12345")),
    "an unknown PDU": struct.pack(">BBI", 9, 0, 4) + bytes(4),
}


@pytest.mark.parametrize("content", BROKEN_DATA.values(), ids=BROKEN_DATA)
def test_what_breaks_the_protocol_is_aborted(peer, content):
    peer.associate()
    peer.connection.sendall(content)
    assert peer.pdu() == ABORT_PDU


def test_an_object_whose_rest_never_comes_is_abandoned(peer):
    peer.associate()
    peer.connection.sendall(p_data(value(3, 3, command(C_STORE, with_data=True)), value(3, 0, b"1234")))
    peer.connection.close()
    assert peer.notes.over.wait(30)
    assert peer.notes.abandoned == 1


def test_it_can_be_stopped_from_outside(peer):
    peer.associate()
    peer.association.stop()
    assert peer.pdu() == ABORT_PDU
    assert peer.pdu() == b""
