"""Bearer tokens of one OIDC issuer: JWTs, checked here against the issuer's published keys (OIDC Discovery, RFC 7517).

What enters: a token. What leaves: a `Caller`, once signature, issuer, audience, expiry and subject are right. Only the
configured issuer is ever called. Algorithms are the asymmetric ones that fit the key; `none` and shared secrets are
never accepted (RFC 8725). Runs on the event loop; a lock keeps it to one fetch at a time. The only place with PyJWT.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from service.access.caller import Caller, roles_named
from service.errors import AuthenticationUnavailable, Unauthenticated
from service.settings import Settings
from service.tls import client_context

# By key type and curve; a symmetric key ("oct") has none: who could check a token could make one.
ALGORITHMS = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
LEEWAY_S = 30.0  # between two clocks
FRESH_S = 300.0  # keys are fetched again after so long
STALE_S = 3600.0  # an issuer that is down may be so for an hour before tokens are no longer accepted
REFETCH_S = 10.0  # at most one fetch in so long, however many tokens name unknown keys
FETCH_TIMEOUT_S = 5.0
MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_TOKEN_CHARACTERS = 16 * 1024


class IssuerUnusable(Exception):
    """No key can be had from the issuer. `detail` says why, `fix` what to do; both are safe text."""

    def __init__(self, detail: str, fix: str = "") -> None:
        super().__init__(detail)
        self.detail, self.fix = detail, fix


@dataclass(frozen=True)
class _Key:
    key: Any
    algorithms: tuple[str, ...]


class Issuer:
    """One issuer. `close` it when done."""

    def __init__(
        self, issuer: str, *, audience: str, roles_claim: str, jwks_url: str = "", ca_file: Path | None = None
    ) -> None:
        """Args: roles_claim: with dots between nested names, such as `realm_access.roles`. jwks_url: found by discovery
        when empty, and then on the issuer's own host."""
        self._issuer, self._audience, self._roles_claim, self._jwks_url = issuer, audience, roles_claim, jwks_url
        self._client = httpx.AsyncClient(
            timeout=FETCH_TIMEOUT_S,
            verify=client_context(ca_file=ca_file),
            trust_env=False,  # a proxy of the environment would be another server than the configured one
            follow_redirects=False,
        )
        self._lock = asyncio.Lock()
        self._keys: dict[str, _Key] = {}
        self._fetched_at = self._tried_at = -STALE_S

    @classmethod
    def of(cls, settings: Settings) -> Issuer:
        """The one of TAGS_OIDC_ISSUER."""
        return cls(
            settings.oidc_issuer,
            audience=settings.oidc_audience,
            roles_claim=settings.oidc_roles_claim,
            jwks_url=settings.oidc_jwks_url,
            ca_file=settings.oidc_ca_file,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def published(self) -> int:
        """How many keys it publishes now that tokens may be signed with. Raises: IssuerUnusable."""
        return len(await self._published())

    async def caller(self, token: str) -> Caller:
        """Raises: Unauthenticated; AuthenticationUnavailable: the issuer's keys cannot be had."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise Unauthenticated("the token is too long")
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
        except jwt.PyJWTError as error:
            raise Unauthenticated("this is neither a token nor an API key") from error
        key = await self._key(str(key_id))
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(key.algorithms),
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(_reason(error)) from error
        return Caller(
            str(claims["sub"])[:128],
            roles_named(_nested(claims, self._roles_claim)),
            "token",
            alias=str(claims.get("preferred_username", ""))[:128],
            expires_at=float(claims["exp"]) + LEEWAY_S,
        )

    async def _key(self, key_id: str) -> _Key:
        """The key that a token names; a token that names none fits an issuer with one key."""
        if (known := self._known(key_id)) is None or time.monotonic() - self._fetched_at > FRESH_S:
            async with self._lock:  # others with a known key do not wait here while keys are fresh
                if time.monotonic() - self._tried_at > REFETCH_S:
                    self._tried_at = time.monotonic()
                    await self._fetch()
            known = self._known(key_id)
        if time.monotonic() - self._fetched_at > STALE_S:
            raise AuthenticationUnavailable("the token issuer does not answer")
        if known is None:
            raise Unauthenticated("the token is signed with a key that the issuer does not publish")
        return known

    def _known(self, key_id: str) -> _Key | None:
        if key_id == "" and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def _fetch(self) -> None:
        """Replace the keys; leave them as they are when the issuer does not answer as it should."""
        with suppress(IssuerUnusable):
            self._keys, self._fetched_at = await self._published(), time.monotonic()

    async def _published(self) -> dict[str, _Key]:
        """At least one key, by its id. Raises: IssuerUnusable."""
        try:
            address = self._jwks_url or self._same_host((await self._document(self._discovery))["jwks_uri"])
            listed = (await self._document(address))["keys"]
            keys = {str(item.get("kid", "")): key for item in listed if (key := _usable(item))}
        except httpx.HTTPStatusError as error:
            raise IssuerUnusable(f"it answers {error.response.status_code}") from error
        except httpx.HTTPError as error:
            raise IssuerUnusable(f"it cannot be reached: {type(error).__name__}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IssuerUnusable("its discovery document or its key set is not as it should be") from error
        if not keys:
            raise IssuerUnusable(
                "it publishes no key that can be used", "Let it sign with RSA, EC or Ed25519 keys and publish them."
            )
        return keys

    @property
    def _discovery(self) -> str:
        return f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"

    def _same_host(self, address: str) -> str:
        """Raises: IssuerUnusable: the discovery document leads elsewhere."""
        if urlsplit(address)[:2] != urlsplit(self._issuer)[:2]:
            raise IssuerUnusable("its keys are on another host", "Name that place in TAGS_OIDC_JWKS_URL.")
        return address

    async def _document(self, address: str) -> dict[str, Any]:
        async with self._client.stream("GET", address) as response:
            response.raise_for_status()
            content = b""
            async for block in response.aiter_bytes():
                content += block
                if len(content) > MAX_DOCUMENT_BYTES:
                    raise ValueError("the document is too long")
        document = httpx.Response(200, content=content).json()
        if not isinstance(document, dict):
            raise ValueError("this is no document of an issuer")
        if document.get("issuer", self._issuer) != self._issuer:
            raise IssuerUnusable(
                "its discovery document names another issuer", "Write it exactly as it is named there."
            )
        return document


def _usable(item: dict[str, Any]) -> _Key | None:
    """A published key for signatures, with the algorithms that it may be used with."""
    algorithms = ALGORITHMS.get((str(item.get("kty")), item.get("crv")), ())
    if "alg" in item:
        algorithms = tuple(name for name in algorithms if name == item["alg"])
    if not algorithms or item.get("use", "sig") != "sig":
        return None
    try:
        return _Key(jwt.PyJWK(item, algorithm=algorithms[0]).key, algorithms)
    except jwt.PyJWTError:
        return None


def _nested(claims: dict[str, Any], path: str) -> object:
    """A claim by its path. A name that holds dots itself, such as an address, is looked up whole first."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


_REASONS: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is of another issuer"),
    (jwt.MissingRequiredClaimError, "the token lacks exp, iss, aud or sub"),
    (jwt.InvalidAlgorithmError, "the token is signed by an algorithm that is not accepted"),
    (jwt.InvalidSignatureError, "the token's signature is not valid"),
)


def _reason(error: jwt.PyJWTError) -> str:
    """Fixed texts: the library's own quote the token."""
    return next((text for kind, text in _REASONS if isinstance(error, kind)), "the token is not valid")
