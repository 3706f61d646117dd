"""TLS: the certificate that the service shows, and whom the command line trusts."""

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from index.errors import GaussearchError
from service.files import contents_of
from service.settings import ServiceSettings

__all__ = ["TlsError", "client_context", "context_factory", "server_context"]


CERTIFICATE, KEY = "--tls-certificate", "--tls-key"


class TlsError(GaussearchError):
    """A certificate or a private key that cannot be used."""

    code = "bad_tls_file"


def context_factory(settings: ServiceSettings) -> Callable[..., ssl.SSLContext] | None:
    """What uvicorn makes its context with, in this process or in a worker; None without a certificate.

    Raises what `server_context` raises, so that what is wrong is said before anything is listened on.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    files = (settings.tls_certificate, settings.tls_key, settings.tls_key_password)
    server_context(*files)
    return partial(_for_uvicorn, *files)


def _for_uvicorn(certificate: Path, key: Path, password: SecretStr | None, *_: Any) -> ssl.SSLContext:
    return server_context(certificate, key, password)


def server_context(certificate: Path, key: Path, password: SecretStr | None = None) -> ssl.SSLContext:
    """A context that shows the certificate and speaks TLS 1.2 or newer.

    Raises TlsError naming the file that cannot be read, or is not what it should be.
    """
    for path, option in ((certificate, CERTIFICATE), (key, KEY)):
        # OpenSSL says that there is no such file, and not which.
        contents_of(path, option, TlsError)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Python's default, but a system's OpenSSL may be set up to allow less.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that asks for a new handshake again and again would cost more than it spends.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(certificate, key, password.get_secret_value() if password else "")
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(_what_is_wrong(certificate, key, error)) from error
    return context


def client_context(authorities: Path) -> ssl.SSLContext:
    """A context that trusts the certificates of a file, and no others.

    Raises TlsError for a file that cannot be read or is without a certificate.
    """
    _require_certificate(authorities, "--ca")
    return ssl.create_default_context(cafile=authorities)


def _what_is_wrong(certificate: Path, key: Path, error: Exception) -> str:
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return f"{KEY}: {key} is not the private key of {certificate}"
    try:
        _require_certificate(certificate, CERTIFICATE)
    except TlsError as without:
        return str(without)
    return f"{KEY}: {key} is not a private key in PEM, or tls_key_password is not its password: {error}"


def _require_certificate(path: Path, option: str) -> None:
    # PEM is ASCII, and what stands between certificates may be anything.
    text = contents_of(path, option, TlsError).decode("ascii", "ignore")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"{option}: {path} holds no certificate in PEM: {error}") from error
