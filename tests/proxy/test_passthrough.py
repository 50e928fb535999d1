from types import SimpleNamespace
from typing import Any

import h2.connection
import pytest
from mitmproxy.addons.next_layer import NeedsMoreData
from mitmproxy.options import Options
from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import HttpLayer, TCPLayer
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.modes import TransparentProxy
from mitmproxy.test.tflow import tclient_conn

from pointsman.config.table import Route, RoutingTable
from pointsman.proxy.passthrough import await_more, leave_encrypted, reconsider

TABLE = RoutingTable({"llm.test": Route("r", "llm.test", ())})
OURS, OTHER = "llm.test", "other.test"
REQUEST = b"POST / HTTP/1.1\r\n"


def context(host: str | None = OTHER, sni: str | None = None, alpn: bytes | None = None) -> Context:
    """Return a connection to a host, in a proxy's tunnel."""
    client = tclient_conn()
    client.sni, client.alpn = sni, alpn
    found = Context(client, Options())
    found.server.address = (host, 443) if host else None
    TransparentProxy(found)
    return found


def hello(around: Context, sni: str | None) -> Any:
    return SimpleNamespace(context=around, client_hello=SimpleNamespace(sni=sni))


def again(around: Context, begins: bytes, chosen: str) -> layer.Layer | None:
    """Reconsider a choice of mitmproxy's."""
    first = TCPLayer(around) if chosen == "tcp" else HttpLayer(around, HTTPMode.transparent)
    found = reconsider(TABLE, around, begins, first)
    assert [one for one in around.layers if isinstance(one, TCPLayer | HttpLayer)] == [found]
    return found


def h2c(authority: str | None) -> bytes:
    """Return how HTTP/2 without TLS begins, with a request if there is an authority."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    if authority:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", "/")]
        client.send_headers(1, [*fields, (":authority", authority)])
    return client.data_to_send()


# --- TLS ------------------------------------------------------------------------------------------


def test_only_a_connection_with_a_name_of_ours_is_decrypted() -> None:
    assert leave_encrypted(TABLE, hello(context(OTHER), OTHER))
    assert leave_encrypted(TABLE, hello(context("192.0.2.1"), None))
    assert not leave_encrypted(TABLE, hello(context(OTHER), OURS))
    assert not leave_encrypted(TABLE, hello(context(OURS), OTHER))
    assert not leave_encrypted(TABLE, hello(context(OURS), None))


def test_tls_to_the_proxy_itself_is_decrypted() -> None:
    assert not leave_encrypted(TABLE, hello(context(None), OTHER))


# --- the first bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"P", b"POST", b"G", b"\r\n", b"\r\nPO", b"\x16", b"\x16\x03"])
def test_what_may_become_a_request_or_tls_is_waited_for(first: bytes) -> None:
    with pytest.raises(NeedsMoreData):
        await_more(context(), first, b"")


@pytest.mark.parametrize(
    "first", [b"", REQUEST, b"P ", b"p", b"\x16\x03\x01", b"\x00", b"SSH-2.0", b"*1\r\n", b"A" * 21]
)
def test_what_is_decided_is_not_waited_for(first: bytes) -> None:
    await_more(context(), first, b"")


def test_who_is_answered_already_is_not_waited_for() -> None:
    await_more(context(), b"P", b"220 mail.test\r\n")
    await_more(context(None), b"P", b"")


# --- the choice of a layer ------------------------------------------------------------------------


@pytest.mark.parametrize("begins", [REQUEST, b"P / HTTP/1.1\r\n", b"p / HTTP/1.1\r\n", b"\x00\x01"])
@pytest.mark.parametrize(("host", "sni"), [(OURS, None), (OTHER, OURS), ("192.0.2.1", OURS)])
def test_what_is_ours_is_never_raw(host: str, sni: str | None, begins: bytes) -> None:
    assert type(again(context(host, sni), begins, "tcp")) is HttpLayer


def test_a_short_method_is_http_wherever_it_leads() -> None:
    assert type(again(context(), b"P / HTTP/1.1\r\n", "tcp")) is HttpLayer


@pytest.mark.parametrize("begins", [b"\x00\x01", b"*1\r\n$4\r\nPING\r\n", b"SSH-2.0-x\r\n"])
def test_raw_bytes_of_others_stay_raw(begins: bytes) -> None:
    assert type(again(context(), begins, "tcp")) is TCPLayer


def test_http_stays_http() -> None:
    assert type(again(context(), REQUEST, "http")) is HttpLayer
    assert type(again(context(), b"POST / HT", "http")) is HttpLayer
    assert type(again(context(OURS), b"EHLO me\r\n", "http")) is HttpLayer


@pytest.mark.parametrize("begins", [b"EHLO me\r\n", b"USER me\n", h2c(None), h2c(OTHER)])
def test_what_only_looks_like_http_is_passed_on_unseen(begins: bytes) -> None:
    found = again(context(), begins, "http")
    assert isinstance(found, TCPLayer)
    assert found.flow is None, "no one is shown its bytes"


def test_http2_without_tls_that_names_our_host_is_not_passed_on() -> None:
    assert type(again(context(), h2c(OURS), "http")) is HttpLayer
    assert type(again(context(OURS), h2c(OTHER), "http")) is HttpLayer


def test_what_tls_has_agreed_on_is_not_reconsidered() -> None:
    assert type(again(context(alpn=b"h2"), b"EHLO me\r\n", "http")) is HttpLayer
    assert type(again(context(OURS, alpn=b"other"), b"\x00", "tcp")) is TCPLayer
