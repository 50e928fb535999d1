from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.config.credentials import Literal
from pointsman.config.table import CallConfig, Target, TlsSettings
from pointsman.errors import MethodNotSupportedError
from pointsman.routing.request import Body, ClientRequest, Headers, StreamedBody
from pointsman.routing.rewriting import (
    Outgoing,
    forward,
    is_chat,
    patches_body,
    rewrite,
    without_hop_by_hop,
)

KEY = "sk-provider-0123456789"
CHAT_PATH = "/compatible-mode/v1/chat/completions"
CHAT = ClientRequest(
    "POST",
    "https",
    "llm.test",
    443,
    "/v1/chat/completions",
    ((b"Host", b"llm.test"),),
    Body(b'{"model":"m"}', limit=1 << 20),
    ("192.0.2.1", 443),
)
OWN_HOST = replace(CHAT, host="api.test", headers=((b"Host", b"api.test"),))


def target(**fields: Any) -> Target:
    """Return a target that is called with its own key."""
    defaults = {
        "provider": "p",
        "host": "api.test",
        "path": CHAT_PATH,
        "config": CallConfig(credential=Literal(KEY)),
    }
    return Target(**{**defaults, **fields})


ACCOUNTING = target(path=None, config=None)
KEYLESS = target(config=CallConfig(model="other"))


def sent(request: ClientRequest, *headers: tuple[bytes, bytes]) -> ClientRequest:
    return replace(request, headers=request.headers + headers)


def header(outgoing: Outgoing | Headers, name: bytes) -> list[bytes]:
    headers = outgoing.headers if isinstance(outgoing, Outgoing) else outgoing
    return [value for found, value in headers if found.lower() == name]


@pytest.mark.parametrize("method", ["TRACE", "trace", "TRACK"])
def test_no_key_is_sent_where_the_answer_is_the_request(method: str) -> None:
    asked = replace(CHAT, method=method)
    for keyed in (target(), target(config=CallConfig(headers={"x-api-key": KEY}))):
        with pytest.raises(MethodNotSupportedError, match=method):
            rewrite(keyed, asked)
    # A client's own key is its own to see.
    assert rewrite(ACCOUNTING, asked).method == method


# --- destination ----------------------------------------------------------------------------------


