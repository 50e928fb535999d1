"""The bundle trusts us and everyone else, and holds no key."""

import os
import ssl
import stat
import subprocess
from pathlib import Path
from shutil import which

import certifi
import pytest

from pointsman.ca.authority import AuthorityError, generate
from pointsman.ca.bundle import system_roots, variables, write_bundle
from tests.ca.conftest import Made


def _count(pem: Path) -> int:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pem)
    return context.cert_store_stats()["x509"]


def test_the_systems_roots_and_ours_are_in_it(tmp_path: Path) -> None:
    authority = generate()
    written = write_bundle(tmp_path / "out", authority)
    assert written.roots == system_roots()
    assert written.count == _count(tmp_path / "out" / "ca-bundle.pem")
    assert _count(system_roots()) == written.count - 1
    assert (tmp_path / "out" / "pointsman-ca.pem").read_bytes() == authority.chain_pem()


def test_all_may_read_it_and_it_holds_no_key(tmp_path: Path) -> None:
    root = Made()
    (tmp_path / "roots.pem").write_bytes(b"# a comment\n" + root.key_pem() + root.pem)
    authority = generate()
    write_bundle(tmp_path / "out", authority, tmp_path / "roots.pem")
    for path in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert b"PRIVATE" not in path.read_bytes()
    assert (tmp_path / "out" / "ca-bundle.pem").read_bytes() == root.pem + authority.chain_pem()


def test_a_certificate_stands_in_it_once(tmp_path: Path) -> None:
    authority = generate()
    first = write_bundle(tmp_path / "first", authority, Path(certifi.where()))
    again = write_bundle(tmp_path / "again", authority, tmp_path / "first" / "ca-bundle.pem")
    assert again.count == first.count


def test_blocks_that_openssl_can_not_read_are_left_out_and_counted(tmp_path: Path) -> None:
    root, authority = Made(), generate()
    label = b"-----%b CERTIFICATE-----"
    broken = b"\n".join([label % b"BEGIN", b"bm90aGluZw==", label % b"END", b""])
    old = root.pem.replace(b"CERTIFICATE", b"X509 CERTIFICATE")
    (tmp_path / "roots.pem").write_bytes(broken + old.replace(b"\n", b"\r") + broken)
    written = write_bundle(tmp_path / "out", authority, tmp_path / "roots.pem")
    assert (written.count, written.left_out) == (2, 2)
    assert (tmp_path / "out" / "ca-bundle.pem").read_bytes() == root.pem + authority.chain_pem()
    assert _count(tmp_path / "out" / "ca-bundle.pem") == 2


def test_without_the_systems_roots_certifi_stands_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pointsman.ca.bundle._USUAL_PLACES", (str(tmp_path / "none"),))
    nowhere = ssl.DefaultVerifyPaths("", "", "", str(tmp_path / "none"), "", "")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    assert system_roots() == Path(certifi.where())


def test_roots_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match=r"none.pem: can't be read \(No such file"):
        write_bundle(tmp_path, generate(), tmp_path / "none.pem")
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(AuthorityError, match=r"empty.pem: there is no certificate in it"):
        write_bundle(tmp_path, generate(), tmp_path / "empty.pem")
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorityError, match=r"file: can't be written .*--out"):
        write_bundle(tmp_path / "file", generate())


def test_the_variables_name_files_that_are_written(tmp_path: Path) -> None:
    write_bundle(tmp_path, generate())
    named = variables(f"{tmp_path}/")
    assert set(named) == {
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
        "GIT_SSL_CAINFO",
    }
    assert all(Path(path).is_file() for path in named.values())


@pytest.mark.skipif(which("keytool") is None, reason="keytool (Java) is not installed")
def test_java_reads_the_trust_store(tmp_path: Path) -> None:
    written = write_bundle(tmp_path, generate(), Path(certifi.where()))
    command = ["keytool", "-list", "-keystore", "ca-bundle.p12", "-storepass", "changeit"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert listed.stdout.count("trustedCertEntry") == written.count


def test_what_is_made_is_for_everyone_whatever_the_umask(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o710)
    before = os.umask(0o077)
    try:
        write_bundle(there / "a" / "out", generate())
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (there, there / "a", there / "a" / "out")]
    assert modes == [0o710, 0o755, 0o755]
