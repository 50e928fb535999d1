import gzip
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    RequestError,
    UnsupportedEncodingError,
)
from pointsman.routing.request import Body, ClientRequest, Headers, StreamedBody

LIMIT = 1 << 20


def body(raw: bytes, encoding: str = "", *, limit: int = LIMIT) -> Body:
    return Body(raw, encoding, limit=limit)


def request(*headers: tuple[bytes, bytes], method: str = "POST", raw: bytes = b"") -> ClientRequest:
    address = ("192.0.2.1", 443)
    return ClientRequest(
        method, "https", "llm.test", 443, "/v1?q=1", headers, body(raw), address=address
    )


class TestFields:
    def test_values_are_the_bytes_that_were_sent(self) -> None:
        fields = body(b' { "a" : [1 ,  2] , "b":"\\u0041" } ').fields
        assert {name: bytes(raw) for name, raw in fields.items()} == {
            "a": b"[1 ,  2]",
            "b": b'"\\u0041"',
        }

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"   ",
            b"[]",
            b'"text"',
            b"null",
            b"{",
            b'{"a":1}x',
            b'{"a":1,}',
            b'{"a":tru}',
            b'{"\xff":1}',
            b"model=gpt-4",
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        ],
    )
    def test_what_is_no_json_object_is_malformed(self, raw: bytes) -> None:
        with pytest.raises(MalformedBodyError, match="not a JSON object"):
            _ = body(raw).fields
        assert body(raw).lenient_fields == {}

    @pytest.mark.parametrize("value", [b'"a cut emoji: \\ud83d"', b"NaN"])
    def test_what_python_clients_send_though_it_is_no_strict_json_is_read(
        self, value: bytes
    ) -> None:
        fields = body(b'{"model": "m", "x": ' + value + b"}").fields
        assert {name: bytes(raw) for name, raw in fields.items()} == {"model": b'"m"', "x": value}

    def test_a_body_of_an_unknown_coding_says_what_can_be_sent(self) -> None:
        with pytest.raises(UnsupportedEncodingError, match=r"'lzma'.*uncompressed, or as gzip"):
            _ = body(b"{}", "lzma").fields
        assert body(b"{}", "lzma").lenient_fields == {}

    @pytest.mark.parametrize("raw", [b"{}", gzip.compress(b"{}", mtime=0)[:-3], b"\x1f\x8b"])
    def test_a_body_that_is_not_what_its_coding_says_is_unsupported(self, raw: bytes) -> None:
        with pytest.raises(UnsupportedEncodingError):
            _ = body(raw, "gzip").fields

    def test_a_body_that_unfolds_past_the_limit_is_too_large(self) -> None:
        bomb = gzip.compress(b'{"a":"' + b"x" * LIMIT + b'"}', mtime=0)
        with pytest.raises(BodyTooLargeError, match=f"{LIMIT} bytes"):
            _ = body(bomb, "gzip").fields
        assert body(bomb, "gzip").lenient_fields == {}

    @given(st.binary(max_size=80), st.sampled_from(["", "gzip", "br", "zstd", "deflate", "x"]))
    def test_no_bytes_do_worse_than_a_request_error(self, raw: bytes, encoding: str) -> None:
        fed = body(raw, encoding)
        with suppress(RequestError):
            assert isinstance(fed.fields, dict)
        assert isinstance(fed.lenient_fields, dict)
        assert fed.string("model", "id") is None


def test_a_body_that_streams_by_has_no_fields() -> None:
    passing = StreamedBody()
    assert (passing.streamed, passing.raw, passing.lenient_fields) == (True, b"", {})
    assert passing.string("model") is None
    assert not body(b"").streamed


