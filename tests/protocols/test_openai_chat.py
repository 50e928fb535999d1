import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.protocols import Reader, Usage, detect, openai_chat, reader, sse

PATH = "/v1/chat/completions"
USAGE = b'{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}'
COUNTS = Usage(10, 5, 15)


def event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def delta(**members: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": members, "finish_reason": None}]}


def filtered(stream: bytes, *, step: int | None = None, path: str = PATH) -> bytes:
    api = detect("POST", path)
    assert api is not None
    reader = api.reader(event_stream=True, filter_usage=True)
    size = step or len(stream) or 1
    out = b"".join(reader.feed(stream[i : i + size]) for i in range(0, len(stream), size))
    out += reader.close()
    assert reader.fault is None
    return out


class TestUsage:
    @pytest.mark.parametrize(
        ("details", "expected"),
        [
            ({"prompt_tokens_details": {"cached_tokens": 4}}, Usage(10, 5, 15, cached_tokens=4)),
            ({"prompt_cache_hit_tokens": 4}, Usage(10, 5, 15, cached_tokens=4)),
            ({"cached_tokens": 4}, Usage(10, 5, 15, cached_tokens=4)),
            ({"num_cached_tokens": 4}, Usage(10, 5, 15, cached_tokens=4)),
            ({"prompt_tokens_details": {"cache_write_tokens": 4}}, Usage(10, 5, 15, None, 4)),
            (
                {"completion_tokens_details": {"reasoning_tokens": 2}},
                Usage(10, 5, 15, None, None, 2),
            ),
            ({"prompt_tokens_details": None, "completion_tokens_details": []}, COUNTS),
        ],
    )
    def test_vendors_report_the_same_counts_under_different_names(
        self, read: Callable[..., Reader], details: dict[str, Any], expected: Usage
    ) -> None:
        body = json.dumps({"usage": {**json.loads(USAGE), **details}}).encode()
        assert read(PATH, body).usage == expected

    @pytest.mark.parametrize(
        "chunk",
        [
            b'{"choices":[],"usage":%b}',
            b'{"choices":[{"delta":{}}],"usage":%b}',
            b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop","usage":%b}]}',  # Moonshot
            b'{"choices":[{"delta":{}}],"x_groq":{"id":"r","usage":%b}}',  # Groq
        ],
    )
    def test_a_stream_reports_usage_in_several_places(
        self, read: Callable[..., Reader], chunk: bytes
    ) -> None:
        body = event(delta(content="a")) + b"data: " + chunk % USAGE + b"\n\ndata: [DONE]\n\n"
        reader = read(PATH, body, event_stream=True)
        assert (reader.usage, reader.complete) == (COUNTS, True)

    def test_the_last_usage_counts(self, read: Callable[..., Reader]) -> None:
        body = b"".join(event({"usage": {"prompt_tokens": n}}) for n in (1, 2, 3))
        body += event({"usage": None}) + event({"usage": {}})
        assert read(PATH, body, event_stream=True).usage == Usage(3)

    def test_the_top_level_usage_goes_before_a_vendors_own(
        self, read: Callable[..., Reader]
    ) -> None:
        body = b'{"usage":%b,"x_groq":{"usage":{"prompt_tokens":1}}}' % USAGE
        assert read(PATH, body).usage == COUNTS

    def test_a_stream_cut_short_has_no_usage(self, read: Callable[..., Reader]) -> None:
        reader = read(PATH, event(delta(content="a")) + b'data: {"cho', event_stream=True)
        assert (reader.usage, reader.complete, reader.content_started) == (None, False, True)

    @pytest.mark.parametrize(
        "usage", ["x", 1, [], {}, {"prompt_tokens": "1", "total_tokens": -1, "cached_tokens": True}]
    )
    def test_odd_types_are_unknown_and_no_error(
        self, read: Callable[..., Reader], usage: Any
    ) -> None:
        body = {"usage": usage, "choices": [1, {"index": [], "delta": 5}], "x_groq": 1, "model": 2}
        assert read(PATH, json.dumps(body).encode()).usage is None
        assert read(PATH, event(body), event_stream=True).usage is None


class TestFields:
    def test_completions_are_read_as_chat_is(self, read: Callable[..., Reader]) -> None:
        body = b'{"model":"m","choices":[{"text":"a","finish_reason":"length"}],"usage":%b}' % USAGE
        reader = read("/v1/completions", body)
        assert (reader.usage, reader.model, reader.finish_reason) == (COUNTS, "m", "length")
        assert (reader.content_started, reader.complete) == (True, True)

    def test_the_finish_reason_is_the_first_choices_last(self, read: Callable[..., Reader]) -> None:
        reasons = [(0, None), (1, "length"), (0, "stop"), (0, None), (1, "content_filter")]
        body = b"".join(
            event({"choices": [{"index": index, "finish_reason": reason}]})
            for index, reason in reasons
        )
        assert read(PATH, body, event_stream=True).finish_reason == "stop"

    def test_an_empty_model_does_not_replace_a_named_one(self, read: Callable[..., Reader]) -> None:
        body = event({"model": "m"}) + event({"model": ""})
        assert read(PATH, body, event_stream=True).model == "m"

    @pytest.mark.parametrize(
        ("chunk", "starts"),
        [
            (delta(role="assistant", content=""), False),
            (delta(role="assistant", content=None, refusal=None), False),
            (delta(), False),
            ({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, False),
            (delta(content="a"), True),
            (delta(refusal="a"), True),
            (delta(reasoning_content="a"), True),
            (delta(reasoning="a"), True),
            (delta(tool_calls=[{"index": 0}]), True),
        ],
    )
    def test_content_starts_with_the_first_delta_that_brings_something(
        self, read: Callable[..., Reader], chunk: dict[str, Any], starts: bool
    ) -> None:
        assert read(PATH, event(chunk), event_stream=True).content_started is starts

    @pytest.mark.parametrize(
        "body",
        [
            b'data: {"error":{"message":"no"}}\n\n',
            b'event: error\ndata: {"message":"no"}\n\n',
            b"event: error\ndata: no\n\n",
            b'data: {"object":"error","message":"no"}\n\n',
        ],
    )
    def test_an_error_in_the_stream_has_failed(
        self, read: Callable[..., Reader], body: bytes
    ) -> None:
        reader = read(PATH, body, event_stream=True)
        assert (reader.failed, reader.complete, reader.content_started) == (True, False, False)

    def test_a_null_error_has_not_failed(self, read: Callable[..., Reader]) -> None:
        assert not read(PATH, b'{"error":null,"choices":[]}').failed

    def test_a_body_too_large_to_keep_passes_unread(
        self, read: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reader, "MAX_BODY", 10)
        result = read(PATH, b'{"usage":%b}' % USAGE)
        assert (result.usage, result.complete) == (None, False)

    def test_without_a_filter_each_chunk_passes_at_once(self) -> None:
        api = detect("POST", PATH)
        assert api is not None
        reader = api.reader(event_stream=True)
        chunk = b'data: {"choi'
        assert reader.feed(chunk) is chunk
        assert reader.close() == b""


DONE = b"data: [DONE]\n\n"
EXTRA = b'data: {"id":"1","choices":[],"usage":' + USAGE + b"}\n\n"


class TestFilter:
    def test_the_extra_event_is_taken_out_whole_and_read(self) -> None:
        api = detect("POST", PATH)
        assert api is not None
        reader = api.reader(event_stream=True, filter_usage=True)
        text = event(delta(content="a"))
        assert reader.feed(text + EXTRA + DONE) + reader.close() == text + DONE
        assert (reader.usage, reader.complete, reader.model) == (COUNTS, True, "m")

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (b'{"a":1,"usage":null,"b":2}', b'{"a":1,"b":2}'),
            (b'{"a":1,"usage":null}', b'{"a":1}'),
            (b'{"usage":null,"a":1}', b'{"a":1}'),
            (b'{"usage":null}', b"{}"),
            (b'{ "a": 1, "usage" : null, "b": 2 }', b'{ "a": 1, "b": 2 }'),
            (b'{ "usage": null, "a": 1 }', b'{ "a": 1 }'),
            (b'{"u":{"usage":null},"usage":null}', b'{"u":{"usage":null}}'),
            (b'{"usage":null,"u":[{"usage":null}]}', b'{"u":[{"usage":null}]}'),
            (b'{"s":"\\"usage\\":null,","usage":null}', b'{"s":"\\"usage\\":null,"}'),
            (b'{"a\\"usage":null,"usage":null}', b'{"a\\"usage":null}'),
            (b'{"s":"usage","usage":null}', b'{"s":"usage"}'),
            (b'{"s":"{[\\\\","usage":null,"t":"}"}', b'{"s":"{[\\\\","t":"}"}'),
            (b'{"s":"\\u003c","usage":null}', b'{"s":"\\u003c"}'),
            (b'{"choices":[],"usage":null,"x":1}', b'{"choices":[],"x":1}'),
        ],
    )
    def test_a_null_usage_is_cut_from_the_top_level_only(self, before: bytes, after: bytes) -> None:
        for form in (b"data: %b\n\n", b": c\ndata:%b \r\nid: 1\r\n\r\n", b"data: %b"):
            assert filtered(form % before) == form % after

    @pytest.mark.parametrize(
        "kept",
        [
            event(delta(content="a")),
            event({"choices": [{"delta": {}}], "usage": {"prompt_tokens": 1}}),
            event({"choices": [{"delta": {}, "usage": None}], "u": {"usage": None}}),
            event({"choices": [{"delta": {}, "usage": {"prompt_tokens": 1}}]}),
            event({"choices": [], "prompt_filter_results": []}),
            event({"choices": [], "error": {"message": "no"}, "usage": {"prompt_tokens": 0}}),
            event({"usage": {"prompt_tokens": 1}}),
            b'data: {"\\u0075sage":null,"u":{"usage":null}}\n\n',
            b'data: {"a":1,\ndata: "usage":null}\n\n',
            b'data: {"usage":null\n\n',
            b'data: [{"usage":null}]\n\n',
            b'data: "usage":null\n\n',
            b'data: \xff"usage"\n\n',
            b": OPENROUTER PROCESSING\n\n",
            b"event: ping\ndata: {}\n\n",
            b"\n\n\n",
            DONE,
            b"data: [DONE]",
            b"data",
            b"<html>",
        ],
    )
    def test_everything_else_stays(self, kept: bytes) -> None:
        assert filtered(kept) == kept

    def test_a_comment_inside_the_extra_event_stays(self) -> None:
        assert filtered(b": a\n" + EXTRA + DONE) == b": a\n" + DONE

    def test_an_extra_event_at_the_end_without_its_blank_line_is_taken_out(self) -> None:
        assert filtered(EXTRA.rstrip()) == b""

    def test_completions_are_filtered_too(self) -> None:
        assert filtered(EXTRA + DONE, path="/v1/completions") == DONE

    def test_whole_events_are_given_out_as_they_come(self) -> None:
        api = detect("POST", PATH)
        assert api is not None
        reader = api.reader(event_stream=True, filter_usage=True)
        assert reader.feed(DONE[:5]) == b""
        assert reader.feed(DONE[5:] + b"data") == DONE
        assert reader.close() == b"data"

    def test_an_event_past_the_limit_passes_and_so_does_all_after_it(self) -> None:
        stream = b"data: " + b"x" * sse.MAX_EVENT + b"\n\n" + EXTRA
        assert filtered(stream, step=1 << 20) == stream

    def test_a_bug_of_ours_costs_the_client_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(openai_chat, "decode", broken)
        api = detect("POST", PATH)
        assert api is not None
        reader = api.reader(event_stream=True, filter_usage=True)
        assert reader.feed(EXTRA) == EXTRA
        assert isinstance(reader.fault, RuntimeError)


