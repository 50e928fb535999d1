"""What a rewrite does to the body of a chat request."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import brotli  # type: ignore[import-untyped]
import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pointsman.config.table import CallConfig, StreamUsage, Target
from pointsman.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    ModelMissingError,
    UnsupportedEncodingError,
)
from pointsman.routing.request import Body, ClientRequest
from pointsman.routing.rewriting import Outgoing, map_model, rewrite

CHAT = ClientRequest(
    "POST",
    "https",
    "llm.test",
    443,
    "/v1/chat/completions",
    ((b"Host", b"llm.test"), (b"Content-Type", b"application/json")),
    Body(b"", limit=1 << 20),
    ("192.0.2.1", 443),
)
ACCOUNTING = Target("p", "api.test")


def target(*, stream_usage: StreamUsage = "inject", **config: Any) -> Target:
    call = CallConfig(**config)
    return Target("p", "api.test", config=call, stream_usage=stream_usage)


def chat(raw: bytes, encoding: str = "") -> ClientRequest:
    encoded = ((b"Content-Encoding", encoding.encode()),) if encoding else ()
    body = Body(raw, encoding, limit=16 << 20)
    return replace(CHAT, headers=CHAT.headers + encoded, body=body)


def patched(to: Target, **fields: Any) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(rewrite(to, chat(json.dumps(fields).encode())).body)
    return sent


def header(outgoing: Outgoing, name: bytes) -> list[bytes]:
    return [value for found, value in outgoing.headers if found.lower() == name]


# --- bytes ----------------------------------------------------------------------------------------

space = st.text(" \t\r\n", max_size=2)
scalars = st.one_of(
    st.sampled_from(["null", "true", "-0", "1.50", "1E+2", "123456789012345678901234567890"]),
    st.tuples(st.text(max_size=6), st.booleans()).map(
        lambda t: json.dumps(t[0], ensure_ascii=t[1])
    ),
    st.sampled_from(['"\\u0041"', '"\\/"', '"🚂"', '"\\ud83d\\ude82"']),
)


def containers(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def joined(items: list[str], gap: str, brackets: str) -> str:
        return brackets[0] + gap + f"{gap},{gap}".join(items) + gap + brackets[1]

    arrays = st.builds(joined, st.lists(children, max_size=3), space, st.just("[]"))
    members = st.lists(children.map('"k": {}'.format), max_size=3)  # one name again and again
    return st.one_of(arrays, st.builds(joined, members, space, st.just("{}")))


values = st.recursive(scalars, containers, max_leaves=6)
field_names = st.text("abcxyz_", min_size=1, max_size=6).map(lambda name: f"f_{name}")
bodies = st.dictionaries(field_names, values, max_size=5)


def written(fields: dict[str, str], gap: str) -> bytes:
    members = (f'{gap}"{name}"{gap}:{gap}{value}{gap}' for name, value in fields.items())
    return f"{gap}{{{','.join(members)}}}{gap}".encode("utf-8", "surrogatepass")


class TestBytes:
    @given(bodies, space)
    def test_values_that_are_not_owned_keep_their_bytes_and_their_order(
        self, fields: dict[str, str], gap: str
    ) -> None:
        sent = {"model": '"theirs"', **fields, "stream": "true"}
        outgoing = rewrite(target(model="ours"), chat(written(sent, gap)))
        expected = {**sent, "model": '"ours"', "stream_options": '{"include_usage":true}'}
        assert outgoing.body == written(expected, "")
        assert header(outgoing, b"content-length") == [b"%d" % len(outgoing.body)]

    @given(bodies, space)
    def test_a_body_that_needs_no_change_is_the_very_same(
        self, fields: dict[str, str], gap: str
    ) -> None:
        raw = written({**fields, "model": '"m"', "stream": "false"}, gap)
        request = chat(raw)
        assert rewrite(target(model="m", stream=False), request).body is raw
        assert rewrite(target(), request).body is raw
        assert rewrite(ACCOUNTING, request).body is raw

    @pytest.mark.parametrize(
        ("raw", "sent"),
        [
            (
                b'{"model":"dear", "messages": [ 1 ],"model":"m","stream":false}',
                b'{"model":"m","messages":[ 1 ],"stream":false}',
            ),
            (b'{"stream":true,"model":"m","stream":false}', b'{"stream":false,"model":"m"}'),
            (
                b'{"mod\\u0065l":"dear","model":"m","stream":false}',
                b'{"model":"m","stream":false}',
            ),
            (
                '{"model":"dear","model":"m","stream":false}'.encode("utf-16"),
                b'{"model":"m","stream":false}',
            ),
        ],
        ids=["plain", "stream", "escaped", "utf-16"],
    )
    def test_an_owned_field_that_stands_twice_is_sent_once(self, raw: bytes, sent: bytes) -> None:
        """A provider may take the first one where our decision took the last."""
        outgoing = rewrite(target(model="m", stream=False), chat(raw))
        assert outgoing.body == sent
        assert header(outgoing, b"content-length") == [b"%d" % len(sent)]

    def test_so_is_a_parameter_that_the_rules_have_a_default_for(self) -> None:
        raw = b'{"model":"m","n":1,"n":2}'
        assert rewrite(target(params_default={"n": 0}), chat(raw)).body == b'{"model":"m","n":2}'

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"model":"m","messages":[{"role":"model","model":1}],"stream":false}',
            b'{"x":1, "x":2,"model":"m","stream":false}',
            b'{"model":"m","user":"\\u0041","stream":false}',
        ],
        ids=["deeper", "not owned", "escaped"],
    )
    def test_a_name_that_stands_elsewhere_too_changes_nothing(self, raw: bytes) -> None:
        assert rewrite(target(model="m", stream=False), chat(raw)).body is raw

    def test_without_a_config_nothing_is_owned(self) -> None:
        raw = b'{"model":"dear","model":"m"}'
        assert rewrite(ACCOUNTING, chat(raw)).body is raw

    @given(bodies)
    def test_a_second_rewrite_knows_nothing_of_the_first(self, fields: dict[str, str]) -> None:
        request = chat(written({"model": '"m"', **fields}, " "))
        first = rewrite(target(model="a", params_set={"f_a": 1}), request)
        rewrite(target(model="b", stream=True), request)
        assert rewrite(target(model="a", params_set={"f_a": 1}), request) == first

    def test_what_is_not_chat_is_not_read(self) -> None:
        raw = b'{"model":"m"} and more'
        request = replace(chat(raw), path="/v1/embeddings")
        assert rewrite(target(model="ours"), request).body is raw

    def test_only_the_top_level_of_four_megabytes_is_decoded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # No decoder could take this string: it is not UTF-8. It passes, as nothing looks inside.
        messages = b'[{"role":"user","content":"%b"}]' % (b"\xff" * (4 << 20))
        request = chat(b'{"messages": %b, "model": "m", "stream": true}' % messages)
        decoded: list[int] = []
        decode = msgspec.json.decode

        def spy(value: Any, **options: Any) -> Any:
            decoded.append(len(bytes(value)))
            return decode(value, **options)

        monkeypatch.setattr(msgspec.json, "decode", spy)
        outgoing = rewrite(target(model="ours", stream=True), request)
        assert sum(decoded) < 100
        assert all(isinstance(value, msgspec.Raw) for value in request.body.fields.values())
        start, end = b'{"messages":', b',"model":"ours","stream":true,'
        assert outgoing.body.startswith(start + messages + end)


class TestEncoding:
    @pytest.mark.parametrize(
        ("encoding", "encode"),
        [
            ("gzip", gzip.compress),
            ("br", brotli.compress),
            ("zstd", zstandard.ZstdCompressor().compress),
        ],
    )
    def test_a_compressed_body_is_sent_plain_once_it_is_patched(
        self, encoding: str, encode: Callable[[bytes], bytes]
    ) -> None:
        request = chat(encode(b'{"model": "m", "n": 1}'), encoding)
        outgoing = rewrite(target(model="ours"), request)
        assert outgoing.body == b'{"model":"ours","n":1}'
        assert header(outgoing, b"content-encoding") == []
        assert header(outgoing, b"content-length") == [b"22"]

    @pytest.mark.parametrize("to", [target(), target(model="m"), ACCOUNTING])
    def test_a_compressed_body_stays_so_if_it_needs_no_change(self, to: Target) -> None:
        raw = gzip.compress(b'{"model":"m"}')
        outgoing = rewrite(to, chat(raw, "gzip"))
        assert outgoing.body is raw
        assert outgoing.model == "m"
        assert header(outgoing, b"content-encoding") == [b"gzip"]
        assert header(outgoing, b"content-length") == [b"%d" % len(raw)]

    @pytest.mark.parametrize(("encoding", "raw"), [("lzma", b"{}"), ("gzip", b"{}")])
    def test_what_cannot_be_decompressed_is_refused_only_if_it_would_be_patched(
        self, encoding: str, raw: bytes
    ) -> None:
        with pytest.raises(UnsupportedEncodingError):
            rewrite(target(model="m"), chat(raw, encoding))
        assert rewrite(ACCOUNTING, chat(raw, encoding)).body is raw

    def test_a_body_too_large_is_refused_only_if_it_would_be_patched(self) -> None:
        raw = gzip.compress(b'{"model":"' + b"m" * 10_000 + b'"}')
        request = replace(CHAT, body=Body(raw, "gzip", limit=1000))
        with pytest.raises(BodyTooLargeError):
            rewrite(target(model="m"), request)
        assert rewrite(ACCOUNTING, request).body is raw


@pytest.mark.parametrize("raw", [b"", b"not json", b"[]", b'{"model":"m"', b"null"])
def test_a_malformed_body_is_refused_only_for_a_target_with_a_config(raw: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        rewrite(target(model="m"), chat(raw))
    outgoing = rewrite(ACCOUNTING, chat(raw))
    assert (outgoing.body, outgoing.model, outgoing.stream) == (raw, None, False)


# --- model ----------------------------------------------------------------------------------------

MAPPING = {"gpt-4o": "exact", "gpt-4*": "short", "gpt-4o-*": "longest", "o1*": "o", "x": "y"}


class TestModel:
    @pytest.mark.parametrize(
        ("model", "mapping", "asked", "expected"),
        [
            (None, {}, "theirs", "theirs"),
            ("ours", {}, "theirs", "ours"),
            ("ours", {}, None, "ours"),
            (None, {}, None, None),
            (None, MAPPING, "gpt-4o", "exact"),
            (None, MAPPING, "gpt-4", "short"),
            (None, MAPPING, "gpt-4-turbo", "short"),
            (None, MAPPING, "gpt-4o-mini", "longest"),
            (None, MAPPING, "xx", "xx"),
            ("ours", MAPPING, "gpt-4o", "exact"),
            ("ours", MAPPING, "xx", "ours"),
            ("ours", MAPPING, None, "ours"),
            (None, {"*": "any", "a*": "a"}, "b", "any"),
            (None, {"*": "any", "a*": "a"}, "ab", "a"),
            (None, {"*": "any"}, None, None),
        ],
    )
    def test_a_mapping_comes_first_then_the_model_then_the_clients(
        self, model: str | None, mapping: dict[str, str], asked: str | None, expected: str | None
    ) -> None:
        config = CallConfig(model=model, model_mapping=mapping)
        assert map_model(config, asked) == expected
        if expected is not None:
            fields = {"n": 1} if asked is None else {"model": asked}
            raw = json.dumps(fields).encode()
            outgoing = rewrite(target(model=model, model_mapping=mapping), chat(raw))
            assert json.loads(outgoing.body)["model"] == outgoing.model == expected

    @pytest.mark.parametrize("raw", [b"{}", b'{"model":null}', b'{"model" : null }'])
    def test_a_model_that_no_one_names_is_missing(self, raw: bytes) -> None:
        with pytest.raises(ModelMissingError) as caught:
            rewrite(target(), chat(raw))
        assert (caught.value.status, caught.value.param) == (400, "model")
        assert rewrite(ACCOUNTING, chat(raw)).model is None

    @pytest.mark.parametrize("raw", [b'{"model":5}', b'{"model":""}', b'{"model":["m"]}'])
    def test_a_model_that_is_no_name_is_the_providers_to_refuse(self, raw: bytes) -> None:
        outgoing = rewrite(target(), chat(raw))
        assert (outgoing.body, outgoing.model) == (raw, None)
        assert rewrite(target(model="m"), chat(raw)).body == b'{"model":"m"}'

    def test_a_model_that_is_not_named_stands_at_the_end(self) -> None:
        assert rewrite(target(model="m"), chat(b'{"n":1}')).body == b'{"n":1,"model":"m"}'


# --- stream ---------------------------------------------------------------------------------------

ASKED = {"include_usage": True}


class TestStream:
    @pytest.mark.parametrize("asked", [True, False, None])
    @pytest.mark.parametrize("forced", [True, False, None])
    def test_the_targets_word_goes_before_the_clients(
        self, asked: bool | None, forced: bool | None
    ) -> None:
        fields = {"model": "m"} if asked is None else {"model": "m", "stream": asked}
        to = target(stream=forced, stream_usage="asIs")
        outgoing = rewrite(to, chat(json.dumps(fields).encode()))
        expected = asked if forced is None else forced
        assert json.loads(outgoing.body).get("stream") == expected
        assert outgoing.stream is bool(expected)

    @pytest.mark.parametrize("stream", [True, False])
    def test_what_is_so_already_is_not_changed(self, stream: bool) -> None:
        raw = b'{ "model": "m", "stream": %b }' % (b"true" if stream else b"false")
        assert rewrite(target(stream=stream, stream_usage="asIs"), chat(raw)).body is raw

    def test_accounting_only_tells_whether_it_is_a_stream(self) -> None:
        assert rewrite(ACCOUNTING, chat(b'{"stream":true}')).stream
        assert not rewrite(ACCOUNTING, chat(b'{"stream":"true"}')).stream

    def test_forced_off_the_options_of_a_stream_go(self) -> None:
        fields = {"model": "m", "stream": True, "stream_options": ASKED, "n": 1}
        assert patched(target(stream=False), **fields) == {"model": "m", "stream": False, "n": 1}

    def test_the_options_of_a_stream_that_stays_stay(self) -> None:
        raw = b'{"model":"m","stream":true,"stream_options":{"include_usage":false}}'
        assert rewrite(target(stream_usage="asIs"), chat(raw)).body is raw
        assert rewrite(ACCOUNTING, chat(raw)).body is raw


class TestUsage:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, ASKED),
            ({"stream_options": None}, ASKED),
            ({"stream_options": {}}, ASKED),
            ({"stream_options": {"include_usage": False}}, ASKED),
            ({"stream_options": {"include_usage": None}}, ASKED),
            ({"stream_options": {"x": [1], "include_usage": False}}, {"x": [1], **ASKED}),
        ],
    )
    def test_a_stream_is_asked_for_usage(
        self, options: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        raw = json.dumps({"model": "m", "stream": True, **options}).encode()
        outgoing = rewrite(target(), chat(raw))
        assert outgoing.asked_usage
        assert json.loads(outgoing.body)["stream_options"] == expected

    def test_a_stream_that_the_target_forces_is_asked_for_usage(self) -> None:
        assert patched(target(stream=True), model="m")["stream_options"] == ASKED

    @pytest.mark.parametrize(
        "fields",
        [
            {"stream": True, "stream_options": ASKED},
            {"stream": True, "stream_options": {**ASKED, "x": 1}},
            {"stream": True, "stream_options": "text"},
            {"stream": True, "stream_options": [1]},
            {"stream": True, "stream_options": True},
            {"stream": False},
            {"stream": None},
            {"stream": "true"},
            {},
        ],
    )
    def test_what_asks_itself_or_is_no_stream_is_left_alone(self, fields: dict[str, Any]) -> None:
        raw = json.dumps({"model": "m", **fields}).encode()
        outgoing = rewrite(target(), chat(raw))
        assert (outgoing.body, outgoing.asked_usage) == (raw, False)

    @pytest.mark.parametrize("to", [target(stream_usage="asIs"), ACCOUNTING])
    def test_usage_as_is_is_never_asked_for(self, to: Target) -> None:
        raw = b'{"model":"m","stream":true}'
        outgoing = rewrite(to, chat(raw))
        assert outgoing.body is raw
        assert not outgoing.asked_usage

    def test_a_provider_that_refuses_is_not_asked(self) -> None:
        raw = b'{"model":"m","stream":true}'
        outgoing = rewrite(target(), chat(raw), inject_usage=False)
        assert outgoing.body is raw
        assert not outgoing.asked_usage

    def test_an_answer_that_is_filtered_is_not_to_be_compressed(self) -> None:
        request = chat(b'{"model":"m","stream":true}')
        headers = (*request.headers, (b"Accept-Encoding", b"gzip, br"))
        request = replace(request, headers=headers)
        assert header(rewrite(target(), request), b"accept-encoding") == [b"identity"]
        left = rewrite(target(), request, inject_usage=False)
        assert header(left, b"accept-encoding") == [b"gzip, br"]


class TestParams:
    def test_set_goes_before_the_client_and_default_behind(self) -> None:
        to = target(
            params_set={"temperature": 0, "top_k": None},
            params_default={"max_tokens": 10, "seed": {"a": [1]}},
        )
        sent = patched(to, model="m", temperature=1.5, max_tokens=5, n=1)
        assert sent == {
            "model": "m",
            "temperature": 0,
            "max_tokens": 5,
            "n": 1,
            "seed": {"a": [1]},
            "top_k": None,
        }

    def test_a_default_leaves_a_null_of_the_client(self) -> None:
        assert patched(target(params_default={"n": 1}), model="m", n=None)["n"] is None

    def test_set_goes_before_default(self) -> None:
        to = target(params_set={"n": 1}, params_default={"n": 2})
        assert patched(to, model="m")["n"] == 1

    def test_defaults_that_are_all_given_change_nothing(self) -> None:
        raw = b'{ "model":"m", "n": 3 }'
        assert rewrite(target(params_default={"n": 1}), chat(raw)).body is raw