class TestDestination:
    @pytest.mark.parametrize(
        ("fields", "scheme", "port", "address", "host"),
        [
            ({}, "https", 443, ("api.test", 443), b"api.test"),
            ({"scheme": "http"}, "http", 80, ("api.test", 80), b"api.test"),
            ({"port": 8443}, "https", 8443, ("api.test", 8443), b"api.test:8443"),
            ({"scheme": "http", "port": 80}, "http", 80, ("api.test", 80), b"api.test"),
            ({"scheme": "http", "port": 443}, "http", 443, ("api.test", 443), b"api.test:443"),
            ({"address": ("10.0.0.7", 9)}, "https", 443, ("10.0.0.7", 9), b"api.test"),
            (
                {"address": ("10.0.0.7", 9), "port": 8443},
                "https",
                8443,
                ("10.0.0.7", 9),
                b"api.test:8443",
            ),
            ({"host": "2001:db8::1"}, "https", 443, ("2001:db8::1", 443), b"[2001:db8::1]"),
            (
                {"host": "::1", "scheme": "http", "port": 8000},
                "http",
                8000,
                ("::1", 8000),
                b"[::1]:8000",
            ),
        ],
    )
    def test_a_target_says_where_it_is(
        self,
        fields: dict[str, Any],
        scheme: str,
        port: int,
        address: tuple[str, int],
        host: bytes,
    ) -> None:
        outgoing = rewrite(target(**fields), CHAT)
        assert (outgoing.scheme, outgoing.port) == (scheme, port)
        assert outgoing.address == address
        assert outgoing.host == fields.get("host", "api.test")
        assert header(outgoing, b"host") == [host]

    def test_a_host_and_its_port_are_the_targets_on_its_own_host_too(self) -> None:
        there = replace(OWN_HOST, scheme="http", port=8080, headers=((b"HOST", b"api.test:8080"),))
        outgoing = rewrite(target(), there)
        assert (outgoing.scheme, outgoing.port, outgoing.address) == (
            "https",
            443,
            ("api.test", 443),
        )
        assert outgoing.headers[0] == (b"HOST", b"api.test")

    def test_hosts_are_compared_without_case_and_dot(self) -> None:
        outgoing = rewrite(target(config=None), replace(OWN_HOST, host="API.test."))
        assert outgoing.address == ("192.0.2.1", 443)

    def test_accounting_only_goes_where_the_client_sent_it(self) -> None:
        there = replace(
            OWN_HOST,
            scheme="http",
            port=8080,
            address=("192.0.2.9", 18080),
            headers=((b"Host", b"API.test:8080"),),
        )
        outgoing = rewrite(ACCOUNTING, there)
        assert (outgoing.scheme, outgoing.host, outgoing.port) == ("http", "api.test", 8080)
        assert outgoing.address == ("192.0.2.9", 18080)
        assert header(outgoing, b"host") == [b"API.test:8080"]

    @pytest.mark.parametrize(
        ("fields", "scheme", "port", "address"),
        [
            ({"address": ("10.0.0.7", 9)}, "https", 443, ("10.0.0.7", 9)),
            ({"scheme": "http"}, "http", 80, ("api.test", 80)),
            ({"port": 8443}, "https", 8443, ("api.test", 8443)),
        ],
    )
    def test_accounting_only_still_heeds_what_the_provider_names(
        self, fields: dict[str, Any], scheme: str, port: int, address: tuple[str, int]
    ) -> None:
        outgoing = rewrite(replace(ACCOUNTING, **fields), OWN_HOST)
        assert (outgoing.scheme, outgoing.port, outgoing.address) == (scheme, port, address)

    def test_a_route_to_an_accounting_only_provider_changes_the_host(self) -> None:
        outgoing = rewrite(ACCOUNTING, CHAT)
        assert (outgoing.host, outgoing.address) == ("api.test", ("api.test", 443))
        assert header(outgoing, b"host") == [b"api.test"]

    def test_tls_settings_are_the_targets(self) -> None:
        tls = TlsSettings(sni="other.test", verify=False)
        assert rewrite(target(tls=tls), CHAT).tls is tls

    def test_a_request_without_a_host_header_gets_one_unless_it_is_http2(self) -> None:
        nameless = replace(CHAT, headers=())
        assert header(rewrite(target(), nameless), b"host") == [b"api.test"]
        # HTTP/2 has its authority elsewhere.
        assert header(rewrite(target(), replace(nameless, multiplexed=True)), b"host") == []


# --- path -----------------------------------------------------------------------------------------