class TestString:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ('"gpt-4o"', "gpt-4o"),
            ('"g\\u0070t"', "gpt"),
            ('"🚂"', "🚂"),
            ("7", "7"),
            ("1.5", "1.5"),
            ("12345678901234567890123", "12345678901234567890123"),
            ("0", "0"),
            ('""', None),
            ("null", None),
            ("true", None),
            ("false", None),
            ("[]", None),
            ('["a"]', None),
            ("{}", None),
            ("1" * 5000, None),
            ("1e999", None),
        ],
    )
    def test_strings_and_numbers_have_a_text(self, value: str, expected: str | None) -> None:
        assert body(b'{"model": %b }' % value.encode()).string("model") == expected

    @pytest.mark.parametrize("value", [b'"\xff"', b'"\\ud83d"', b'"\\ud83d tail of a string"'])
    def test_what_is_no_text_is_absent(self, value: bytes) -> None:
        assert body(b'{"model":%b}' % value).string("model") is None

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            (("metadata", "user_id"), "u1"),
            (("metadata", "deep", "er"), "3"),
            (("metadata", "deep"), None),
            (("metadata", "other"), None),
            (("metadata", "user_id", "more"), None),
            (("list", "0"), None),
            (("other", "user_id"), None),
            (("null", "user_id"), None),
            (("metadata.user_id",), None),
            ((), None),
        ],
    )
    def test_a_path_leads_through_nested_objects(
        self, path: tuple[str, ...], expected: str | None
    ) -> None:
        nested = {"metadata": {"user_id": "u1", "deep": {"er": 3}}, "list": ["a"], "null": None}
        assert body(json.dumps(nested, indent=2).encode()).string(*path) == expected

    def test_a_compressed_body_is_read(self) -> None:
        assert body(gzip.compress(b'{"model":"m"}', mtime=0), "gzip").string("model") == "m"


class TestHeaderValues:
    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ((), {}),
            (((b"X-User", b"Ann"),), {"x-user": "Ann"}),
            (((b"A", b"1"), (b"b", b"2"), (b"a", b"3")), {"a": "1,3", "b": "2"}),
            (((b"a", b""), (b"A", b"")), {"a": ","}),
            (((b"a", b"\xff\xfe"),), {"a": "\ufffd\ufffd"}),
            (((b"a", "é".encode()),), {"a": "é"}),
            (((b"\xff", b"1"),), {"\ufffd": "1"}),
        ],
    )
    def test_names_are_folded_and_repeated_ones_joined(
        self, headers: Headers, expected: dict[str, str]
    ) -> None:
        assert request(*headers).header_values == expected


class TestCookie:
    @pytest.mark.parametrize(
        ("cookies", "expected"),
        [
            ((), None),
            ((b"",), None),
            ((b"session=s1",), "s1"),
            ((b"a=1; session=s1; b=2",), "s1"),
            ((b"a=1;session=s1",), "s1"),
            ((b"a=1", b"session=s1"), "s1"),  # HTTP/2 sends each in a header of its own
            ((b'session="s1"',), "s1"),
            ((b"session=a=b",), "a=b"),
            ((b"session=",), ""),
            ((b"session",), None),
            ((b"Session=s1",), None),
            ((b"xsession=s1",), None),
            ((b"a=session=s1",), None),
            ((b"session=first; session=second",), "first"),
        ],
    )
    def test_a_cookie_is_found_by_its_exact_name(
        self, cookies: tuple[bytes, ...], expected: str | None
    ) -> None:
        assert request(*((b"Cookie", c) for c in cookies)).cookie("session") == expected


class TestModel:
    def test_the_model_is_the_bodys(self) -> None:
        assert request(raw=b'{"model":"m"}').model == "m"

    @pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"text", b'{"model":{"id":1}}'])
    def test_a_body_without_a_model_has_none(self, raw: bytes) -> None:
        assert request(raw=raw).model is None

    def test_a_model_in_the_path_is_what_is_asked_for(self) -> None:
        path = "/v1beta/models/gemini-2.5-pro:generateContent?key=k"
        asked = replace(request(raw=b'{"model":"models/other"}'), path=path)
        assert asked.model == "gemini-2.5-pro"
        assert replace(asked, method="GET").model is None

    def test_only_a_post_has_a_model(self) -> None:
        assert request(raw=b'{"model":"m"}', method="PUT").model is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/v1?a=b", "/v1"), ("/v1?", "/v1"), ("/v1", "/v1"), ("?a", ""), ("", "")],
)
def test_the_bare_path_has_no_query(path: str, expected: str) -> None:
    assert replace(request(), path=path).bare_path == expected
