"""`tags doctor` on tokens and keys: a gateway on a socket that checks them, an issuer of the test's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from demo.running import free_port
from service.access.caller import Role
from service.access.keys import key_line, new_key
from service.doctor.access import check_access, check_issuer
from service.doctor.check import Check
from service.doctor.examination import examine
from service.settings import Settings
from tests.pacs.live import live_gateway
from tests.security.issuer import AUDIENCE, TokenIssuer, token_issuer

DAY_S = 86400
PROBE = frozenset({Role.SEGMENT, Role.READ})


@pytest.fixture
def issuer() -> Iterator[TokenIssuer]:
    with token_issuer() as started:
        yield started


@pytest.fixture
def doctor(issuer: TokenIssuer, tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """The settings of a doctor, by its probe key, for a gateway that takes tokens and keys."""
    keys = tmp_path / "keys"
    keys.write_text("")
    access = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE, "api_keys_file": keys}
    with live_gateway(tmp_path / "data", worker=False, **access) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        yield lambda key="", **more: Settings(
            data_dir=tmp_path / "doctor", port=port, probe_key=SecretStr(key), **(access | more)
        )


async def found(settings: Settings) -> dict[str, Check]:
    return {check.name.removeprefix("access: "): check for check in await check_access(settings)}


def in_days(days: float) -> int:
    return int(time.time() + days * DAY_S)


async def test_a_token_with_its_roles_is_green_and_strangers_are_refused(issuer, doctor):
    settings = doctor(issuer.token("segment", "read", exp=in_days(30)))
    checks = await found(settings)
    assert {name: check.state for name, check in checks.items()} == dict.fromkeys(
        ("strangers", "own key", "expiry"), "green"
    )
    assert "401" in checks["strangers"].found
    (issued,) = await check_issuer(settings)
    assert (issued.state, issued.found) == ("green", "it is reached, and publishes 1 keys that can be used")


async def test_without_a_key_the_advice_is_to_make_one(doctor):
    checks = await found(doctor())
    assert checks["own key"].state == "red"
    assert "TAGS_PROBE_KEY" in checks["own key"].fix
    assert "tags key new" in checks["own key"].fix
    assert checks["strangers"].state == "green"


@pytest.mark.parametrize(
    ("claims", "reason", "advice"),
    [
        ({"exp": 1_000_000_000}, "the token has expired", "Renew"),
        ({"aud": "another"}, "the token is for another audience", "Set TAGS_PROBE_KEY"),
    ],
)
async def test_a_token_that_is_refused_is_told_with_its_reason(issuer, doctor, claims, reason, advice):
    own_key = (await found(doctor(issuer.token("segment", "read", **claims))))["own key"]
    assert (own_key.state, own_key.found) == ("red", f"it is refused: {reason}")
    assert own_key.fix.startswith(advice)


@pytest.mark.parametrize(
    ("granted", "lacking"), [("read", "segment"), ("segment", "read"), ("push", "read and segment")]
)
async def test_a_role_that_is_missing_is_named(issuer, doctor, granted, lacking):
    own_key = (await found(doctor(issuer.token(granted, exp=in_days(30)))))["own key"]
    assert (own_key.state, own_key.found) == ("red", f"it is let in, but lacks the role {lacking}")
    assert "Grant the roles" in own_key.fix


async def test_a_token_and_a_key_that_end_soon_are_amber(issuer, doctor, tmp_path):
    expiry = (await found(doctor(issuer.token("segment", "read"))))["expiry"]
    assert expiry.state == "amber"
    assert "Renew" in expiry.fix
    today = datetime.now(UTC).date()
    for days, state in ((5, "amber"), (90, "green"), (-1, "over")):
        key = listed(tmp_path / "keys", today + timedelta(days=days))
        checks = await found(doctor(key))
        if state == "over":
            assert checks["own key"].found == "it is refused: the API key is unknown, or over"
            assert "Renew" in checks["own key"].fix
        else:
            assert (checks["own key"].state, checks["expiry"].state) == ("green", state)


def listed(keys: Path, last_day: date) -> str:
    key = new_key()
    keys.write_text(key_line("probe", PROBE, key, last_day) + "\n")
    return key


async def test_a_key_file_that_does_not_parse_is_red(doctor, tmp_path):
    (tmp_path / "keys").write_text("probe\n")
    check = (await found(doctor("tags_x")))["key file"]
    assert check.state == "red"
    assert "line 1" in check.found
    assert "TAGS_API_KEYS_FILE" in check.fix


async def test_each_fault_of_an_issuer_has_its_own_advice(issuer, doctor):
    async def told(**settings: object) -> tuple[str, str, str]:
        (check,) = await check_issuer(doctor(**settings))
        return check.state, check.found, check.fix

    gone = f"http://127.0.0.1:{free_port()}/realm"
    assert await told(oidc_issuer=gone) == (
        "red", "it cannot be reached: ConnectError",
        "Correct TAGS_OIDC_ISSUER and TAGS_OIDC_CA_FILE; this machine must reach the issuer.",
    )  # fmt: skip
    issuer.discovered = {"jwks_uri": "http://127.0.0.2:1/keys"}
    assert "TAGS_OIDC_JWKS_URL" in (await told())[2]
    issuer.discovered = {"issuer": f"{issuer.url}/"}
    assert "exactly as it is named" in (await told())[2]
    issuer.discovered = {}
    issuer.keys = {}
    assert (await told())[1] == "it publishes no key that can be used"
    issuer.silent = True
    assert (await told())[:2] == ("red", "it answers 503")


async def test_a_service_that_lets_strangers_in_is_red(issuer, tmp_path):
    """The doctor's settings ask for tokens; what answers at the address does not."""
    with live_gateway(tmp_path / "data", worker=False) as gateway:
        settings = Settings(
            data_dir=tmp_path / "doctor", port=int(gateway.url.rpartition(":")[2]), oidc_issuer=issuer.url,
            oidc_audience=AUDIENCE, probe_key=SecretStr(issuer.token("segment", "read", exp=in_days(30))),
        )  # fmt: skip
        strangers = (await found(settings))["strangers"]
    assert strangers.state == "red"
    assert "anyone who reaches it" in strangers.fix


async def test_the_issuer_is_looked_at_even_where_the_service_is_down(issuer, tmp_path):
    issuer.silent = True
    settings = Settings(
        data_dir=tmp_path / "doctor", port=free_port(), oidc_issuer=issuer.url, oidc_audience=AUDIENCE,
        min_free_bytes=0, max_inflated_bytes=1,
    )  # fmt: skip
    checks = {check.name: check for check in (await examine(settings, on_check=lambda _: None)).checks}
    assert checks["access: issuer"].state == checks["service"].state == "red"