json_values = st.recursive(
    st.none() | st.integers() | st.sampled_from(['"usage":null', "usage", "\\", '{"', "<é"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "a", 'x"usage']), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from(["id", "model", "choices", "obfuscation", 'x"usage', "é"])


@given(
    members=st.lists(st.tuples(names, json_values), max_size=4, unique_by=lambda item: item[0]),
    place=st.integers(0, 4),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (",\t", " : ")]),
    ascii_only=st.booleans(),
    step=st.integers(1, 40),
)
def test_the_filter_gives_what_would_have_been_sent_without_usage(
    members: list[tuple[str, Any]],
    place: int,
    separators: tuple[str, str],
    ascii_only: bool,
    step: int,
) -> None:
    def stream(items: list[tuple[str, Any]]) -> bytes:
        chunk = json.dumps(dict(items), separators=separators, ensure_ascii=ascii_only)
        return b"data: " + chunk.encode() + b"\n\n"

    plain = stream(members)
    assert filtered(plain, step=step) == plain
    with_null = stream([*members[:place], ("usage", None), *members[place:]])
    assert filtered(with_null + EXTRA + DONE, step=step) == plain + DONE


fragments = st.sampled_from(
    [
        b"data: ",
        b"\n\n",
        b"\r\n",
        b'"usage"',
        b":null",
        b"{",
        b"}",
        b",",
        b'"',
        b"[]",
        b'"choices":',
        b":",
    ]
)


@given(st.lists(fragments | st.binary(max_size=3)).map(b"".join), st.integers(1, 9))
def test_no_garbage_is_lost_or_repeated(stream: bytes, step: int) -> None:
    whole = filtered(stream)
    assert filtered(stream, step=step) == whole
    if b'"usage"' not in stream:
        assert whole == stream
