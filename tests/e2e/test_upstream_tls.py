"""Whom providers' connections trust, and what follows when that can't be had any more."""

import shutil
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsman.demo.authority import Authority
from tests.e2e.conftest import StartFar, StartProxy
from tests.e2e.harness import (
    Far,
    Json,
    RawServer,
    assert_entry,
    assert_refused,
    chat,
    llm_provider,
    llm_route,
    openai_config,
    read_head,
    said,
    server_context,
    write_rules,
)

pytestmark = pytest.mark.e2e

KEY = "sk-pinned-51e7b0"
HALF = "-----BEGIN CERTIFICATE-----\nhalf a"


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """An authority that has issued nothing here."""
    (tmp_path / "stranger").mkdir()
    return Authority(tmp_path / "stranger")


def remove(file: Path) -> None:
    file.unlink()


def garble(file: Path) -> None:
    file.write_text(HALF)


def empty(file: Path) -> None:
    file.write_text("")


def pinning(far: Far, authority: Authority, folder: Path) -> tuple[Path, Json]:
    """Return a CA file, and the manifest of a provider that is trusted by it alone."""
    pinned = folder / "pinned.pem"
    shutil.copy(authority.certificate, pinned)
    manifest = far.manifest()
    manifest["spec"]["tls"] = {"caFile": str(pinned)}
    return pinned, manifest


@pytest.mark.parametrize("spoil", [remove, garble, empty])
@pytest.mark.parametrize("insecure", [False, True], ids=["verifying", "insecure"])
def test_without_its_ca_file_a_provider_is_not_called_and_the_next_one_is(
    *,
    start_proxy: StartProxy,
    start_far: StartFar,
    openai: Far,
    authority: Authority,
    stranger: Authority,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    insecure: bool,
) -> None:
    pinned = tmp_path / "pinned.pem"
    shutil.copy(authority.certificate, pinned)
    far = start_far("pinned", "pinned.example")
    rules = write_rules(
        tmp_path / "rules",
        llm_provider(
            "pinned",
            "pinned.example",
            path="/v1/chat/completions",
            address=far.address,
            tls={"caFile": str(pinned)},
            configs=openai_config(apiKey=KEY),
        ),
        openai.manifest(),
        llm_route(
            "both",
            "both.example",
            {
                "name": "both",
                "backendRefs": [
                    {"providerHost": "pinned.example", "weight": 1},
                    {"providerHost": "api.openai.com", "weight": 1, "priority": 1},
                ],
            },
        ),
    )
    # By its own options mitmproxy would go on: it trusts the provider's authority, or anyone.
    option = f"ssl_verify_upstream_trusted_ca={authority.certificate}"
    proxy = start_proxy(rules, "--set", "ssl_insecure=true" if insecure else option)

    def ask() -> str:
        with proxy.client() as client:  # each with a connection of its own
            return said(
                client.post("http://both.example/v1/chat/completions", json=chat(model="m"))
            )

    assert ask().startswith("This is pinned")
    far.call()
    assert_entry(proxy.entry(), provider="pinned", status=200)

    spoil(pinned)
    assert ask().startswith("This is openai")
    far.calls(0)
    openai.call()
    entry = proxy.entry()
    assert_entry(entry, provider="openai", status=200)
    assert str(pinned) in entry["attempts"][0]["error"]
    proxy.says(f"Server TLS handshake failed. Certificate verify failed: {pinned} ")

    # Whom else the file vouches for counts for new connections.
    shutil.copy(stranger.certificate, pinned)
    assert ask().startswith("This is openai")
    far.calls(0)
    shutil.copy(authority.certificate, pinned)
    assert ask().startswith("This is pinned")
    assert far.call().header("authorization") == f"Bearer {KEY}"
    openai.call()
    proxy.logged(2)


def test_a_client_is_not_told_where_the_ca_file_was(
    start_proxy: StartProxy, openai: Far, authority: Authority, tmp_path: Path
) -> None:
    pinned, manifest = pinning(openai, authority, tmp_path)
    proxy = start_proxy(write_rules(tmp_path / "rules", manifest))
    pinned.unlink()
    with proxy.client() as client:
        url = "http://api.openai.com/v1/chat/completions"
        answer = client.post(url, json=chat(model="m"))
    assert_refused(answer, 502, "upstream_failure")
    assert "TLS handshake failed" in answer.text
    assert "pem" not in answer.text
    assert_entry(proxy.entry(), status=502, flags=["UF"])
    openai.calls(0)


def test_by_an_upstream_proxy_it_is_the_same(
    start_proxy: StartProxy, openai: Far, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    company = start_proxy(tmp_path / "none")
    pinned, manifest = pinning(openai, authority, tmp_path)
    rules = write_rules(tmp_path / "rules", manifest)
    proxy = start_proxy(rules, mode=f"upstream:{company.url}")
    for spoil, status in ((None, 200), (remove, 502)):
        if spoil is not None:
            spoil(pinned)
        with proxy.client() as client:
            url = "http://api.openai.com/v1/chat/completions"
            assert client.post(url, json=chat(model="m")).status_code == status
        assert_entry(proxy.entry(), status=status)
    openai.call()


def test_where_mitmproxys_own_trust_can_not_be_had_the_call_fails_at_once(
    start_proxy: StartProxy, openai: Far, authority: Authority, tmp_path: Path
) -> None:
    """mitmproxy itself would wait for a handshake that it has not begun."""
    trusted = tmp_path / "trusted.pem"
    shutil.copy(authority.certificate, trusted)
    manifest = openai.manifest()
    del manifest["spec"]["tls"]
    rules = write_rules(tmp_path / "rules", manifest)
    proxy = start_proxy(rules, "--set", f"ssl_verify_upstream_trusted_ca={trusted}")
    garble(trusted)
    with proxy.client() as client:
        answer = client.post("http://api.openai.com/v1/chat/completions", json=chat(model="m"))
    assert_refused(answer, 502, "upstream_failure")
    entry = proxy.entry()
    assert entry["attempts"][0]["error"] == "TLS could not be set up"
    openai.calls(0)
    proxy.expect_error("Cannot load trusted certificates")
    proxy.expect_any_error()


def _asking_for_certificates(authority: Authority, name: str) -> ssl.SSLContext:
    context = server_context(authority, name)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.certificate)
    return context


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_ca_file_leaves_mitmproxys_client_certificates_in_use(
    start_proxy: StartProxy,
    raw_server: Callable[..., RawServer],
    authority: Authority,
    tmp_path: Path,
    folder: bool,
) -> None:
    shown: list[object] = []

    def serve(conn: socket.socket) -> None:
        assert isinstance(conn, ssl.SSLSocket)
        shown.append(conn.getpeercert())
        read_head(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    server = raw_server(serve, tls=_asking_for_certificates(authority, "strict.example"))
    ours = authority.issue("us.example")
    certificate = tmp_path / "certificates" / "strict.example.pem"
    certificate.parent.mkdir()
    certificate.write_bytes(ours.key.read_bytes() + ours.chain.read_bytes())
    rules = write_rules(
        tmp_path / "rules",
        llm_provider(
            "strict",
            "strict.example",
            address=server.address,
            tls={"caFile": str(authority.certificate)},
            configs=openai_config(model="m"),
        ),
    )
    given = certificate.parent if folder else certificate
    proxy = start_proxy(rules, "--set", f"client_certs={given}")
    with proxy.client() as client:
        assert client.get("http://strict.example/v1/models").status_code == 200
    assert_entry(proxy.entry(), status=200)
    (peer,) = shown
    assert "us.example" in str(peer)
