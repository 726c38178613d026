"""TLS as BCP 195 (RFC 9325) recommends it, for HTTP, DIMSE and syslog, on either side.

TLS 1.2 and 1.3; with 1.2 only suites with forward secrecy and authenticated encryption (RFC 9325 4.2), no compression,
no renegotiation. Source: PS3.15 Annex B, the BCP 195 TLS Secure Transport Connection Profiles, which take both parties'
certificates. What enters: files in PEM. What leaves: an `ssl.SSLContext`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from service.settings import Settings

SUITES_1_2 = "ECDHE+AESGCM"


class TlsInvalid(ValueError):
    """The certificate files cannot be used; the text says which."""


def server_context(
    certificate_file: Path, key_file: Path | None, *, key_password: str = "", client_ca_file: Path | None = None
) -> ssl.SSLContext:
    """Args: client_ca_file: then each client must show a certificate of these authorities. Raises: TlsInvalid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _strengthen(context)
    _load(context, certificate_file, key_file, key_password)
    if client_ca_file:
        _trust(context, client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def own_context(settings: Settings, *, client_ca_file: Path | None) -> ssl.SSLContext:
    """With the certificate that this service shows, on whichever port. Raises: TlsInvalid; the settings name one."""
    assert settings.tls_certificate_file is not None
    password = settings.tls_key_password.get_secret_value()
    return server_context(
        settings.tls_certificate_file, settings.tls_key_file, key_password=password, client_ca_file=client_ca_file
    )


def client_context(
    *,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
    key_password: str = "",
) -> ssl.SSLContext:
    """The server's certificate and name are always checked. Args: ca_file: trusted instead of the system's authorities;
    certificate_file: shown to servers that ask for one. Raises: TlsInvalid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    _strengthen(context)
    if ca_file:
        _trust(context, ca_file)
    else:
        context.load_default_certs()
    if certificate_file:
        _load(context, certificate_file, key_file, key_password)
    return context


def _strengthen(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(SUITES_1_2)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE


def _load(context: ssl.SSLContext, certificate_file: Path, key_file: Path | None, password: str) -> None:
    try:
        # An empty answer makes an encrypted key without password an error; no answer would ask at the terminal.
        context.load_cert_chain(certificate_file, key_file, password=lambda: password)
    except (OSError, ValueError) as error:
        raise TlsInvalid("the certificate or its key cannot be read, or they do not belong together") from error


def _trust(context: ssl.SSLContext, ca_file: Path) -> None:
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise TlsInvalid("the file of trusted certificates cannot be read") from error
