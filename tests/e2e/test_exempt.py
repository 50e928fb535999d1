"""`llm_passthrough`: a host that the rules name is left alone, and what is ours stays guarded."""

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import KEYS
from tests.e2e.harness import (
    LOOPBACK,
    Far,
    Proxy,
    RawServer,
    assert_entry,
    chat,
    llm_route,
    read_all,
    read_exactly,
    server_context,
    to,
    trusting,
    write_rules,
)

pytestmark = pytest.mark.e2e

OWN = "Bearer sk-own-93be77d0"
PINNED = "api.openai.com"
PLAIN = "localhost"  # a name of the rules that leads to a server of the test's own


@pytest.fixture(scope="module")
def module_proxy(
    confdir: Path, far_ends: dict[str, Far], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    rules = write_rules(
        tmp_path_factory.mktemp("rules"),
        far_ends["openai"].manifest(),
        far_ends["moonshot"].manifest(),
        llm_route("plain", PLAIN, to("api.moonshot.cn")),
        llm_route("many", "*.pinned.example", to("api.moonshot.cn")),
    )
    exempt = f"llm_passthrough={PINNED}, {PLAIN}, *.pinned.example"
    with Proxy(confdir, rules, "--set", exempt, env=KEYS) as proxy:
        yield proxy


@pytest.fixture
def proxy(module_proxy: Proxy, openai: Far, moonshot: Far) -> Iterator[Proxy]:
    module_proxy.forget()
    yield module_proxy
    module_proxy.assert_no_more_entries()


def request(host: str) -> bytes:
    head = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: {OWN}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode()


# --- left alone -----------------------------------------------------------------------------------


def test_tls_goes_on_undecrypted(proxy: Proxy, openai: Far) -> None:
    """The application sees the provider's own certificate, and its own key arrives."""
    address = openai.server.host, openai.server.port
    with (
        proxy.tunnel(*address) as plain,
        trusting(openai.authority.certificate).wrap_socket(plain, server_hostname=PINNED) as tls,
    ):
        tls.sendall(request(PINNED))
        assert read_all(tls).startswith(b"HTTP/1.1 401 ")  # the provider takes another key
    assert openai.call().header("authorization") == OWN


@pytest.mark.parametrize("name", ["one.pinned.example", "ONE.two.pinned.example"])
def test_a_client_certificate_gets_through(
    proxy: Proxy, authority: Authority, raw_server: Callable[..., RawServer], name: str
) -> None:
    context = server_context(authority, name.lower())
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.certificate)
    mine = authority.issue("client.example")
    trust = trusting(authority.certificate)
    trust.load_cert_chain(mine.chain, mine.key)

    def answer(conn: socket.socket) -> None:
        assert isinstance(conn, ssl.SSLSocket)
        assert conn.getpeercert()
        conn.sendall(conn.recv(100))

    server = raw_server(answer, tls=context)
    with (
        proxy.tunnel(LOOPBACK, server.port) as plain,
        trust.wrap_socket(plain, server_hostname=name) as tls,
    ):
        tls.sendall(b"hello")
        assert read_exactly(tls, 5) == b"hello"


def test_plain_http_passes_unread(proxy: Proxy, moonshot: Far) -> None:
    provider = Provider("plain", chunk_delay=0)
    with ThreadedServer([provider]) as server, proxy.client() as client:
        url = f"http://{PLAIN}:{server.port}/v1/chat/completions?key=own"
        answer = client.post(url, json=chat(model="mine"), headers={"authorization": OWN})
    assert answer.status_code == 200
    [call] = provider.calls
    assert call.path == "/v1/chat/completions?key=own"
    assert call.header("authorization") == OWN
    assert call.json() == chat(model="mine")
    moonshot.calls(0)


def test_rules_still_send_requests_to_it(proxy: Proxy, moonshot: Far) -> None:
    """It is what the application calls that is exempt, not what rules choose."""
    with proxy.client() as client:
        answer = client.post("http://api.moonshot.cn/v1/chat/completions", json=chat(model="m"))
    assert answer.status_code == 200
    moonshot.call()
    assert_entry(proxy.entry(), status=200, provider="moonshot")


# --- names that contradict each other -------------------------------------------------------------


def _through(proxy: Proxy, connect: str, sni: str, host: str) -> bytes:
    with (
        proxy.tunnel(connect, 443) as plain,
        trusting(proxy.certificate).wrap_socket(plain, server_hostname=sni) as tls,
    ):
        tls.sendall(request(host))
        return read_all(tls)


def test_a_tunnel_to_our_host_is_decrypted_although_its_server_name_is_exempt(
    proxy: Proxy, moonshot: Far
) -> None:
    """Left alone, it would reach our host by another one's name."""
    answer = _through(proxy, "api.moonshot.cn", PINNED, "api.moonshot.cn")
    assert answer.startswith(b"HTTP/1.1 200 ")
    moonshot.call()
    assert_entry(proxy.entry(), status=200, provider="moonshot")


@pytest.mark.parametrize("names", [("api.moonshot.cn", PINNED), (PINNED, "api.moonshot.cn")])
def test_a_connection_of_ours_carries_no_exempt_host(
    proxy: Proxy, names: tuple[str, str], openai: Far
) -> None:
    answer = _through(proxy, *names, PINNED)
    assert b"x-pointsman-error: misdirected" in answer
    openai.calls(0)
    assert_entry(proxy.entry(), status=421, flags=["DPE"])


def test_plain_http_in_a_tunnel_to_an_exempt_host_is_routed_by_its_host(
    proxy: Proxy, moonshot: Far
) -> None:
    with proxy.tunnel(PLAIN, 80) as conn:
        conn.sendall(request("api.moonshot.cn"))
        assert read_all(conn).startswith(b"HTTP/1.1 200 ")
    assert moonshot.call().header("authorization") == f"Bearer {KEYS['MOONSHOT_API_KEY']}"
    assert_entry(proxy.entry(), status=200, provider="moonshot")


def test_our_host_inside_undecrypted_tls_is_not_seen(proxy: Proxy, authority: Authority) -> None:
    """What is not decrypted is not read: the documentation says so, and why it is no loss."""
    provider = Provider("fronted", chunk_delay=0)
    certificate = authority.issue("x.pinned.example")
    with (
        ThreadedServer([provider], tls=certificate) as server,
        proxy.tunnel(LOOPBACK, server.port) as plain,
        trusting(authority.certificate).wrap_socket(
            plain, server_hostname="x.pinned.example"
        ) as tls,
    ):
        tls.sendall(request("api.moonshot.cn"))
        assert read_all(tls).startswith(b"HTTP/1.1 200 ")
    [call] = provider.calls
    assert call.header("host") == "api.moonshot.cn"
    assert call.header("authorization") == OWN


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("llm_passthrough=https://api.openai.com", "write the bare host name"),
        ("llm_unknown=block", "neither pass nor deny"),
    ],
)
def test_a_start_with_a_value_that_cannot_be_used_fails(
    confdir: Path, openai: Far, tmp_path: Path, option: str, message: str
) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = Proxy(confdir, rules, "--set", option, env=KEYS)
    proxy.start()
    assert proxy.wait() == 1
    assert message in proxy.printed
    assert "Traceback" not in proxy.printed
