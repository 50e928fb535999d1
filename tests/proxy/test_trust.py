import ssl
from pathlib import Path

import pytest

from pointsman.config.table import TlsSettings
from pointsman.demo.authority import Authority
from pointsman.proxy.trust import Trust, ssl_context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "a").mkdir()
    return Authority(tmp_path / "a")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    (tmp_path / "b").mkdir()
    return Authority(tmp_path / "b")


def trusted(context: ssl.SSLContext) -> set[bytes]:
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    return set(context.get_ca_certs(binary_form=True))


def der(authority: Authority) -> set[bytes]:
    return {ssl.PEM_cert_to_DER_cert(authority.certificate.read_text("ascii"))}


def pinned(authority: Authority) -> TlsSettings:
    return TlsSettings(ca_file=str(authority.certificate))


def test_a_providers_own_file_is_all_that_is_trusted(
    authority: Authority, other: Authority
) -> None:
    for trust in (Trust(), Trust(ca_file=str(other.certificate)), Trust(verify=False)):
        assert trusted(ssl_context(pinned(authority), trust, "p.test")) == der(authority)


def test_without_one_the_options_hold(authority: Authority, tmp_path: Path) -> None:
    by_file = ssl_context(TlsSettings(), Trust(ca_file=str(authority.certificate)), "p.test")
    assert trusted(by_file) == der(authority)
    assert len(trusted(ssl_context(TlsSettings(), Trust(), "p.test"))) > 50
    # Of a folder, certificates are read when they are needed.
    by_folder = ssl_context(TlsSettings(), Trust(ca_folder=str(tmp_path)), "p.test")
    assert trusted(by_folder) == set()


@pytest.mark.parametrize(
    ("settings", "trust"),
    [(TlsSettings(verify=False), Trust()), (TlsSettings(), Trust(verify=False))],
)
def test_verification_can_be_switched_off(settings: TlsSettings, trust: Trust) -> None:
    context = ssl_context(settings, trust, "p.test")
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname


def test_a_changed_file_counts_from_then_on(authority: Authority, other: Authority) -> None:
    settings = pinned(authority)
    before = ssl_context(settings, Trust(), "p.test")
    assert ssl_context(settings, Trust(), "p.test") is before
    theirs = der(other)
    authority.certificate.write_bytes(other.certificate.read_bytes())
    assert trusted(ssl_context(settings, Trust(), "p.test")) == theirs


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nhalf a"])
def test_a_file_that_can_not_be_used_is_named(
    authority: Authority, tmp_path: Path, content: bytes | None
) -> None:
    settings = pinned(authority)
    ssl_context(settings, Trust(), "p.test")
    if content is None:
        authority.certificate.unlink()
    else:
        authority.certificate.write_bytes(content)
    with pytest.raises(OSError, match=str(authority.certificate)):
        ssl_context(settings, Trust(ca_file=str(tmp_path / "other.pem")), "p.test")


def test_our_own_certificate_is_one_file_or_one_for_each_name(tmp_path: Path) -> None:
    (tmp_path / "p.test.pem").touch()
    alone = Trust(client_certs=str(tmp_path / "p.test.pem"))
    assert alone.client_certificate("other.test") == str(tmp_path / "p.test.pem")
    folder = Trust(client_certs=str(tmp_path))
    assert folder.client_certificate("p.test") == str(tmp_path / "p.test.pem")
    assert folder.client_certificate("other.test") is None
    assert Trust().client_certificate("p.test") is None
