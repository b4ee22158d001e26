"""The certificates that are trusted, and what is wrong with one that is not."""

from __future__ import annotations

import ssl
from functools import cache

import certifi

__all__ = ["load_trusted_certificates", "name_tls_failure"]

# https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID, _EXPIRED = 9, 10
_WRONG_NAMES = frozenset({62, 63, 64})
# What OpenSSL reports when the other side speaks plain HTTP.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL"})


@cache
def load_trusted_certificates() -> ssl.SSLContext:
    """Load the machine's certificates (SSL_CERT_FILE counts) and those of certifi.

    Raises:
        OSError: SSL_CERT_FILE names a file that contains no certificates.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def name_tls_failure(error: BaseException) -> str | None:
    """Name the reason why no TLS connection was made; None when the error is not about TLS."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = getattr(cause, "certificate_error", None) or getattr(cause, "os_error", None) or cause.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _WRONG_NAMES:
            return "CertificateOfAnotherHost"
        return {_EXPIRED: "CertificateExpired", _NOT_YET_VALID: "CertificateNotYetValid"}.get(cause.verify_code)
    if cause is not None and (cause.reason or "") in _NOT_TLS:
        return "NoTls"
    return None
