"""TLS settings of a target: certificate authorities and a client certificate."""

from __future__ import annotations

import os
import ssl

import msgspec

# OpenSSL's error codes for certificate chains without a known authority.
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})


class TlsFileInvalid(ValueError):
    """A file of a TLS setting is invalid or unreadable. The message names the setting and the file."""


class TlsFiles(msgspec.Struct, frozen=True):
    """Paths of PEM files.

    Attributes:
        ca: the certificate authorities to trust, instead of the system's.
        client_cert: the certificate to present, with its chain.
        client_key: its private key; None if the certificate file contains it.
    """

    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None


def tls_context(files: TlsFiles = TlsFiles()) -> ssl.SSLContext:  # noqa: B008 - frozen
    """Create an SSL context for clients. Without `ca`, it trusts the system's authorities, or those of SSL_CERT_FILE.

    Raises TlsFileInvalid.
    """
    try:
        context = ssl.create_default_context(cafile=files.ca)
    except (OSError, ssl.SSLError) as error:
        raise TlsFileInvalid(f"ca: {files.ca}: {_reason(error)}") from None
    if files.client_cert is not None:
        try:
            context.load_cert_chain(files.client_cert, files.client_key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            shown = " with client_key ".join(each for each in (files.client_cert, files.client_key) if each)
            raise TlsFileInvalid(f"client_cert {shown}: {_reason(error)}") from None
    return context


def _no_password() -> str:
    """Password callback for an encrypted key. The default of OpenSSL would prompt on the terminal."""
    raise ValueError("the key is encrypted; store it without a passphrase")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no certificate or key in PEM format, or the two do not match ({error.reason or 'no PEM data'})"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def certificate_problem(error: ssl.SSLCertVerificationError) -> str:
    """The problem of a certificate; for an unknown authority, also the setting that trusts it."""
    said = f"its certificate is not valid: {error.verify_message[:200]}"
    if error.verify_code not in _UNKNOWN_AUTHORITY:
        return said
    file = os.environ.get("SSL_CERT_FILE")
    if file and not os.access(file, os.R_OK):
        return f"{said}; SSL_CERT_FILE names {file[:200]}, which cannot be read"
    return f"{said}; set SSL_CERT_FILE, or `ca` of the provider, to the PEM file of its certificate authority"
