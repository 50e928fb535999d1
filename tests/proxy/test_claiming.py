import pytest
from mitmproxy import http
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test.tflow import tclient_conn

from pointsman.config.table import Route, RoutingTable
from pointsman.errors import AmbiguousHostError, MisdirectedError, RequestError
from pointsman.proxy.claiming import claim, connection_names, host_of, is_ours, port_of

ROUTE = Route("r", "llm.test", ())
WILD = Route("w", "*.wild.test", ())
TABLE = RoutingTable({"llm.test": ROUTE}, ((".wild.test", WILD),))
OTHER = "other.test"


def context(
    sni: str | None = None, host: str | None = "192.0.2.1", mode: str = "regular"
) -> Context:
    """Return a connection to a host, with a server name of its TLS."""
    client = tclient_conn()
    client.sni, client.proxy_mode = sni, ProxyMode.parse(mode)
    found = Context(client, Options())
    found.server.address = (host, 443) if host else None
    return found


def request(*hosts: str, authority: str = "", host: str = "192.0.2.1") -> http.Request:
    """Return a request with these Host headers."""
    made = http.Request.make("POST", f"http://{host}/")
    made.headers = http.Headers([(b"Host", name.encode()) for name in hosts])
    made.data.authority = authority.encode()
    return made


def refusal(*hosts: str, authority: str = "", around: Context) -> type[RequestError] | None:
    """Return with what error a request of ours is refused."""
    found = claim(TABLE, request(*hosts, authority=authority), around, HTTPMode.transparent)
    assert found
    return type(found[2]) if found[2] else None


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [
        ("llm.test", "llm.test", None),
        ("llm.test:", "llm.test", None),
        ("llm.test:8443", "llm.test", 8443),
        ("user:x@llm.test:80", "llm.test", 80),
        ("a@b@llm.test", "llm.test", None),
        (" llm.test ", "llm.test", None),
        ("LLM.test.", "LLM.test.", None),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("[2001:db8::1]", "2001:db8::1", None),
        ("llm.test:http", "llm.test", None),
        ("llm.test:65535", "llm.test", 65535),
        ("llm.test:65536", "llm.test", None),
        ("llm.test:0", "llm.test", None),
        ("llm.test:" + 5000 * "9", "llm.test", None),
        ("llm.test:\u0664\u0664", "llm.test", None),
        ("443", "443", None),
        ("", "", None),
    ],
)
def test_an_authority_is_taken_apart(authority: str, host: str, port: int | None) -> None:
    assert (host_of(authority), port_of(authority)) == (host, port)


def test_a_host_with_two_dots_at_its_end_is_refused() -> None:
    around = context()
    assert refusal("LLM.test.", around=around) is None
    assert refusal("llm.test..", around=around) is AmbiguousHostError
    assert refusal("other.test", around=context("llm.test..")) is AmbiguousHostError
    made = request()
    made.data.host = "llm.test.."
    found = claim(TABLE, made, around, HTTPMode.regular)
    assert found
    assert isinstance(found[2], AmbiguousHostError)


@pytest.mark.parametrize("mode", [HTTPMode.transparent, HTTPMode.regular])
def test_a_host_with_a_port_that_can_not_be_is_refused(mode: HTTPMode) -> None:
    for port, refused in ((443, False), (0, True), (65536, True), ("9" * 5000, True)):
        name = f"llm.test:{port}"
        for made in (
            request(name, host="llm.test"),
            request(authority=name, host="llm.test"),
            request("llm.test", authority=name, host="llm.test"),
        ):
            found = claim(TABLE, made, context(), mode)
            assert found
            assert isinstance(found[2], AmbiguousHostError) is refused


@pytest.mark.parametrize(
    ("around", "names"),
    [
        (context("a.test", "b.test"), ["a.test", "b.test"]),
        (context("a.test", "192.0.2.1"), ["a.test"]),
        (context(None, "2001:db8::1"), []),
        (context(None, "[2001:db8::1]"), []),
        (context(None, None), []),
    ],
)
def test_a_connection_goes_by_its_names_and_by_no_address(
    around: Context, names: list[str]
) -> None:
    assert connection_names(around) == names


@pytest.mark.parametrize("name", ["llm.test", "LLM.TEST", "llm.test.", "x.wild.test"])
def test_a_connection_is_ours_by_either_name(name: str) -> None:
    assert is_ours(TABLE, context(sni=name))
    assert is_ours(TABLE, context(host=name))
    assert is_ours(TABLE, context(OTHER, name))
    assert not is_ours(TABLE, context(OTHER, OTHER))


def test_the_request_line_of_an_absolute_form_decides() -> None:
    named = request(OTHER, host="llm.test")
    assert claim(TABLE, named, context(), HTTPMode.regular) == (ROUTE, "llm.test", None)
    assert claim(TABLE, request("llm.test", host=OTHER), context(), HTTPMode.upstream) is None


@pytest.mark.parametrize(
    ("hosts", "around", "host"),
    [
        (("llm.test",), context(), "llm.test"),
        (("user:x@LLM.test.:80",), context(), "LLM.test."),
        ((), context(sni="llm.test"), "llm.test"),
        (("",), context(host="llm.test"), "llm.test"),
        (("x.wild.test",), context("llm.test"), "x.wild.test"),
    ],
)
def test_any_name_of_ours_claims_a_request(
    hosts: tuple[str, ...], around: Context, host: str
) -> None:
    found = claim(TABLE, request(*hosts), around, HTTPMode.transparent)
    assert found
    assert found[1:] == (host, None)


def test_what_no_name_claims_is_not_ours() -> None:
    for named in (request(), request(OTHER), request(OTHER, "third.test", authority=OTHER)):
        assert claim(TABLE, named, context(OTHER, OTHER), HTTPMode.transparent) is None


@pytest.mark.parametrize(
    "hosts",
    [("llm.test", OTHER), (OTHER, "llm.test"), ("llm.test", "llm.test"), ("llm.test, " + OTHER,)],
)
def test_more_than_one_host_is_ambiguous(hosts: tuple[str, ...]) -> None:
    assert refusal(*hosts, around=context()) is AmbiguousHostError


def test_a_host_beside_an_authority_must_say_the_same() -> None:
    around = context("llm.test")
    assert refusal("LLM.test.:443", authority="llm.test", around=around) is None
    assert refusal(OTHER, authority="llm.test", around=around) is AmbiguousHostError


@pytest.mark.parametrize("around", [context("llm.test"), context(host="llm.test")])
def test_another_host_than_the_connections_is_misdirected(around: Context) -> None:
    assert refusal(OTHER, around=around) is MisdirectedError
    assert refusal(authority=OTHER, around=around) is MisdirectedError


def test_a_reverse_proxy_may_be_called_by_a_name_of_its_own() -> None:
    around = context(host="llm.test", mode="reverse:https://llm.test")
    assert refusal("localhost:8080", around=around) is None
    assert refusal("localhost", "llm.test", around=around) is AmbiguousHostError
