"""From an Authorization header to a caller: an API key by its prefix, any other bearer value as the issuer's token."""

from __future__ import annotations

import time

from service.access.caller import ALL_ROLES, ANYONE, Caller
from service.access.issuer import Issuer
from service.access.keys import PREFIX, KeyFile
from service.access.listening import has_authentication
from service.errors import AuthenticationUnavailable, Unauthenticated
from service.settings import Settings

MAX_NAME_CHARACTERS = 128


class Authenticator:
    """Built from settings; `close` it when done."""

    def __init__(self, settings: Settings) -> None:
        """Raises: KeysInvalid."""
        self.is_open = not has_authentication(settings)  # listening on loopback only: `check_listening` sees to it
        self._by_proxy = settings.authenticated_by_proxy
        self._keys = KeyFile(settings.api_keys_file) if settings.api_keys_file else None
        self._issuer = Issuer.of(settings) if settings.oidc_issuer else None

    async def close(self) -> None:
        if self._issuer:
            await self._issuer.close()

    async def caller(self, authorization: str | None, forwarded_user: str | None = None) -> Caller:
        """Raises: Unauthenticated, AuthenticationUnavailable."""
        if self._by_proxy:
            return Caller(_safe_name(forwarded_user) or "proxy", ALL_ROLES, "proxy")
        if self.is_open:
            return ANYONE
        scheme, _, credential = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not credential.strip():
            raise Unauthenticated("send `Authorization: Bearer` with a token or an API key")
        return await self._proved(credential.strip())

    async def still_valid(self, caller: Caller, authorization: str | None) -> bool:
        """Whether a long answer, such as events, may go on: the token has not expired, the key is still listed."""
        if caller.expires_at is not None and caller.expires_at <= time.time():
            return False
        if caller.how != "key":
            return True
        try:
            return await self.caller(authorization) == caller
        except (Unauthenticated, AuthenticationUnavailable):
            return False

    async def _proved(self, credential: str) -> Caller:
        if credential.startswith(PREFIX):
            found = self._keys.caller(credential, time.time()) if self._keys else None
            if found is None:
                raise Unauthenticated("the API key is unknown, or over")
            return found
        if self._issuer is None:
            raise Unauthenticated("only API keys are accepted here")
        return await self._issuer.caller(credential)


def _safe_name(name: str | None) -> str:
    """A proxy's name for its user, without what could break a line or a document."""
    return "".join(character for character in name or "" if character.isprintable())[:MAX_NAME_CHARACTERS]
