"""The certificates that are trusted, and what is wrong with one that is not."""

from __future__ import annotations

import ssl

import certifi

__all__ = ["load_trusted_certificates", "name_tls_failure"]

# https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID, _EXPIRED = 9, 10
_WRONG_NAMES = frozenset({62, 63, 64})
# What OpenSSL reports when the other side speaks plain HTTP.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL"})


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
    # aiohttp's own classes inherit from those of `ssl`, but only the error inside them has the details.
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    code = getattr(cause, "verify_code", None)
    if isinstance(cause, ssl.SSLCertVerificationError) and code is not None:
        if code in _WRONG_NAMES:
            return "CertificateOfAnotherHost"
        return {_EXPIRED: "CertificateExpired", _NOT_YET_VALID: "CertificateNotYetValid"}.get(code)
    return "NoTls" if isinstance(cause, ssl.SSLError) and getattr(cause, "reason", None) in _NOT_TLS else None
