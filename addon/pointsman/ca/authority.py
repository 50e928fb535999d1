"""A certificate authority: its key and its certificates, made, read and judged. No files.

What is made passes the strict checks of RFC 5280 (`openssl verify -x509_strict`, Python 3.13): the
basic constraints are critical, key usage and both key identifiers are there.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DEFAULT_DAYS = 3650
_LONGEST_NAME = 64  # bytes, by X.520
_WARN_BEFORE = timedelta(days=30)
# As mitmproxy does, for clients whose clocks are behind.
_BACKDATED = timedelta(days=2)
_LEAST_RSA_BITS = 2048
_STRICT = "strict clients (Python 3.13) refuse the authority"
_FOR_SERVERS = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}

type Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class AuthorityError(Exception):
    """An authority can't be used. The message tells what, where and how to mend it."""


@dataclass(frozen=True, eq=False)
class Authority:
    """A key, and its certificate first of a chain in which each is issued by the next.

    Clients are to trust the whole chain: an intermediate alone is enough for Go, Java and new
    versions of OpenSSL; others need the root.
    """

    key: Key
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate whose key signs."""
        return self.chain[0]

    @property
    def subject(self) -> str:
        """Its name, as people write it."""
        return self.certificate.subject.rfc4514_string()

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate, in hexadecimal."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Authority):
            return NotImplemented
        same_key = self.key.private_numbers() == other.key.private_numbers()
        return same_key and self.chain == other.chain

    def __hash__(self) -> int:
        return hash(self.chain)

    def key_pem(self) -> bytes:
        """Return the private key in PEM (PKCS#8)."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def chain_pem(self) -> bytes:
        """Return the chain in PEM, the authority's own certificate first."""
        return b"".join(one.public_bytes(Encoding.PEM) for one in self.chain)


def generate(*, name: str | None = None, days: int = DEFAULT_DAYS) -> Authority:
    """Make an authority of its own.

    Elliptic: mitmproxy signs each handshake with this very key, and with RSA that costs many times
    as much (`openssl speed rsa2048 ecdsap256`). The default name ends in a part of the key's
    identifier: clients that know two authorities of one name may try the wrong one.

    Raises:
        AuthorityError: the name is too long.
    """
    if name and (size := len(name.encode("utf-8", "replace"))) > _LONGEST_NAME:
        raise AuthorityError(
            f"the name of an authority has at most {_LONGEST_NAME} bytes, and this one has {size};"
            " choose a shorter one (--name)"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    common_name = name or f"Pointsman LLM proxy CA {identifier.digest.hex()[:8]}"
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Pointsman"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    begins = datetime.now(UTC) - _BACKDATED
    certificate = (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(subject)
        .issuer_name(subject)
        .not_valid_before(begins)
        .not_valid_after(begins + _BACKDATED + timedelta(days=days))
        .public_key(key.public_key())
        # It signs servers' certificates, and no authorities.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return Authority(key, (certificate,))


def parse(key_pem: bytes, chain_pem: bytes, root_pem: bytes = b"") -> Authority:
    """Return the authority that PEM texts hold; other blocks in them are skipped.

    The root is added to the chain if that lacks it.

    Raises:
        AuthorityError: they hold no key or no certificate that can be read.
    """
    key, chain = _parse_key(key_pem), _parse_certificates(chain_pem)
    if root_pem.strip() and not _is_issued_by(chain[-1], chain[-1]):
        roots = _parse_certificates(root_pem)
        chain += tuple(root for root in roots if _is_issued_by(chain[-1], root))[:1]
    return Authority(key, chain)


def _parse_key(pem: bytes) -> Key:
    if not re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----", pem):
        raise AuthorityError("there is no private key in it (PEM, BEGIN PRIVATE KEY)")
    try:
        key = load_pem_private_key(pem, None)
    except TypeError:
        raise AuthorityError(
            "the key is encrypted; decrypt it: openssl pkey -in KEY -out DECRYPTED"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise AuthorityError("the key can't be read: it is cut off or damaged") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise AuthorityError(
                f"the key has {key.key_size} bits, which clients refuse; use RSA with"
                f" {_LEAST_RSA_BITS} bits or more, or ECDSA"
            )
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    raise AuthorityError("the key is neither RSA nor ECDSA; mitmproxy can sign with no other")


def _parse_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise AuthorityError("there is no certificate in it (PEM, BEGIN CERTIFICATE)")
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError:
        raise AuthorityError("the certificate can't be read: it is cut off or damaged") from None


def check(authority: Authority, now: datetime | None = None) -> list[str]:
    """Return warnings about an authority that can be used.

    Raises:
        AuthorityError: it can't be.
    """
    now = now or datetime.now(UTC)
    certificate = authority.certificate
    if _public(authority.key.public_key()) != _public(certificate.public_key()):
        raise AuthorityError(
            f"the key does not fit the certificate ({authority.subject}); put the pair that belongs"
            " together there, the authority's certificate first of its chain"
        )
    warnings = _check_extensions(authority)
    warnings += _check_dates(certificate, now)
    for issued, issuer in zip(authority.chain, authority.chain[1:], strict=False):
        if not _is_issued_by(issued, issuer):
            raise AuthorityError(
                f"its chain is broken: {issued.subject.rfc4514_string()} is not issued by"
                f" {issuer.subject.rfc4514_string()}, which follows it; order the chain from the"
                " authority up to the root"
            )
        warnings += _check_dates(issuer, now)
    if not _is_issued_by(authority.chain[-1], authority.chain[-1]):
        warnings.append(
            f"{authority.subject} is an intermediate, and its root is not there: clients that trust"
            " only roots (Node.js, OpenSSL before 3.2) refuse it; add the root as ca.crt or at the"
            " end of tls.crt"
        )
    return warnings


def _check_extensions(authority: Authority) -> list[str]:
    certificate, subject = authority.certificate, authority.subject
    warnings = []
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        raise AuthorityError(
            f"{subject} is not a certificate authority's certificate (basicConstraints CA:TRUE is"
            " missing); make one with `pointsman ca init`, or with isCA: true in cert-manager"
        )
    if not constraints.critical:
        warnings.append(f"basicConstraints is not critical: {_STRICT}")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None:
        warnings.append(f"keyUsage is missing: {_STRICT}")
    elif not usage.value.key_cert_sign:
        raise AuthorityError(
            f"{subject} may not sign certificates (keyUsage lacks keyCertSign); issue it anew with"
            " that usage"
        )
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes and not _FOR_SERVERS & set(purposes.value):
        raise AuthorityError(
            f"{subject} may not sign for servers (extendedKeyUsage lacks serverAuth); issue it anew"
            " with that usage, or without extendedKeyUsage"
        )
    if _extension(certificate, x509.SubjectKeyIdentifier) is None:
        warnings.append(f"subjectKeyIdentifier is missing: {_STRICT}")
    alone = _is_issued_by(certificate, certificate)
    if not alone and _extension(certificate, x509.AuthorityKeyIdentifier) is None:
        warnings.append(f"authorityKeyIdentifier is missing: {_STRICT}")
    return warnings


def _extension[T: x509.ExtensionType](
    certificate: x509.Certificate, kind: type[T]
) -> x509.Extension[T] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _check_dates(certificate: x509.Certificate, now: datetime) -> list[str]:
    subject = certificate.subject.rfc4514_string()
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        raise AuthorityError(
            f"{subject} is not valid before {begins:%Y-%m-%d %H:%M} UTC; is the clock right?"
        )
    if now >= ends:
        raise AuthorityError(f"{subject} has expired at {ends:%Y-%m-%d %H:%M} UTC")
    if ends - now < _WARN_BEFORE:
        return [f"{subject} expires at {ends:%Y-%m-%d %H:%M} UTC: replace it before"]
    return []


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
