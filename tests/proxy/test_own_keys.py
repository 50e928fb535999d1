"""The clients' own keys: never on the flow, always on the wire."""

from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.test import tflow

from pointsman.proxy.own_keys import Masks, OwnKeys

KEY = b"sk-proj-0123456789abcdef"
HEADERS = (
    (b"Authorization", b"Bearer " + KEY),
    (b"x-api-key", KEY),
    (b"content-type", b"application/json"),
)


def flow_of(
    path: bytes = b"/v1/models", fields: tuple[tuple[bytes, bytes], ...] = HEADERS
) -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.request.headers.fields = fields
    flow.request.data.path = path
    return flow


def test_masks_stand_on_the_flow_and_the_keys_behind_them() -> None:
    path = b"/v1/models?alt=sse&key=" + KEY
    flow = flow_of(path)
    masks = Masks(flow, None)
    masks.put()
    shown = flow.request.data
    assert KEY not in b"".join(value for _, value in shown.headers.fields) + shown.path
    assert shown.path.startswith(b"/v1/models?alt=sse&key=")
    assert masks.headers() == HEADERS
    assert masks.path() == path.decode()
    assert masks.behind(b"authorization") == b"Bearer " + KEY
    assert masks.behind(b"proxy-authorization") is None


def test_put_again_they_take_in_a_key_that_was_typed_meanwhile() -> None:
    flow = flow_of()
    masks = Masks(flow, None)
    masks.put()
    before = flow.request.headers.fields
    masks.put()
    assert flow.request.headers.fields == before
    flow.request.headers["authorization"] = "Bearer typed-0123456789"
    masks.put()
    assert "typed-0123456789" not in flow.request.headers["authorization"]
    assert (b"Authorization", b"Bearer typed-0123456789") in masks.headers()
    assert masks.headers()[1:] == HEADERS[1:]


def test_a_replay_gets_the_keys_of_its_original() -> None:
    kept, flow = OwnKeys(), flow_of(b"/?key=" + KEY)
    Masks(flow, kept).put()
    copy = flow.copy()
    copy.is_replay = "request"
    masks = Masks(copy, kept)
    masks.put()
    assert (masks.headers(), masks.path()) == (HEADERS, f"/?key={KEY.decode()}")
    assert copy.request.headers.fields == flow.request.headers.fields
    # Who is no replay can name an original, but gets nothing of it.
    forged = flow.copy()
    stranger = Masks(forged, kept)
    stranger.put()
    assert KEY not in b"".join(value for _, value in stranger.headers())


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"authorization", b"X-Api-Key", b"cookie", b"accept", b"x-api-key "]),
            st.binary(max_size=40),
        ),
        max_size=6,
    )
)
def test_whatever_is_sent_goes_to_the_wire_as_it_was(fields: list[tuple[bytes, bytes]]) -> None:
    flow = flow_of(fields=tuple(fields))
    masks = Masks(flow, None)
    masks.put()
    masks.put()
    assert masks.headers() == tuple(fields)