class TestPath:
    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "",
            "/chat/completions",
            "/v1/chat/completions",
            "/openai/v1/chat/completions",
            "/openai/deployments/gpt-4/chat/completions",
            "/v1/chat/completions/",
            CHAT_PATH,
            CHAT_PATH + "/",
        ],
    )
    @pytest.mark.parametrize("request_", [CHAT, OWN_HOST])
    def test_a_post_to_a_chat_path_goes_to_the_providers(
        self, request_: ClientRequest, path: str
    ) -> None:
        assert rewrite(target(), replace(request_, path=path)).path == CHAT_PATH

    @pytest.mark.parametrize(
        ("provider_path", "path", "expected"),
        [
            (CHAT_PATH, "/v1/chat/completions?a=b&c", CHAT_PATH + "?a=b&c"),
            (CHAT_PATH, "/?a=b", CHAT_PATH + "?a=b"),
            (CHAT_PATH, "/?", CHAT_PATH),
            ("/x/chat/completions?v=1", "/chat/completions", "/x/chat/completions?v=1"),
            ("/x/chat/completions?v=1", "/chat/completions?a=b", "/x/chat/completions?v=1&a=b"),
            ("/x/chat/completions?v=1", "/x/chat/completions", "/x/chat/completions?v=1"),
            ("/x/chat/completions?v=1", "/v1/embeddings?a=b", "/x/embeddings?v=1&a=b"),
            ("/api/generate", "/api/generate", "/api/generate"),
            ("/api/generate", "/v1/chat/completions", "/api/generate"),
        ],
    )
    def test_queries_of_the_provider_and_the_client_are_both_sent(
        self, provider_path: str, path: str, expected: str
    ) -> None:
        assert rewrite(target(path=provider_path), replace(CHAT, path=path)).path == expected

    @pytest.mark.parametrize(
        ("provider_path", "method", "path", "expected"),
        [
            (CHAT_PATH, "POST", "/v1/embeddings", "/compatible-mode/v1/embeddings"),
            (CHAT_PATH, "POST", "/embeddings", "/compatible-mode/v1/embeddings"),
            (CHAT_PATH, "POST", "/v1/completions", "/compatible-mode/v1/completions"),
            (CHAT_PATH, "POST", "/v1/responses", "/compatible-mode/v1/responses"),
            (CHAT_PATH, "GET", "/v1/models", "/compatible-mode/v1/models"),
            (CHAT_PATH, "GET", "/v1/models?limit=2", "/compatible-mode/v1/models?limit=2"),
            (CHAT_PATH, "GET", "/v1/models/gpt-4", "/compatible-mode/v1/models/gpt-4"),
            (CHAT_PATH, "GET", "/v1/chat/completions", CHAT_PATH),
            (CHAT_PATH, "GET", "/v1/chat/completions/c1/messages", CHAT_PATH + "/c1/messages"),
            (CHAT_PATH, "DELETE", "/files/f1", "/compatible-mode/v1/files/f1"),
            (CHAT_PATH, "GET", "/compatible-mode/v1/models", "/compatible-mode/v1/models"),
            (CHAT_PATH, "GET", "/compatible-mode/v1", "/compatible-mode/v1"),
            (
                CHAT_PATH,
                "GET",
                "/compatible-mode/v1beta/x",
                "/compatible-mode/v1/compatible-mode/v1beta/x",
            ),
            (CHAT_PATH, "GET", "/", "/compatible-mode/v1/"),
            (CHAT_PATH, "GET", "/health", "/compatible-mode/v1/health"),
            (CHAT_PATH, "POST", "/v1/modelspec", "/compatible-mode/v1/v1/modelspec"),
            ("/chat/completions", "GET", "/v1/models", "/v1/models"),
            ("/chat/completions", "POST", "/v1/embeddings", "/v1/embeddings"),
            ("/v1/responses", "POST", "/embeddings", "/v1/embeddings"),
            ("/api/generate", "POST", "/v1/embeddings", "/api/embeddings"),
            (
                "/models/acme/tiny/v1/chat/completions",
                "GET",
                "/v1/models",
                "/models/acme/tiny/v1/models",
            ),
            ("/models/chat/completions", "POST", "/v1/embeddings", "/models/embeddings"),
        ],
    )
    def test_other_paths_go_below_the_providers_base(
        self, provider_path: str, method: str, path: str, expected: str
    ) -> None:
        moved = replace(CHAT, method=method, path=path)
        assert rewrite(target(path=provider_path), moved).path == expected

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/api/v1/services/aigc/generation", "/api/v1/services/aigc/generation"),
            ("/v1beta/gemini:generateContent?alt=sse", "/v1beta/gemini:generateContent?alt=sse"),
            ("/v1/messages", "/v1/messages"),
            ("/v1/embeddings", "/compatible-mode/v1/embeddings"),
            ("/compatible-mode/v1/models", "/compatible-mode/v1/models"),
        ],
    )
    def test_a_providers_native_api_stays_on_its_own_host(self, path: str, expected: str) -> None:
        assert rewrite(target(), replace(OWN_HOST, path=path)).path == expected

    @pytest.mark.parametrize("request_", [CHAT, OWN_HOST])
    @pytest.mark.parametrize("kept", [target(path=None), ACCOUNTING, target(config=None)])
    @pytest.mark.parametrize("path", ["/v1/chat/completions?a=b", "/", "/v1/embeddings", "/x"])
    def test_without_a_path_or_a_config_the_clients_path_stays(
        self, request_: ClientRequest, kept: Target, path: str
    ) -> None:
        assert rewrite(kept, replace(request_, path=path)).path == path

    def test_an_empty_path_becomes_the_root(self) -> None:
        assert rewrite(target(path=None), replace(CHAT, path="")).path == "/"
        assert rewrite(target(path=None), replace(CHAT, path="?a=b")).path == "/?a=b"

    @pytest.mark.parametrize(
        ("at", "query", "expected"),
        [
            (CHAT, "key=k1", ""),
            (CHAT, "a=1&key=k1&b=2", "?a=1&b=2"),
            (CHAT, "API_KEY=k1&api-key=k2&Key=k3&monkey=1", "?monkey=1"),
            (OWN_HOST, "key=k1&alt=sse", "?alt=sse"),
        ],
    )
    def test_a_clients_key_in_the_query_is_dropped(
        self, at: ClientRequest, query: str, expected: str
    ) -> None:
        outgoing = rewrite(target(), replace(at, path="/v1/chat/completions?" + query))
        assert outgoing.path == CHAT_PATH + expected

    def test_a_clients_key_in_the_query_stays_on_the_host_it_is_for(self) -> None:
        path = "/v1/chat/completions?key=k1"
        assert rewrite(ACCOUNTING, replace(OWN_HOST, path=path)).path == path
        assert rewrite(KEYLESS, replace(OWN_HOST, path=path)).path == CHAT_PATH + "?key=k1"

    def test_the_key_in_the_providers_own_path_stays(self) -> None:
        keyed = target(path="/v1/chat/completions?key=own")
        outgoing = rewrite(keyed, replace(CHAT, path="/?key=clients"))
        assert outgoing.path == "/v1/chat/completions?key=own"


