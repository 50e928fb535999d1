"""Authorities in every form that a Secret may hold, made by the test itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)


@dataclass
class Made:
    """A certificate and its key; by default those of an authority that signs itself."""

    name: str = "Corporate CA"
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    issuer: "Made | None" = None
    ca: bool = True
    critical: bool = True
    key_cert_sign: bool | None = True
    purposes: tuple[x509.ObjectIdentifier, ...] = ()
    identifier: bool = True
    issuer_named: bool = True
    begins: datetime = NOW - timedelta(days=1)
    ends: datetime = NOW + timedelta(days=365)

    def __post_init__(self) -> None:
        issuer = self.issuer or self
        builder = (
            x509.CertificateBuilder()
            .serial_number(x509.random_serial_number())
            .subject_name(_named(self.name))
            .issuer_name(_named(issuer.name))
            .not_valid_before(self.begins)
            .not_valid_after(self.ends)
            .public_key(self.key.public_key())
            .add_extension(x509.BasicConstraints(self.ca, None), critical=self.critical)
        )
        if self.key_cert_sign is not None:
            usage = dict.fromkeys(
                (
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "crl_sign",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            builder = builder.add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=self.key_cert_sign, **usage),
                critical=True,
            )
        if self.purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.purposes), critical=False)
        if self.identifier:
            builder = builder.add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False
            )
        if self.issuer is not None and self.issuer_named:
            above = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.issuer.key.public_key())
            builder = builder.add_extension(above, critical=False)
        algorithm = hashes.SHA256() if hasattr(issuer.key, "curve") or _is_rsa(issuer.key) else None
        self.certificate = builder.sign(issuer.key, algorithm)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, form: PrivateFormat = PrivateFormat.PKCS8, encryption: Any = None) -> bytes:
        pem: bytes = self.key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())
        return pem


def _is_rsa(key: Any) -> bool:
    return hasattr(key, "key_size") and not hasattr(key, "curve")


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


type WriteSecret = Callable[..., Path]


@pytest.fixture
def write_secret(tmp_path: Path) -> WriteSecret:
    """Write a Secret's directory: `write_secret(made, crt=…, key=…, ca=…)`."""

    def write(
        made: Made, crt: bytes | None = None, key: bytes | None = None, ca: bytes | None = None
    ) -> Path:
        folder = tmp_path / "secret"
        folder.mkdir(exist_ok=True)
        (folder / "tls.crt").write_bytes(made.pem if crt is None else crt)
        (folder / "tls.key").write_bytes(made.key_pem() if key is None else key)
        if ca is not None:
            (folder / "ca.crt").write_bytes(ca)
        return folder

    return write
