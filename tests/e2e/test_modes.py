"""Other ways to run it: reverse and upstream mode, and the web interface."""

import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Proxy,
    RawServer,
    assert_entry,
    assert_refused,
    chat,
    closed_port,
    eventually,
    read_head,
    said,
    sse,
    trusting,
    write_rules,
)

pytestmark = pytest.mark.e2e

OWN = "sk-own-0c52aa91"
OWN_KEY = {"authorization": f"Bearer {OWN}"}
CHAT = "/v1/chat/completions"


@pytest.fixture
def rules(openai: Far, tmp_path: Path) -> Path:
    return write_rules(tmp_path / "rules", openai.manifest())


def teapot(conn: socket.socket) -> None:
    assert OWN.encode() in read_head(conn)
    conn.sendall(b"HTTP/1.1 418 Teapot\r\nContent-Length: 2\r\nConnection: close\r\n\r\nme")


# --- reverse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_reverse_proxy_for_a_provider_routes(
    start_proxy: StartProxy, rules: Path, openai: Far, scheme: str
) -> None:
    """The application's base URL is the proxy; what it stands for is a host of the rules."""
    proxy = start_proxy(rules, mode=f"reverse:{scheme}://api.openai.com")
    with httpx.Client(base_url=proxy.url, headers=OWN_KEY, trust_env=False) as client:
        assert said(client.post(CHAT, json=chat(model="m")))
        assert sse(client.post(CHAT, json=chat(model="m", stream=True)).content)
        assert_refused(client.post(CHAT, json=chat()), 400, "model_missing")
    for call in openai.calls(2):
        assert call.header("host") == "api.openai.com"
        assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    for entry in proxy.logged(3):
        assert_entry(entry, host="api.openai.com")


def test_a_reverse_proxy_answers_tls_too(start_proxy: StartProxy, rules: Path, openai: Far) -> None:
    proxy = start_proxy(rules, mode="reverse:https://api.openai.com")
    trust = trusting(proxy.certificate)
    trust.check_hostname = False  # mitmproxy's certificate is for the host that it stands for
    with httpx.Client(verify=trust, http2=True, trust_env=False) as client:
        answer = client.post(f"https://{LOOPBACK}:{proxy.port}{CHAT}", json=chat(model="m"))
    assert said(answer)
    assert answer.http_version == "HTTP/2"
    assert openai.call().header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert_entry(proxy.entry(), host="api.openai.com", status=200)


def test_a_reverse_proxy_for_another_server_passes_everything(
    start_proxy: StartProxy, rules: Path, openai: Far, raw_server: Callable[..., RawServer]
) -> None:
    server = raw_server(teapot)
    proxy = start_proxy(rules, mode=f"reverse:http://{server.address}")
    with httpx.Client(base_url=proxy.url, headers=OWN_KEY, trust_env=False) as client:
        answer = client.post(CHAT, json=chat(model="m"))
    assert (answer.status_code, answer.text) == (418, "me")
    openai.calls(0)


# --- upstream -------------------------------------------------------------------------------------


@pytest.fixture
def company(start_proxy: StartProxy, tmp_path: Path) -> Proxy:
    """A second mitmdump, as a company's proxy: without rules it passes everything through."""
    empty = tmp_path / "none"
    empty.mkdir()
    return start_proxy(empty)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_an_upstream_proxy_is_asked_for_our_hosts(
    start_proxy: StartProxy, company: Proxy, rules: Path, openai: Far, http2: bool
) -> None:
    proxy = start_proxy(rules, mode=f"upstream:{company.url}")
    with proxy.client(headers=OWN_KEY, http2=http2) as client:
        assert said(client.post(f"https://api.openai.com{CHAT}", json=chat(model="m")))
        stream = client.post("http://api.openai.com/", json=chat(model="m", stream=True))
        assert sse(stream.content)
    for call in openai.calls(2):
        assert call.header("host") == "api.openai.com"
        assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert {entry["status"] for entry in proxy.logged(2)} == {200}
    company.says(f"server connect {openai.address}")
    assert KEYS["OPENAI_API_KEY"] not in company.printed


def test_an_upstream_proxy_is_asked_for_other_hosts(
    start_proxy: StartProxy,
    company: Proxy,
    rules: Path,
    authority: Authority,
    raw_server: Callable[..., RawServer],
) -> None:
    proxy = start_proxy(rules, mode=f"upstream:{company.url}")
    server = raw_server(teapot)
    with proxy.client(headers=OWN_KEY) as client:
        assert client.get(f"http://{server.address}/").status_code == 418
    company.says(f"server connect {server.address}")

    provider = Provider("elsewhere")
    with (
        ThreadedServer([provider], tls=authority.issue("localhost")) as tls_server,
        proxy.client(verify=trusting(authority.certificate), headers=OWN_KEY) as client,
    ):
        url = f"https://localhost:{tls_server.port}/v1/models"
        assert client.get(url).status_code == 200
    company.says(f"server connect localhost:{tls_server.port}")
    assert provider.calls[0].header("authorization") == OWN_KEY["authorization"]


def test_an_upstream_proxy_that_is_away_is_a_502(
    start_proxy: StartProxy, rules: Path, openai: Far
) -> None:
    proxy = start_proxy(rules, mode=f"upstream:http://{LOOPBACK}:{closed_port()}")
    with proxy.client() as client:
        answer = client.post(f"https://api.openai.com{CHAT}", json=chat(model="m"))
    assert_refused(answer, 502, "upstream_failure")
    openai.calls(0)
    assert_entry(proxy.entry(), flags=["UF"])


# --- mitmweb --------------------------------------------------------------------------------------


@pytest.fixture
def web(start_proxy: StartProxy, rules: Path) -> tuple[Proxy, httpx.Client]:
    port = closed_port()
    proxy = start_proxy(
        rules,
        *("--no-web-open-browser", "--web-host", LOOPBACK, "--web-port", str(port)),
        *("--set", "web_password=letmein"),
        program="mitmweb",
    )
    client = httpx.Client(
        base_url=f"http://{LOOPBACK}:{port}",
        headers={"authorization": "Bearer letmein"},
        trust_env=False,
        timeout=DEADLINE,
    )
    return proxy, client


def test_mitmweb_shows_the_decision_and_no_key(
    web: tuple[Proxy, httpx.Client], openai: Far
) -> None:
    proxy, api = web
    with api, proxy.client(headers={**OWN_KEY, "x-api-key": OWN}) as client:
        assert said(client.post(f"https://api.openai.com{CHAT}?key={OWN}", json=chat(model="m")))
        stream = client.post(f"https://api.openai.com{CHAT}", json=chat(model="m", stream=True))
        assert sse(stream.content)
        openai.calls(2)
        assert api.get("/flows", headers={"authorization": "Bearer wrong"}).status_code == 403

        def finished() -> bool:
            shown = api.get("/flows").json()
            return len(shown) == 2 and all(" ms" in flow["comment"] for flow in shown)

        eventually(finished, what="two finished flows")
        flows = api.get("/flows")
        for flow in flows.json():
            assert "openai · 11 tok · m · " in flow["comment"]
            body = api.get(f"/flows/{flow['id']}/response/content.data").content
            assert b"there" in body
        dump = api.get("/flows/dump").content
        assert b"openai" in dump
        for secret in (OWN, KEYS["OPENAI_API_KEY"]):
            assert secret not in flows.text
            assert secret.encode() not in dump
            assert secret not in proxy.printed
    proxy.forget()
