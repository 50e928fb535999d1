"""mitmproxy's directory: filled once, whoever comes first, and the same after every restart."""

import logging
import multiprocessing
import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from mitmproxy.certs import CertStore

from pointsman.ca import AuthorityError, ensure
from pointsman.ca.store import load, read_secret
from tests.ca.conftest import NOW, Made, WriteSecret


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_mitmproxy_takes_what_was_made_and_makes_nothing_of_its_own(tmp_path: Path) -> None:
    confdir = tmp_path / "deep" / "confdir"
    certificate = ensure(confdir)
    assert certificate == confdir / "mitmproxy-ca-cert.pem"
    before = {path.name: path.read_bytes() for path in confdir.iterdir()}
    store = CertStore.from_store(confdir, "mitmproxy", 2048)
    assert store.default_ca.to_pem() == certificate.read_bytes()
    assert store.get_cert("api.openai.com", []).cert.cn == "api.openai.com"
    assert {path.name: path.read_bytes() for path in confdir.iterdir()} == before


def test_only_the_key_is_kept_from_others_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o077):
        confdir = tmp_path / f"{umask}"
        previous = os.umask(umask)
        try:
            ensure(confdir)
        finally:
            os.umask(previous)
        modes = {path.name: _mode(path) for path in confdir.iterdir() if path.name[0] != "."}
        assert modes.pop("mitmproxy-ca.pem") == 0o600
        assert set(modes.values()) == {0o644}
        assert all(b"PRIVATE" not in (confdir / name).read_bytes() for name in modes)


