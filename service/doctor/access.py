"""Tokens and keys: whether strangers are kept out, the issuer's keys can be had, our own key is let in, and how long.

What the service does is asked of the service, through whatever stands before it; why, and until when, is read here from
the same issuer and key file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from service.access.authenticator import Authenticator
from service.access.caller import Caller
from service.access.issuer import Issuer, IssuerUnusable
from service.access.keys import KeysInvalid
from service.access.listening import is_loopback
from service.doctor.check import Check
from service.doctor.ingress import FIX_REACH
from service.errors import AccessRefused
from service.settings import Settings
from service.watchdog import own_client, own_url

SOON_DAYS = 21
DAY_S = 86400.0
NEW_KEY = "`tags key new probe --role segment --role read` makes one, and its line for TAGS_API_KEYS_FILE."
FIX_OPEN = "Let the service ask for tokens or keys, or let the proxy before it do so: anyone who reaches it may use it."
FIX_KEY = f"Set TAGS_PROBE_KEY to a key or token with the roles segment and read: {NEW_KEY}"
FIX_ROLES = "Grant the roles at the issuer (TAGS_OIDC_ROLES_CLAIM says where they are looked for) or in the key's line."
FIX_OVER = f"Renew the token or key of TAGS_PROBE_KEY, and start what uses it again. A key may last: {NEW_KEY}"
FIX_KEYS_FILE = "Correct TAGS_API_KEYS_FILE; until then no API key is accepted."
FIX_ISSUER = "Correct TAGS_OIDC_ISSUER and TAGS_OIDC_CA_FILE; this machine must reach the issuer."
NEEDED = (("read", "GET", "/jobs"), ("segment", "POST", "/segment"))  # a POST without a body is refused, but let in


@dataclass(frozen=True)
class Probe:
    """What TAGS_PROBE_KEY is: whose, where that can be told here, or why it is not accepted."""

    caller: Caller | None = None
    refusal: str = ""

    @property
    def days_left(self) -> float | None:
        if self.caller is None or self.caller.expires_at is None:
            return None
        return (self.caller.expires_at - time.time()) / DAY_S


async def check_issuer(settings: Settings) -> list[Check]:
    """Whether the issuer's keys can be had from here."""
    name = "access: issuer"
    if not settings.oidc_issuer:
        return [Check(name, "skipped", "TAGS_OIDC_ISSUER is not set")]
    issuer = Issuer.of(settings)
    try:
        count = await issuer.published()
    except IssuerUnusable as error:
        return [Check(name, "red", error.detail, error.fix or FIX_ISSUER)]
    finally:
        await issuer.close()
    return [Check(name, "green", f"it is reached, and publishes {count} keys that can be used")]


async def check_access(settings: Settings) -> list[Check]:
    """As a stranger, and with TAGS_PROBE_KEY. Raises: httpx.HTTPError."""
    probe = await _probe(settings)
    if isinstance(probe, Check):
        return [probe]
    async with own_client(settings) as client:
        stranger = await client.get("/jobs", params={"limit": "1"}, headers={"Authorization": ""})
        answers = {role: (await client.request(method, path)).status_code for role, method, path in NEEDED}
    return [_strangers(settings, stranger.status_code), _own_key(settings, answers, probe), _expiry(probe)]


async def _probe(settings: Settings) -> Probe | Check:
    """As the gateway would see it."""
    try:
        authenticator = Authenticator(settings)
    except KeysInvalid as error:
        return Check("access: key file", "red", str(error), FIX_KEYS_FILE)
    try:
        return Probe(await authenticator.caller(f"Bearer {settings.probe_key.get_secret_value()}"))
    except AccessRefused as error:
        return Probe(refusal=error.detail)
    finally:
        await authenticator.close()


def _strangers(settings: Settings, status: int) -> Check:
    name = "access: strangers"
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Check(name, "green", f"they are refused with {status}")
    if settings.oidc_issuer or settings.api_keys_file:
        return Check(name, "red", f"they are answered {status}, though tokens are set up", FIX_OPEN)
    if is_loopback(urlsplit(own_url(settings)).hostname or ""):
        return Check(name, "skipped", "no tokens are set up; only this machine reaches it")
    return Check(name, "red", f"anyone is answered {status}", FIX_OPEN)


def _own_key(settings: Settings, answers: dict[str, int], probe: Probe) -> Check:
    name, statuses = "access: own key", set(answers.values())
    if httpx.codes.UNAUTHORIZED in statuses:
        if not settings.probe_key.get_secret_value():
            return Check(name, "red", "TAGS_PROBE_KEY is not set, and the service asks for one", FIX_KEY)
        over = probe.refusal.endswith(("expired", "over"))
        return Check(name, "red", f"it is refused: {probe.refusal or '401'}", FIX_OVER if over else FIX_KEY)
    if missing := [role for role, status in answers.items() if status == httpx.codes.FORBIDDEN]:
        return Check(name, "red", f"it is let in, but lacks the role {' and '.join(missing)}", FIX_ROLES)
    worst = max(statuses)  # a POST without a body is a client's error
    if answers["read"] != httpx.codes.OK or worst >= httpx.codes.INTERNAL_SERVER_ERROR:
        return Check(name, "red", f"the API answers {worst}", FIX_ISSUER if settings.oidc_issuer else FIX_REACH)
    return Check(name, "green", "it is let in, with the roles segment and read")


def _expiry(probe: Probe) -> Check:
    name = "access: expiry"
    if probe.days_left is None:
        return Check(name, "skipped", "no end of TAGS_PROBE_KEY can be seen from here")
    found = f"TAGS_PROBE_KEY is good for {probe.days_left:.1f} days more"
    if probe.days_left < SOON_DAYS:
        return Check(name, "amber", f"{found}; then watchdog and doctor are refused", FIX_OVER)
    return Check(name, "green", found)
