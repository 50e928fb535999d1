"""What an application is given so that it trusts our authority, and still everyone else's.

The directory is for the application's container: it holds certificates alone, readable by all.
"""

import contextlib
import re
import ssl
import warnings
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    PrivateFormat,
    pkcs12,
)

from pointsman.ca.authority import Authority, AuthorityError
from pointsman.ca.store import replace_file

OURS = "pointsman-ca.pem"
BUNDLE = "ca-bundle.pem"
JAVA = "ca-bundle.p12"
# A trust store holds no secret; Java wants a password, and this is the one that it tries first.
JAVA_PASSWORD = "changeit"  # noqa: S105

_USUAL_PLACES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",  # Amazon Linux, older RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS, Alpine
    "/usr/local/share/certs/ca-root-nss.crt",  # FreeBSD
)
# `X509 CERTIFICATE` is its old name; `TRUSTED CERTIFICATE`, OpenSSL's own, says more than that.
_PEM = re.compile(
    rb"-----BEGIN (?P<name>(?:X509 |TRUSTED )?CERTIFICATE)-----"
    rb"(?P<text>[^-]+)-----END (?P=name)-----"
)


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Attributes:
        roots: the file that the system's roots are from.
        count: how many certificates the bundle holds, ours included.
        left_out: how many of the roots' blocks are no certificates that OpenSSL can read.
    """

    directory: Path
    roots: Path
    count: int
    left_out: int


def write_bundle(directory: Path, authority: Authority, roots: Path | None = None) -> Bundle:
    """Write our certificate, a bundle of roots and ours, and the same as a trust store for Java.

    Args:
        directory: made if it is missing; each file is replaced at once.
        authority: ours.
        roots: a PEM file with the roots to trust besides; default: the system's, else certifi's.

    Raises:
        AuthorityError: the roots can't be read, or the directory not written.
    """
    source = roots or system_roots()
    ours = authority.chain_pem()
    # By what is in them: none stands there twice.
    blocks = list(_blocks(_read(source)))
    roots_found = [der for der in blocks if der is not None]
    if not roots_found:
        raise AuthorityError(f"{source}: there is no certificate in it (PEM, BEGIN CERTIFICATE)")
    certificates = dict.fromkeys([*roots_found, *filter(None, _blocks(ours))])
    pem = "".join(ssl.DER_cert_to_PEM_cert(der) for der in certificates).encode()
    try:
        _make(directory)
        replace_file(directory / OURS, ours, 0o644)
        replace_file(directory / BUNDLE, pem, 0o644)
        replace_file(directory / JAVA, _java_trust_store(certificates), 0o644)
    except OSError as error:
        raise AuthorityError(
            f"{directory}: can't be written ({error.strerror}); choose another directory with --out"
        ) from None
    return Bundle(directory, source, len(certificates), blocks.count(None))


def _make(directory: Path) -> None:
    """Make a directory that all may read, whatever the umask: applications have another user."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        path.chmod(0o755)


def system_roots() -> Path:
    """Return the file with the roots that this system trusts; certifi's where it has none."""
    default = ssl.get_default_verify_paths().openssl_cafile
    for place in (*_USUAL_PLACES, default):
        path = Path(place)
        if path.is_file() and path.stat().st_size:
            return path
    return Path(certifi.where())


def variables(directory: str) -> dict[str, str]:
    """Return the environment that makes an application trust the bundle in `directory`.

    The directory is named as the application sees it.
    """
    bundle = f"{directory.rstrip('/')}/{BUNDLE}"
    return {
        "SSL_CERT_FILE": bundle,  # OpenSSL, Python, httpx, Go, Ruby, Rust, .NET on Linux
        "REQUESTS_CA_BUNDLE": bundle,  # Python's requests, botocore
        "CURL_CA_BUNDLE": bundle,
        # Added to the roots that Node.js has built in.
        "NODE_EXTRA_CA_CERTS": f"{directory.rstrip('/')}/{OURS}",
        "GIT_SSL_CAINFO": bundle,
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AuthorityError(f"{path}: can't be read ({error.strerror})") from None


def _blocks(pem: bytes) -> Iterator[bytes | None]:
    """Yield each certificate as DER, and None for each block that is none; keys are no blocks.

    OpenSSL refuses a whole bundle for one block that it can't read, so it is asked here of each.
    """
    for block in _PEM.finditer(pem):
        try:
            der = b64decode(block["text"], validate=False)
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        except (ValueError, ssl.SSLError):
            yield None
        else:
            yield der


def _java_trust_store(certificates: Iterable[bytes]) -> bytes:
    entries = []
    for number, der in enumerate(certificates):
        # Some of the oldest roots break rules that cryptography warns of or insists on.
        with contextlib.suppress(ValueError, x509.InvalidVersion), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            certificate = x509.load_der_x509_certificate(der)
            entries.append(pkcs12.PKCS12Certificate(certificate, f"root-{number}".encode()))
    encryption = PrivateFormat.PKCS12.encryption_builder().build(JAVA_PASSWORD.encode())
    return pkcs12.serialize_java_truststore(entries, encryption)