def test_a_restart_keeps_it_and_writes_nothing(tmp_path: Path) -> None:
    ensure(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    ensure(tmp_path)
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert after == before


def test_the_one_that_mitmproxy_made_is_kept(tmp_path: Path) -> None:
    CertStore.from_store(tmp_path, "mitmproxy", 2048)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ensure(tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_of_many_processes_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=ensure, args=(tmp_path / "confdir",), daemon=True) for _ in range(6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "confdir" / "mitmproxy-ca-cert.pem").read_bytes() == load(
        tmp_path / "confdir"
    ).chain_pem()
    assert not list((tmp_path / "confdir").glob(".pointsman-ca-unfinished-*"))


def test_what_a_process_left_when_it_died_is_mended(tmp_path: Path) -> None:
    ensure(tmp_path)
    made = load(tmp_path)
    (tmp_path / "mitmproxy-ca-cert.pem").unlink()
    (tmp_path / "mitmproxy-ca-cert.cer").write_bytes(b"")
    (tmp_path / "mitmproxy-dhparam.pem").write_bytes(b"-----BEGIN DH PARAMETERS-----\nMII")
    (tmp_path / ".pointsman-ca-unfinished-1").write_bytes(b"half a key")
    ensure(tmp_path)
    assert load(tmp_path) == made
    assert (tmp_path / "mitmproxy-ca-cert.pem").read_bytes() == made.chain_pem()
    assert (tmp_path / "mitmproxy-ca-cert.cer").read_bytes() == made.chain_pem()
    assert not (tmp_path / ".pointsman-ca-unfinished-1").exists()
    CertStore.from_store(tmp_path, "mitmproxy", 2048)


def test_half_a_key_is_an_error_that_says_how_to_mend_it(tmp_path: Path) -> None:
    ensure(tmp_path)
    path = tmp_path / "mitmproxy-ca.pem"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(AuthorityError, match=r"damaged. Or delete it and mitmproxy-ca-cert.pem"):
        ensure(tmp_path)
    path.unlink()
    with pytest.raises(AuthorityError, match=r"mitmproxy-ca.pem, which has the key, is not; put"):
        ensure(tmp_path)
    (tmp_path / "mitmproxy-ca-cert.pem").unlink()
    ensure(tmp_path)
    assert path.read_bytes() != whole


def test_an_expired_one_is_not_replaced_in_silence(tmp_path: Path) -> None:
    old = Made(ends=NOW - timedelta(hours=1))
    (tmp_path / "mitmproxy-ca.pem").write_bytes(old.key_pem() + old.pem)
    with pytest.raises(AuthorityError, match=r"has expired at .*applications have to trust anew"):
        ensure(tmp_path)


def test_a_secret_is_taken(tmp_path: Path, write_secret: WriteSecret) -> None:
    given = Made()
    ensure(tmp_path / "confdir", write_secret(given))
    store = CertStore.from_store(tmp_path / "confdir", "mitmproxy", 2048)
    assert store.default_ca.to_pem() == given.pem


def test_a_chain_is_taken_whole_with_the_root_of_cert_manager(
    tmp_path: Path, write_secret: WriteSecret
) -> None:
    root = Made("Root")
    middle = Made("Middle", issuer=root)
    secret = write_secret(middle, ca=root.pem)
    certificate = ensure(tmp_path / "confdir", secret)
    assert certificate.read_bytes() == middle.pem + root.pem
    store = CertStore.from_store(tmp_path / "confdir", "mitmproxy", 2048)
    assert [one.to_pem() for one in store.default_chain_certs] == [middle.pem, root.pem]


def test_a_changed_secret_takes_the_place_of_the_old_one_and_is_told(
    tmp_path: Path, write_secret: WriteSecret, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    confdir = tmp_path / "confdir"
    old, new = Made("Old"), Made("New")
    ensure(confdir, write_secret(old))
    assert "took the certificate authority of the Secret: CN=Old" in caplog.text
    caplog.clear()
    ensure(confdir, write_secret(old))
    assert not caplog.text
    certificate = ensure(confdir, write_secret(new))
    assert certificate.read_bytes() == new.pem
    assert load(confdir).subject == "CN=New"
    assert "CN=New" in caplog.text
    assert "in the place of CN=Old" in caplog.text
    # And without a Secret, what is there stays.
    ensure(confdir)
    assert load(confdir).subject == "CN=New"


def test_a_secret_mends_a_damaged_directory(tmp_path: Path, write_secret: WriteSecret) -> None:
    (tmp_path / "mitmproxy-ca.pem").write_bytes(b"-----BEGIN PRIV")
    ensure(tmp_path, write_secret(Made("Corporate")))
    assert load(tmp_path).subject == "CN=Corporate"


def test_a_secret_is_read_through_the_links_that_kubernetes_swaps(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    for version, made in (("..1", Made("First")), ("..2", Made("Second"))):
        (volume / version).mkdir(parents=True)
        (volume / version / "tls.crt").write_bytes(made.pem)
        (volume / version / "tls.key").write_bytes(made.key_pem())
    for name in ("tls.crt", "tls.key"):
        (volume / name).symlink_to(Path("..data") / name)
    for version, subject in (("..1", "CN=First"), ("..2", "CN=Second")):
        (volume / "..new").symlink_to(version)
        (volume / "..new").replace(volume / "..data")
        ensure(tmp_path / "confdir", volume)
        assert load(tmp_path / "confdir").subject == subject


def test_a_secret_that_is_wrong_changes_nothing(tmp_path: Path, write_secret: WriteSecret) -> None:
    confdir = tmp_path / "confdir"
    ensure(confdir)
    before = load(confdir)
    made = Made()
    key = made.key_pem(encryption=BestAvailableEncryption(b"x"))
    with pytest.raises(AuthorityError, match=r"secret: the key is encrypted"):
        ensure(confdir, write_secret(made, key=key))
    with pytest.raises(AuthorityError, match=r"secret: the key does not fit"):
        ensure(confdir, write_secret(made, key=Made().key_pem()))
    assert load(confdir) == before


def test_a_secret_without_its_files_says_what_to_mount(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match=r"no tls.key and tls.crt; mount a Secret"):
        read_secret(tmp_path)


def test_one_that_expires_soon_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ensure(tmp_path, days=20)
    ensure(tmp_path)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "expires at" in record.getMessage()


def test_there_must_be_one_to_load(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="make one: pointsman ca init --dir"):
        load(tmp_path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorityError, match=r"file/confdir: can't be written .*emptyDir"):
        ensure(tmp_path / "file" / "confdir")


def test_files_that_cannot_be_read_are_named(tmp_path: Path, write_secret: WriteSecret) -> None:
    secret = write_secret(Made())
    (secret / "tls.key").unlink()
    (secret / "tls.key").mkdir()
    with pytest.raises(AuthorityError, match=r"tls.key: can't be read \(Is a directory\) by user"):
        ensure(tmp_path / "confdir", secret)


def test_a_key_that_others_may_read_is_theirs_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ensure(tmp_path)
    key = tmp_path / "mitmproxy-ca.pem"
    key.chmod(0o666)
    ensure(tmp_path)
    assert key.stat().st_mode & 0o777 == 0o600
    assert "others could read the CA's key" in caplog.text
