"""Whom connections to providers trust, by files that may change while the proxy runs.

It imports no mitmproxy: a `Trust` is what mitmproxy's options say. What `upstream_tls` does for the
connections of layers, `ssl_context` does for those of copies.
"""

import ssl
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import certifi

from pointsman.config.calls import certificate_fault
from pointsman.config.files import fingerprint
from pointsman.config.table import TlsSettings


@dataclass(frozen=True, slots=True)
class Trust:
    """mitmproxy's options for TLS to servers: what a provider's own settings leave open.

    `client_certs` is a PEM file with a certificate of ours, or a folder with one for each name.
    """

    verify: bool = True
    ca_file: str | None = None
    ca_folder: str | None = None
    client_certs: str | None = None

    def client_certificate(self, name: str) -> str | None:
        """Return the file with our certificate for a server's name, as mitmproxy finds it."""
        if not self.client_certs:
            return None
        given = Path(self.client_certs).expanduser()
        file = given if given.is_file() else given / f"{name}.pem"
        return str(file) if file.is_file() else None


def ssl_context(settings: TlsSettings, trust: Trust, name: str) -> ssl.SSLContext:
    """Return what a connection to a server of this name needs.

    Raises:
        OSError: a file is gone, or nothing in it can be used.
    """
    own = settings.ca_file
    folder = None if own else trust.ca_folder
    file = own or trust.ca_file or (None if folder else certifi.where())
    verify = settings.verify and (trust.verify or own is not None)
    certificate = trust.client_certificate(name)
    return _ssl_context(file, folder, certificate, verify, as_of(file, certificate))


def as_of(*files: str | None) -> object:
    """Return a value that changes when one of these files does; it never raises."""
    return tuple(file and fingerprint(Path(file)) for file in files)


@lru_cache(maxsize=64)
def _ssl_context(
    file: str | None,
    folder: str | None,
    certificate: str | None,
    verify: bool,  # noqa: FBT001 (a part of the key)
    _as_of: object,
) -> ssl.SSLContext:
    # `create_default_context` would be stricter than mitmproxy with an authority of one's own.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        if file and (fault := certificate_fault(file)):
            raise OSError(fault)
        context.load_verify_locations(file, folder)
    if certificate:
        context.load_cert_chain(certificate)
    return context
