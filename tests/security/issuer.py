"""A token issuer of the test's own: discovery and keys over HTTP, tokens signed by the same library that real ones use.

It can rotate its keys, publish wrong documents and fall silent.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "tags"


class TokenIssuer:
    """`requests` counts what was asked of it, by path."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.requests: list[str] = []
        self.silent = False
        self.discovered: dict[str, Any] = {}  # put over the discovery document
        self.extra_keys: list[dict[str, Any]] = []
        self.rotate("first")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/realm"

    def rotate(self, key_id: str) -> None:
        """Sign with a new key, and publish only that."""
        self.keys = {key_id: rsa.generate_private_key(public_exponent=65537, key_size=2048)}

    def add_elliptic(self, key_id: str) -> None:
        self.keys[key_id] = ec.generate_private_key(ec.SECP256R1())

    def token(self, *roles: str, key_id: str = "", algorithm: str = "RS256", key: Any = None, **claims: Any) -> str:
        """A token as it should be, but for what `claims` changes; a claim that is None is left out."""
        key_id = key_id or next(iter(self.keys))
        now = int(time.time())
        document = {
            "iss": self.url, "aud": AUDIENCE, "sub": "9f1c", "iat": now, "exp": now + 300, "roles": list(roles),
        } | claims  # fmt: skip
        document = {name: value for name, value in document.items() if value is not None}
        signing = self.keys[key_id] if key is None else key
        return jwt.encode(document, signing, algorithm=algorithm, headers={"kid": key_id})

    def document(self, path: str) -> dict[str, Any]:
        if path.endswith("/openid-configuration"):
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.discovered
        return {"keys": [*(_jwk(name, key) for name, key in self.keys.items()), *self.extra_keys]}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def token_issuer() -> Iterator[TokenIssuer]:
    issuer = TokenIssuer()
    try:
        yield issuer
    finally:
        issuer.close()


def _jwk(key_id: str, key: Any) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": key_id, "use": "sig"}


def _handler(issuer: TokenIssuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append(self.path)
            content = json.dumps(issuer.document(self.path)).encode()
            self.send_response(503 if issuer.silent else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
