"""A certificate authority that lives as long as its directory: nothing is installed anywhere."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class ServerCertificate:
    """PEM files that a TLS server needs: its certificate chain and its private key."""

    chain: Path
    key: Path


class Authority:
    """Issues server certificates into `directory`.

    `certificate` is the PEM file that a client has to trust.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ca = trustme.CA(organization_name="Pointsman demo")
        self.certificate = directory / "authority.pem"
        self._ca.cert_pem.write_to_path(str(self.certificate))

    def issue(self, *names: str) -> ServerCertificate:
        """Issue a certificate for host names (wildcards too) and IP addresses."""
        issued = self._ca.issue_cert(*names)
        stem = names[0].replace("*", "_").replace(":", "_")
        certificate = ServerCertificate(
            chain=self.directory / f"{stem}.pem", key=self.directory / f"{stem}.key"
        )
        certificate.key.touch(mode=0o600)
        issued.private_key_pem.write_to_path(str(certificate.key))
        certificate.chain.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        return certificate