@pytest.mark.parametrize(
    ("to", "method", "path", "expected"),
    [
        (target(), "POST", "/", True),
        (target(), "POST", "", True),
        (target(), "POST", "/?a=b", True),
        (target(), "POST", "/v1/chat/completions?a=b", True),
        (target(), "POST", CHAT_PATH, True),
        (target(path="/api/generate?x=1"), "POST", "/api/generate", True),
        (target(path="/api/generate/"), "POST", "/api/generate", True),
        (target(path=None), "POST", "/", True),
        (target(), "GET", "/v1/chat/completions", False),
        (target(), "POST", "/v1/embeddings", False),
        (target(), "POST", "/v1/chat/completions/c1", False),
        (target(), "POST", "/v1/completions", False),
        (ACCOUNTING, "POST", "/v1/chat/completions", True),
        (ACCOUNTING, "POST", "/", False),
    ],
)
def test_a_chat_request_is_a_post_to_the_root_or_a_chat_path(
    to: Target, method: str, path: str, expected: bool
) -> None:
    request = replace(CHAT, method=method, path=path)
    assert is_chat(to, request) is expected
    assert patches_body(to, request) is (expected and to.config is not None)


@pytest.mark.parametrize(
    ("path", "asked", "api"),
    [
        ("/llama/invocations", "/llama/invocations", "openai-chat"),
        ("/llama/invocations", "/", "openai-chat"),
        ("/v1/completions", "/v1/completions", "openai-completions"),
        ("/v1/chat/completions", "/v1/messages", "anthropic-messages"),
        ("/v1/chat/completions", "/v1/unknown", None),
    ],
)
def test_a_chat_endpoint_speaks_chat_unless_its_path_says_otherwise(
    path: str, asked: str, api: str | None
) -> None:
    outgoing = rewrite(target(path=path), replace(CHAT, path=asked))
    assert (outgoing.api.name if outgoing.api else None) == api


# --- headers --------------------------------------------------------------------------------------

