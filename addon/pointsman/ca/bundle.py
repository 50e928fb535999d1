"""What an application is given so that it trusts our authority, and still everyone else's.

The directory is for the application's container: it holds certificates alone, readable by all.
"""

import contextlib
import re
import ssl
import warnings
from collections.abc import Iterator, Mapping
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
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Attributes:
        roots: the file that the system's roots are from.
        count: how many certificates the bundle holds, ours included.
    """

    directory: Path
    roots: Path
    count: int


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
    certificates = {**_certificates(source, _read(source)), **dict(_decoded(ours))}
    pem = b"".join(block + b"\n" for block in certificates.values())
    try:
        _make(directory)
        replace_file(directory / OURS, ours, 0o644)
        replace_file(directory / BUNDLE, pem, 0o644)
        replace_file(directory / JAVA, _java_trust_store(certificates), 0o644)
    except OSError as error:
        raise AuthorityError(
            f"{directory}: can't be written ({error.strerror}); choose another directory with --out"
        ) from None
    return Bundle(directory, source, len(certificates))


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


def _certificates(path: Path, pem: bytes) -> Mapping[bytes, bytes]:
    """Return each certificate by its bytes; keys and comments stay behind."""
    found = dict(_decoded(pem))
    if not found:
        raise AuthorityError(f"{path}: there is no certificate in it (PEM, BEGIN CERTIFICATE)")
    return found


def _decoded(pem: bytes) -> Iterator[tuple[bytes, bytes]]:
    for block in _PEM.findall(pem):
        with contextlib.suppress(ValueError):
            yield ssl.PEM_cert_to_DER_cert(block.decode("ascii")), block


def _java_trust_store(certificates: Mapping[bytes, bytes]) -> bytes:
    entries = []
    for number, der in enumerate(certificates):
        # Some of the oldest roots break rules that cryptography warns of or insists on.
        with contextlib.suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            certificate = x509.load_der_x509_certificate(der)
            entries.append(pkcs12.PKCS12Certificate(certificate, f"root-{number}".encode()))
    encryption = PrivateFormat.PKCS12.encryption_builder().build(JAVA_PASSWORD.encode())
    return pkcs12.serialize_java_truststore(entries, encryption)
