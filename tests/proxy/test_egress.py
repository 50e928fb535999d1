"""The options of the guard, and what it does with connections that carry no name."""

import pytest
from mitmproxy import exceptions
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import HttpLayer, TCPLayer
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.test.tflow import tclient_conn

from pointsman.config.hosts import known_llm_hosts, parse_hosts
from pointsman.config.table import RoutingTable
from pointsman.proxy.egress import Refused, guarded_hosts, refuse_raw, refuse_tls
from pointsman.proxy.router import Router
from pointsman.telemetry.exchange import Exchange

KNOWN = "api.deepseek.com"


@pytest.fixture
def router() -> Router:
    router = Router()
    router.guard(**guarded_hosts([], "deny"))
    return router


def context(host: str | None) -> Context:
    found = Context(tclient_conn(), Options())
    found.server.address = (host, 443) if host else None
    return found


def test_the_options_say_which_hosts_are_exempt_and_which_are_denied() -> None:
    guarded = guarded_hosts(["a.example", "*.b.example"], "pass")
    assert "x.b.example" in guarded["passthrough"]
    assert not guarded["denied"]
    assert guarded_hosts([], "deny")["denied"] is known_llm_hosts()


@pytest.mark.parametrize(
    ("passthrough", "unknown", "message"),
    [
        ([], "block", "llm_unknown: 'block' is neither pass nor deny"),
        (["https://a.example"], "pass", "llm_passthrough: 'https://a.example' is not a host name"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    passthrough: list[str], unknown: str, message: str
) -> None:
    with pytest.raises(exceptions.OptionsError, match=message):
        guarded_hosts(passthrough, unknown)


def test_the_guard_outlives_a_reload_of_the_rules(router: Router) -> None:
    router.go_live(RoutingTable())
    assert router.table.refuses(KNOWN)
    router.guard(passthrough=parse_hosts([KNOWN]), denied=known_llm_hosts())
    assert not router.table.refuses(KNOWN)


def test_a_connection_to_the_proxy_itself_is_not_refused(router: Router) -> None:
    hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"
    assert refuse_tls(router, context(None), hello) is None
    assert refuse_tls(router, context(KNOWN), b"GET / HTTP/1.1\r\n") is None


def test_raw_bytes_to_a_denied_host_are_refused_and_http_is_left_to_be_answered(
    router: Router,
) -> None:
    around = context(KNOWN)
    raw = TCPLayer(around)
    refused = refuse_raw(router, around, raw)
    assert isinstance(refused, Refused)
    assert around.layers == [refused]
    assert [type(command) for command in refused.handle_event(events.Start())] == [
        commands.CloseConnection
    ]
    http = HttpLayer(around, HTTPMode.transparent)
    assert refuse_raw(router, around, http) is http
    assert refuse_raw(router, around, None) is None


def test_raw_bytes_to_any_other_host_pass(router: Router) -> None:
    around = context("192.0.2.1")
    raw = TCPLayer(around)
    assert refuse_raw(router, around, raw) is raw


def test_a_refused_connection_is_recorded_once_with_its_client(router: Router) -> None:
    seen: list[Exchange] = []
    router.sinks.put("test", seen.append)
    around = context(KNOWN)
    refuse_raw(router, around, TCPLayer(around))
    [record] = seen
    assert (record.host, record.flags, record.status) == (KNOWN, ["UAEX"], None)
    assert record.client == "127.0.0.1:22"
    assert record.ended is not None
