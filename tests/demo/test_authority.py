import ssl
from pathlib import Path

from pointsman.demo.authority import Authority


def test_everything_is_written_into_the_given_directory(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("*.example.com", "127.0.0.1")
    assert {path.parent for path in (issued.chain, issued.key)} == {tmp_path}


def test_a_certificate_names_its_hosts_and_fits_its_key(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("a.example.com", "b.example.com")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.chain, issued.key)


def test_a_private_key_is_its_owners_alone(tmp_path: Path) -> None:
    assert Authority(tmp_path).issue("a.example.com").key.stat().st_mode & 0o077 == 0
