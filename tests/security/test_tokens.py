"""Bearer tokens of a real issuer over HTTP: good ones, and every way in which one can be bad."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.access import issuer as issuer_module
from tests.component.gateway import RunningGateway, running, slug
from tests.fakes.engine import FakeEngine
from tests.security.issuer import AUDIENCE, TokenIssuer, token_issuer

EVERYWHERE = "0.0.0.0"  # noqa: S104  (no test listens there)


@pytest.fixture
def issuer() -> Iterator[TokenIssuer]:
    with token_issuer() as started:
        yield started


@pytest.fixture
async def gateway(issuer: TokenIssuer, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(
        FakeEngine(), tmp_path, worker=False, host=EVERYWHERE, oidc_issuer=issuer.url, oidc_audience=AUDIENCE
    ) as started:
        yield started


async def ask(gateway: RunningGateway, token: str | None, path: str = "/jobs"):
    return await gateway.client.get(path, headers={"Authorization": f"Bearer {token}"} if token is not None else {})


def spliced(token: str, **claims: object) -> str:
    """Other claims under the same signature."""
    header, body, signature = token.split(".")
    document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))) | claims
    changed = base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()
    return f"{header}.{changed}.{signature}"


def unsigned(token: str) -> str:
    return jwt.encode(jwt.decode(token, options={"verify_signature": False}), None, algorithm="none")


def signed_with_the_public_key(issuer: TokenIssuer, key_id: str) -> str:
    """RS256 turned into HS256 with the published key as the secret: the classic confusion."""
    public = issuer.keys[key_id].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    algorithm = jwt.get_algorithm_by_name("HS256")
    header, body, _ = issuer.token("read").split(".")
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": key_id}).encode()).rstrip(b"=").decode()
    signature = base64.urlsafe_b64encode(algorithm.sign(f"{header}.{body}".encode(), public)).rstrip(b"=").decode()
    return f"{header}.{body}.{signature}"


async def test_a_token_of_the_issuer_for_this_audience_is_let_in(gateway, issuer):
    assert (await ask(gateway, issuer.token("read"))).status_code == 200
    assert (await ask(gateway, issuer.token("read", aud=["other", AUDIENCE]))).status_code == 200
    assert issuer.requests.count("/realm/keys") == 1  # and its keys are kept


async def test_a_missing_token_is_refused_before_a_body_is_read(gateway):
    def body():
        raise AssertionError("the body was read")
        yield b""

    answer = await gateway.client.post("/segment", content=body_of(body))
    assert (answer.status_code, slug(answer), answer.headers["www-authenticate"]) == (401, "unauthenticated", "Bearer")


async def body_of(make):
    for block in make():
        yield block


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic dGFnczp0YWdz", "Bearer a.b.c", "Bearer tags_x"])
async def test_a_header_that_is_no_token_is_refused(gateway, value):
    answer = await gateway.client.get("/jobs", headers={"Authorization": value})
    assert (answer.status_code, slug(answer)) == (401, "unauthenticated")


async def refused(gateway: RunningGateway, token: str, *, because: str) -> None:
    answer = await ask(gateway, token)
    assert (answer.status_code, slug(answer)) == (401, "unauthenticated")
    assert because in answer.json()["detail"]
    assert token not in answer.text + gateway.log_text


async def test_an_expired_token_is_refused(gateway, issuer):
    await refused(gateway, issuer.token("read", exp=int(time.time()) - 60), because="expired")


async def test_a_token_that_is_not_valid_yet_is_refused(gateway, issuer):
    await refused(gateway, issuer.token("read", nbf=int(time.time()) + 600), because="not valid yet")


@pytest.mark.parametrize("audience", ["other", "tags-test", ["other"]])
async def test_a_token_for_another_audience_is_refused(gateway, issuer, audience):
    await refused(gateway, issuer.token("read", aud=audience), because="audience")


async def test_a_token_of_another_issuer_is_refused(gateway, issuer):
    await refused(gateway, issuer.token("read", iss="https://elsewhere.example"), because="issuer")


@pytest.mark.parametrize("claim", ["exp", "iss", "aud", "sub"])
async def test_a_token_that_lacks_a_claim_is_refused(gateway, issuer, claim):
    await refused(gateway, issuer.token("read", **{claim: None}), because="")


async def test_a_token_signed_by_another_key_is_refused(gateway, issuer):
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    await refused(gateway, issuer.token("read", key=other), because="signature")


async def test_a_tampered_token_is_refused(gateway, issuer):
    await refused(gateway, spliced(issuer.token("read"), roles=["admin", "read"]), because="signature")
    good = issuer.token("read")
    await refused(gateway, good[:-8] + ("A" * 8 if not good.endswith("A" * 8) else "B" * 8), because="")


async def test_a_token_without_signature_is_refused(gateway, issuer):
    await refused(gateway, unsigned(issuer.token("read")), because="algorithm")


async def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(gateway, issuer):
    await refused(gateway, signed_with_the_public_key(issuer, "first"), because="algorithm")


async def test_a_symmetric_key_that_is_published_by_mistake_is_not_used(gateway, issuer):
    secret = "s" * 64
    issuer.extra_keys = [{"kty": "oct", "kid": "shared", "k": base64.urlsafe_b64encode(secret.encode()).decode()}]
    issuer.keys["shared"] = issuer.keys["first"]
    token = issuer.token("read", key_id="shared", key=secret, algorithm="HS256")
    del issuer.keys["shared"]
    await refused(gateway, token, because="does not publish")


async def test_an_overlong_token_is_refused(gateway):
    await refused(gateway, "a" * 20_000, because="too long")


async def test_elliptic_keys_are_accepted(gateway, issuer):
    issuer.add_elliptic("curve")
    assert (await ask(gateway, issuer.token("read", key_id="curve", algorithm="ES256"))).status_code == 200


async def test_keys_that_are_rotated_are_fetched_again_but_not_at_each_strange_token(gateway, issuer, monkeypatch):
    assert (await ask(gateway, issuer.token("read"))).status_code == 200
    old = issuer.token("read")
    issuer.rotate("second")
    for _ in range(5):  # within REFETCH_S nothing is fetched
        await refused(gateway, issuer.token("read"), because="does not publish")
    assert issuer.requests.count("/realm/keys") == 1
    monkeypatch.setattr(issuer_module, "REFETCH_S", 0.0)
    assert (await ask(gateway, issuer.token("read"))).status_code == 200
    await refused(gateway, old, because="does not publish")


async def test_an_issuer_that_is_down_stops_new_callers_with_503_and_spares_known_keys(gateway, issuer, monkeypatch):
    monkeypatch.setattr(issuer_module, "REFETCH_S", 0.0)
    issuer.silent = True
    answer = await ask(gateway, issuer.token("read"))
    assert (answer.status_code, slug(answer)) == (503, "authentication-unavailable")
    issuer.silent = False
    assert (await ask(gateway, issuer.token("read"))).status_code == 200
    issuer.silent = True
    monkeypatch.setattr(issuer_module, "FRESH_S", 0.0)
    assert (await ask(gateway, issuer.token("read"))).status_code == 200
    monkeypatch.setattr(issuer_module, "STALE_S", 0.0)
    assert (await ask(gateway, issuer.token("read"))).status_code == 503


async def test_discovery_that_leads_to_another_host_is_not_followed(gateway, issuer):
    with token_issuer() as elsewhere:
        issuer.discovered = {"jwks_uri": f"{elsewhere.url}/keys"}
        assert (await ask(gateway, issuer.token("read"))).status_code == 503
        assert elsewhere.requests == []


async def test_discovery_of_another_issuer_is_not_believed(gateway, issuer):
    issuer.discovered = {"issuer": "https://elsewhere.example"}
    assert (await ask(gateway, issuer.token("read"))).status_code == 503


@pytest.mark.parametrize(
    ("claim", "claims"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["read", "offline_access"]}}),
        ("https://example.org/roles", {"https://example.org/roles": ["read"]}),
        ("scope", {"scope": "openid read"}),
    ],
)
async def test_roles_are_found_where_the_issuer_puts_them(issuer, tmp_path, claim, claims):
    async with running(
        FakeEngine(), tmp_path, worker=False, oidc_issuer=issuer.url, oidc_audience=AUDIENCE, oidc_roles_claim=claim
    ) as gateway:
        assert (await ask(gateway, issuer.token(roles=None, **claims))).status_code == 200
        assert (await ask(gateway, issuer.token("read"))).status_code == 403
