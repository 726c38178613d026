"""Where the service may listen: on loopback as it likes, elsewhere only if callers prove who they are.

Checked before anything is opened. A refusal is one line that names the settings to choose from.
"""

from __future__ import annotations

from ipaddress import ip_address

from service.settings import Settings

SHORTEST_KEY = 32  # characters: what is shorter could be tried through


class ListeningRefused(ValueError):
    """The settings would open the service to others without authentication. The text says what to set."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def has_authentication(settings: Settings) -> bool:
    """Whether callers over HTTP prove who they are, here or at a proxy."""
    return bool(settings.oidc_issuer or settings.api_keys_file or settings.authenticated_by_proxy)


def check_listening(settings: Settings) -> None:
    """Raises: ListeningRefused."""
    _check_consistent(settings)
    if is_loopback(settings.host):
        return
    if not has_authentication(settings):
        raise ListeningRefused(
            f"TAGS_HOST={settings.host} can be reached by others, and callers are not checked: set TAGS_OIDC_ISSUER or "
            "TAGS_API_KEYS_FILE, listen on 127.0.0.1, or say TAGS_AUTHENTICATED_BY_PROXY=true where a proxy does it"
        )
    known_nodes = settings.dimse_tls and settings.dimse_tls_client_ca_file
    if settings.dimse_port is not None and not known_nodes and not settings.dimse_trusted_network:
        raise ListeningRefused(
            f"TAGS_DIMSE_PORT on TAGS_HOST={settings.host} can be reached by others: set TAGS_DIMSE_TLS=true and "
            "TAGS_DIMSE_TLS_CLIENT_CA_FILE, or say TAGS_DIMSE_TRUSTED_NETWORK=true where only known nodes reach it"
        )


def _check_consistent(settings: Settings) -> None:
    if (settings.oidc_issuer == "") != (settings.oidc_audience == ""):
        raise ListeningRefused("TAGS_OIDC_ISSUER and TAGS_OIDC_AUDIENCE belong together: set both or neither")
    if settings.authenticated_by_proxy and (settings.oidc_issuer or settings.api_keys_file):
        raise ListeningRefused("TAGS_AUTHENTICATED_BY_PROXY means that nothing is checked here: set no issuer or keys")
    if settings.audit_required and not (settings.audit_file or settings.audit_syslog):
        raise ListeningRefused("TAGS_AUDIT_REQUIRED needs TAGS_AUDIT_FILE or TAGS_AUDIT_SYSLOG")
    key = settings.deidentification_key.get_secret_value()
    if settings.deidentify_requests and not key:
        raise ListeningRefused("TAGS_DEIDENTIFY_REQUESTS needs TAGS_DEIDENTIFICATION_KEY")
    if key and len(key) < SHORTEST_KEY:
        raise ListeningRefused(f"TAGS_DEIDENTIFICATION_KEY has fewer than {SHORTEST_KEY} characters")
    if settings.tls_certificate_file is None and (settings.tls_client_ca_file or settings.dimse_tls):
        raise ListeningRefused("TAGS_TLS_CLIENT_CA_FILE and TAGS_DIMSE_TLS need TAGS_TLS_CERTIFICATE_FILE")
    if settings.dimse_tls_client_ca_file and not settings.dimse_tls:
        raise ListeningRefused("TAGS_DIMSE_TLS_CLIENT_CA_FILE needs TAGS_DIMSE_TLS=true")
