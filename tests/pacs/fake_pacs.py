"""A DICOMweb destination that remembers what it was sent, and can be made to fail in every way."""

from __future__ import annotations

import io
import json
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from pydicom import dcmread

Mode = Literal["good", "drops", "refuses", "breaks", "silent"]


class FakePacs:
    """`held` counts what it has by SOP Instance UID, `posts` how often each was sent to it whole."""

    def __init__(self) -> None:
        self.mode: Mode = "good"
        self.posts: Counter[str] = Counter()
        self.held: dict[str, bytes] = {}
        self.queries = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._scheme = "http"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/dicom-web"

    def secure(self, context: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "https"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def store(self, parts: list[bytes]) -> dict[str, object]:
        stored = []
        for part in parts:
            uid = str(dcmread(io.BytesIO(part), stop_before_pixels=True).SOPInstanceUID)
            with self.lock:
                self.posts[uid] += 1
                if self.mode == "good":
                    self.held[uid] = part
            stored.append({"00081155": {"vr": "UI", "Value": [uid]}})
        return {"00081199": {"vr": "SQ", "Value": stored}, "00081198": {"vr": "SQ"}}


@contextmanager
def fake_pacs() -> Iterator[FakePacs]:
    pacs = FakePacs()
    try:
        yield pacs
    finally:
        pacs.close()


def _handler(pacs: FakePacs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with pacs.lock:
                pacs.queries += 1
            if pacs.mode == "breaks":
                return self._answer(503, [])
            address = urlsplit(self.path)
            if "SOPInstanceUID" not in parse_qs(address.query):  # studies are none, and nothing is given back
                return self._answer(404 if "/studies/" in address.path else 200, [])
            (uid,) = parse_qs(address.query)["SOPInstanceUID"]
            with pacs.lock:
                there = uid in pacs.held
            return self._answer(200, [{"00080018": {"vr": "UI", "Value": [uid]}}] if there else [])

        def do_POST(self) -> None:
            body = self._chunks()
            if body is None:
                return  # the sender died in mid-body
            boundary = self.headers["Content-Type"].rpartition("boundary=")[2].encode()
            parts = [part.partition(b"\r\n\r\n")[2][:-2] for part in body.split(b"--" + boundary)[1:-1]]
            if pacs.mode == "refuses":
                self._answer(409, {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0x0122]}}]}})
            elif pacs.mode == "breaks":
                self._answer(503, {})
            else:
                self._answer(200, pacs.store(parts))

        def _chunks(self) -> bytes | None:
            body = b""
            while size := int(self.rfile.readline() or b"-1", 16):
                if size < 0:
                    return None
                chunk = self.rfile.read(size)
                if len(chunk) < size:
                    return None
                body += chunk
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, document: object) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