CLIENT_CREDENTIALS: Headers = (
    (b"Authorization", b"Bearer sk-client"),
    (b"Api-Key", b"client"),
    (b"X-Api-Key", b"client"),
    (b"X-Goog-Api-Key", b"client"),
    (b"OpenAI-Organization", b"org-client"),
    (b"OpenAI-Project", b"proj-client"),
)
COOKIE = (b"Cookie", b"session=client")


def names(outgoing: Outgoing) -> set[bytes]:
    return {name.lower() for name, _ in outgoing.headers}


class TestCredentials:
    @pytest.mark.parametrize("to", [target(), KEYLESS, ACCOUNTING])
    def test_none_of_the_clients_credentials_reach_another_host(self, to: Target) -> None:
        outgoing = rewrite(to, sent(CHAT, *CLIENT_CREDENTIALS, COOKIE, (b"X-Mine", b"1")))
        assert not any(b"client" in value for _, value in outgoing.headers)
        assert header(outgoing, b"x-mine") == [b"1"]

    def test_the_targets_own_key_replaces_the_clients(self) -> None:
        outgoing = rewrite(target(), sent(OWN_HOST, *CLIENT_CREDENTIALS))
        assert header(outgoing, b"authorization") == [b"Bearer " + KEY.encode()]
        assert not any(b"client" in value for _, value in outgoing.headers)

    def test_a_cookie_stays_on_the_host_it_is_for(self) -> None:
        assert header(rewrite(target(), sent(OWN_HOST, COOKIE)), b"cookie") == [COOKIE[1]]

    @pytest.mark.parametrize("to", [KEYLESS, ACCOUNTING])
    def test_without_a_key_of_its_own_the_clients_stay_on_the_same_host(self, to: Target) -> None:
        request = sent(OWN_HOST, *CLIENT_CREDENTIALS, COOKIE)
        assert set(request.headers) <= set(rewrite(to, request).headers)

    @pytest.mark.parametrize("name", ["authorization", "api-key", "x-api-key", "x-goog-api-key"])
    def test_a_credential_header_of_the_target_is_a_key_of_its_own(self, name: str) -> None:
        own = target(config=CallConfig(headers={name: "own"}))
        path = "/v1/chat/completions?key=client"
        outgoing = rewrite(own, replace(sent(OWN_HOST, *CLIENT_CREDENTIALS), path=path))
        assert header(outgoing, name.encode()) == [b"own"]
        assert not any(b"client" in value for _, value in outgoing.headers)
        assert outgoing.path == CHAT_PATH

    def test_a_key_is_put_on_requests_that_are_no_chat_too(self) -> None:
        models = replace(CHAT, method="GET", path="/v1/models", body=Body(b"", limit=100))
        outgoing = rewrite(target(), models)
        assert header(outgoing, b"authorization") == [b"Bearer " + KEY.encode()]

    def test_own_headers_replace_the_clients(self) -> None:
        own = target(config=CallConfig(headers={"x-tenant": "ours", "x-new": "1"}))
        outgoing = rewrite(own, sent(OWN_HOST, (b"X-Tenant", b"theirs"), (b"x-tenant", b"again")))
        assert header(outgoing, b"x-tenant") == [b"ours"]
        assert header(outgoing, b"x-new") == [b"1"]

    def test_the_names_of_secret_headers_are_told(self) -> None:
        own = target(config=CallConfig(credential=Literal(KEY), headers={"x-tenant": "t"}))
        secret = rewrite(own, CHAT).secret_headers
        assert secret >= {"authorization", "api-key", "x-api-key", "cookie", "x-tenant"}


