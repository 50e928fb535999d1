"""What a rewrite has changed, without a key in it."""

from dataclasses import replace

from pointsman.config.credentials import Literal
from pointsman.config.table import CallConfig, Target
from pointsman.routing.changes import (
    BodyChange,
    Change,
    body_changes,
    header_changes,
    place_changes,
    shown_headers,
)
from pointsman.routing.request import Body, ClientRequest
from pointsman.routing.rewriting import forward, rewrite

CLIENT = "sk-client-0123456789-cafe"
PROVIDER = "sk-provider-0123456789-f00d"
EXTRA = "extra-secret-0123456789-beef"
BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}],"top_p":0.5}'
REQUEST = ClientRequest(
    "POST",
    "http",
    "llm.test",
    80,
    f"/v1/chat/completions?key={CLIENT}&x=1",
    (
        (b"Host", b"llm.test"),
        (b"Authorization", b"Bearer " + CLIENT.encode()),
        (b"Cookie", b"session=" + CLIENT.encode()),
        (b"X-Extra", EXTRA.encode()),
        (b"X-Kept", b"same"),
        (b"Connection", b"keep-alive"),
        (b"Content-Length", b"%d" % len(BODY)),
    ),
    Body(BODY, limit=1000),
    ("192.0.2.1", 80),
)
TARGET = Target(
    "p",
    "p.test",
    path="/api/chat/completions",
    config=CallConfig(
        model="qwen",
        credential=Literal(PROVIDER),
        headers={"x-extra": EXTRA, "x-new": "secret-too-0123456789"},
        params_set={"top_p": 1, "long": "y" * 100},
    ),
)


def test_scheme_host_port_path_headers_and_body_are_compared() -> None:
    outgoing = rewrite(TARGET, REQUEST)
    assert place_changes(REQUEST, outgoing) == [
        Change("scheme", "http", "https"),
        Change("host", "llm.test", "p.test"),
        Change("port", "80", "443"),
        Change("path", "/v1/chat/completions?key=...cafe&x=1", "/api/chat/completions?x=1"),
    ]
    assert header_changes(REQUEST, outgoing) == [
        Change("authorization", "Bearer ...cafe", "Bearer ...f00d"),
        Change("cookie", "...cafe", None),
        Change("x-new", None, "...6789"),
    ]
    assert body_changes(REQUEST, outgoing) == [
        BodyChange("model", '"gpt-4o"', '"qwen"'),
        BodyChange("top_p", "0.5", "1"),
        BodyChange("long", None, '"' + "y" * 59 + "…"),
    ]


def test_no_key_is_in_what_is_shown() -> None:
    outgoing = rewrite(TARGET, replace(REQUEST, headers=REQUEST.headers * 2))
    shown = repr(
        [
            place_changes(REQUEST, outgoing),
            header_changes(REQUEST, outgoing),
            body_changes(REQUEST, outgoing),
            shown_headers(outgoing),
        ]
    )
    assert not [secret for secret in (CLIENT, PROVIDER, EXTRA, "secret-too") if secret in shown]


def test_what_is_only_forwarded_has_not_changed() -> None:
    outgoing = forward(REQUEST)
    assert place_changes(REQUEST, outgoing) == []
    assert header_changes(REQUEST, outgoing) == []
    assert body_changes(REQUEST, outgoing) == []