class TestHopByHop:
    def test_headers_of_the_clients_connection_stay_behind(self) -> None:
        hop: Headers = (
            (b"Connection", b"keep-alive"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Proxy-Authenticate", b"Basic"),
            (b"Proxy-Authorization", b"Basic x"),
            (b"Proxy-Connection", b"keep-alive"),
            (b"TE", b"trailers"),
            (b"Trailer", b"X-Sum"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Upgrade", b"h2c"),
            (b"Expect", b"100-continue"),
        )
        outgoing = rewrite(ACCOUNTING, sent(OWN_HOST, *hop, (b"X-Mine", b"1")))
        assert names(outgoing) == {b"host", b"x-mine", b"content-length"}

    def test_headers_that_connection_names_stay_behind(self) -> None:
        outgoing = rewrite(
            ACCOUNTING,
            sent(
                OWN_HOST,
                (b"Connection", b"keep-alive, X-Hop"),
                (b"connection", b" x-other"),
                (b"x-hop", b"1"),
                (b"X-Other", b"2"),
                (b"X-Mine", b"3"),
            ),
        )
        assert names(outgoing) == {b"host", b"x-mine", b"content-length"}

    def test_connection_can_name_neither_host_nor_our_own_headers(self) -> None:
        named = (b"Connection", b"host, authorization, content-length")
        outgoing = rewrite(target(), sent(CHAT, named))
        assert names(outgoing) == {b"host", b"authorization", b"content-length"}

    def test_a_websocket_upgrade_is_kept(self) -> None:
        upgrade: Headers = (
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"WebSocket"),
            (b"Sec-WebSocket-Key", b"x"),
        )
        handshake = replace(
            sent(CHAT, *upgrade, (b"Keep-Alive", b"5")),
            method="GET",
            path="/v1/realtime?model=m",
            body=Body(b"", limit=100),
        )
        outgoing = rewrite(target(), handshake)
        assert set(upgrade) <= set(outgoing.headers)
        assert outgoing.path == "/compatible-mode/v1/realtime?model=m"
        assert names(outgoing).isdisjoint({b"keep-alive", b"content-length"})

    def test_another_upgrade_is_not_kept(self) -> None:
        h2c = ((b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"))
        outgoing = rewrite(ACCOUNTING, sent(OWN_HOST, *h2c, (b"HTTP2-Settings", b"x")))
        assert names(outgoing) == {b"host", b"content-length"}

    @pytest.mark.parametrize(
        ("multiplexed", "value", "expected"),
        [
            (True, b"trailers", [b"trailers"]),
            (True, b"trailers, deflate", []),
            (False, b"trailers", []),
        ],
    )
    def test_the_one_te_that_http2_has_is_kept(
        self, multiplexed: bool, value: bytes, expected: list[bytes]
    ) -> None:
        request = replace(sent(CHAT, (b"te", value)), multiplexed=multiplexed)
        assert header(rewrite(target(), request), b"te") == expected

    @pytest.mark.parametrize(
        ("method", "raw", "expected"),
        [
            ("POST", b'{"model":"m"}', [b"13"]),
            ("POST", b"", [b"0"]),
            ("PUT", b"", [b"0"]),
            ("PATCH", b"", [b"0"]),
            ("GET", b"", []),
            ("DELETE", b"", []),
            ("DELETE", b"abc", [b"3"]),
        ],
    )
    def test_content_length_is_the_length_of_what_is_sent(
        self, method: str, raw: bytes, expected: list[bytes]
    ) -> None:
        framed = sent(OWN_HOST, (b"Content-Length", b"99"), (b"Transfer-Encoding", b"chunked"))
        there = replace(framed, method=method, path="/v1/files", body=Body(raw, limit=100))
        outgoing = rewrite(target(), there)
        assert header(outgoing, b"content-length") == expected
        assert not header(outgoing, b"transfer-encoding")


class TestStreamedBody:
    upload = replace(OWN_HOST, path="/v1/files", body=StreamedBody())

    def test_a_length_that_the_client_told_stays(self) -> None:
        length: Headers = ((b"Content-Length", b"99000000"),)
        outgoing = rewrite(target(), sent(self.upload, *length))
        assert header(outgoing, b"content-length") == [b"99000000"]
        assert header(outgoing, b"transfer-encoding") == []

    def test_without_a_length_it_goes_in_chunks(self) -> None:
        chunked = (b"Transfer-Encoding", b"chunked")
        outgoing = rewrite(target(), sent(self.upload, chunked))
        assert header(outgoing, b"transfer-encoding") == [b"chunked"]
        assert header(outgoing, b"content-length") == []

    def test_http2_frames_it_itself(self) -> None:
        outgoing = rewrite(target(), replace(self.upload, multiplexed=True))
        assert names(outgoing).isdisjoint({b"transfer-encoding", b"content-length"})

    @pytest.mark.parametrize("to", [target(), ACCOUNTING])
    def test_it_is_not_read(self, to: Target) -> None:
        outgoing = rewrite(to, replace(self.upload, path="/v1/chat/completions"))
        assert (outgoing.body, outgoing.model, outgoing.stream) == (b"", None, False)
        assert not outgoing.asked_usage

    def test_all_but_the_body_is_rewritten(self) -> None:
        outgoing = rewrite(target(), replace(sent(CHAT, *CLIENT_CREDENTIALS), body=StreamedBody()))
        assert (outgoing.host, outgoing.path) == ("api.test", CHAT_PATH)
        assert header(outgoing, b"authorization") == [b"Bearer " + KEY.encode()]
        assert header(outgoing, b"x-api-key") == []


class TestForward:
    header_names = st.text(
        st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8
    ).map(lambda name: b"X-" + name.encode())
    headers = st.lists(st.tuples(header_names, st.binary(max_size=8)), max_size=6)

    @given(headers, st.sampled_from(["GET", "POST"]), st.binary(max_size=40))
    def test_observing_sends_what_the_client_sent(
        self, headers: list[tuple[bytes, bytes]], method: str, raw: bytes
    ) -> None:
        body = Body(raw, limit=100)
        path = "/v1/chat/completions?key=k"
        request = replace(sent(CHAT, *headers), method=method, path=path, body=body)
        outgoing = forward(request)
        assert (outgoing.method, outgoing.scheme, outgoing.host) == (method, "https", "llm.test")
        assert (outgoing.port, outgoing.path, outgoing.address) == (443, path, CHAT.address)
        assert outgoing.body is raw
        kept = tuple(pair for pair in outgoing.headers if pair[0] != b"content-length")
        assert kept == request.headers
        assert not outgoing.asked_usage

    def test_observing_keeps_the_clients_credentials(self) -> None:
        request = sent(CHAT, *CLIENT_CREDENTIALS, COOKIE)
        assert set(request.headers) <= set(forward(request).headers)


class TestAnswerHeaders:
    def test_headers_of_the_providers_connection_stay_behind(self) -> None:
        answer: Headers = (
            (b"Content-Type", b"text/event-stream"),
            (b"Connection", b"close, X-Hop"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Proxy-Authenticate", b"Basic"),
            (b"Trailer", b"X-Sum"),
            (b"Alt-Svc", b'h3=":443"'),
            (b"x-hop", b"1"),
            (b"Set-Cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
            (b"Content-Length", b"5"),
        )
        assert without_hop_by_hop(answer) == (answer[0], *answer[-3:])

    @pytest.mark.parametrize("connection", [b"close", b"transfer-encoding", b"close, TE"])
    def test_the_framing_stays(self, connection: bytes) -> None:
        framing = (b"Transfer-Encoding", b"chunked")
        assert without_hop_by_hop([(b"connection", connection), framing]) == (framing,)


@pytest.mark.parametrize("body", [Body(b'{"contents":[]}', limit=100), StreamedBody()])
@pytest.mark.parametrize("to", [target(), ACCOUNTING])
@pytest.mark.parametrize(
    ("verb", "streams"), [("generateContent", False), ("streamGenerateContent", True)]
)
def test_geminis_path_tells_the_model_and_the_stream(
    to: Target, body: Body, verb: str, streams: bool
) -> None:
    asked = replace(CHAT, path=f"/v1beta/models/gemini-2.5-pro:{verb}?alt=sse", body=body)
    outgoing = rewrite(to, asked)
    assert (outgoing.model, outgoing.stream) == ("gemini-2.5-pro", streams)
