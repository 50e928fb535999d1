"""Folding a stream into one JSON body, unfolding it again, and what OpenAI's SDK makes of both."""

import contextlib
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.demo import openai_answers
from pointsman.demo.provider import Provider, Reply
from pointsman.demo.server import ThreadedServer
from pointsman.protocols import openai_folding, sse
from pointsman.protocols.openai_chat import ChatReader
from pointsman.protocols.openai_folding import PIECE, TOKENS, Folded, Folder, FoldError, unfold

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings"
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

type Json = dict[str, Any]


def event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def delta(*, index: int = 0, finish: str | None = None, **members: Any) -> Json:
    return {"choices": [{"index": index, "delta": members, "finish_reason": finish}]}


def cut(stream: bytes, marks: list[int]) -> list[bytes]:
    return [stream[a:b] for a, b in pairwise([0, *sorted(marks), len(stream)])]


def fold_pieces(pieces: list[bytes], limit: int = 1 << 24) -> Folded:
    folder = Folder(limit)
    for piece in pieces:
        folder.feed(piece)
    return folder.close()


def fold(*chunks: Json, done: bool = True) -> Json:
    stream = b"".join(map(event, chunks)) + (DONE if done else b"")
    folded = fold_pieces([stream])
    assert (folded.complete, folded.failed) == (done, False)
    body: Json = json.loads(folded.body)
    return body


def message(*deltas: Json) -> Json:
    """Fold deltas into the message of the only choice."""
    (choice,) = fold(*(delta(**members) for members in deltas))["choices"]
    folded: Json = choice["message"]
    return folded


def unfolded(answer: Json, *, include_usage: bool = False) -> list[Json]:
    """Unfold an answer into its chunks."""
    stream = unfold(json.dumps(answer).encode(), include_usage=include_usage)
    assert stream is not None
    *events, end, rest = stream.decode().split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(text.removeprefix("data: ")) for text in events]


def completion(message: Json, **choice: Any) -> Json:
    """Return a completion of one choice."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, "refusal": None, **message},
                "logprobs": None,
                "finish_reason": "stop",
                **choice,
            }
        ],
        "usage": USAGE,
    }


def call(number: int, arguments: str = "{}", name: str = "look") -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def token(text: str) -> Json:
    return {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}


class TestFold:
    def test_a_chat_becomes_what_the_api_would_have_answered(self) -> None:
        answer = openai_answers.Answer("chatcmpl-1", 7, "m", "Hallo schöne Welt", 3)
        events = openai_answers.chat_events(answer, include_usage=True)
        folded = fold_pieces([e.encode() for e in events])
        assert (folded.complete, folded.failed) == (True, False)
        assert json.loads(folded.body) == openai_answers.chat(answer)

    def test_a_text_completion_becomes_one_too(self) -> None:
        answer = openai_answers.Answer("cmpl-1", 7, "m", "Hallo schöne Welt", 3)
        events = openai_answers.completion_events(answer, include_usage=True)
        folded = fold_pieces([e.encode() for e in events])
        assert folded.complete
        assert json.loads(folded.body) == openai_answers.completion(answer)

    def test_the_logprobs_of_a_text_completion_are_joined(self) -> None:
        def part(text: str, offset: int) -> Json:
            lists = {"tokens": [text], "token_logprobs": [-1.0], "text_offset": [offset]}
            logprobs = {**lists, "top_logprobs": None}
            return {"choices": [{"index": 0, "text": text, "logprobs": logprobs}]}

        (choice,) = fold(part("a", 0), part("b", 1))["choices"]
        assert choice["text"] == "ab"
        assert choice["logprobs"] == {
            "tokens": ["a", "b"],
            "token_logprobs": [-1.0, -1.0],
            "text_offset": [0, 1],
            "top_logprobs": None,
        }

    def test_choices_may_alternate_and_are_sorted(self) -> None:
        chunks = [
            delta(index=1, content="b"),
            delta(index=0, content="a"),
            delta(index=1, content="B", finish="length"),
            delta(index=0, content="A", finish="stop"),
        ]
        choices = fold(*chunks)["choices"]
        assert [c["index"] for c in choices] == [0, 1]
        assert [c["message"]["content"] for c in choices] == ["aA", "bB"]
        assert [c["finish_reason"] for c in choices] == ["stop", "length"]

    def test_content_is_null_beside_tool_calls_and_refusals(self) -> None:
        opening = {"role": "assistant", "content": "", "refusal": None}
        assert message(opening)["content"] == ""
        assert message(opening, {"refusal": "No"}, {"refusal": "."}) == {
            "role": "assistant",
            "content": None,
            "refusal": "No.",
        }
        called = message(opening, {"tool_calls": [{"index": 0, **call(1)}]})
        assert called["content"] is None
        assert message({"function_call": {"name": "f"}})["content"] is None
        assert message({"content": "a", "tool_calls": [{"index": 0}]})["content"] == "a"

    def test_members_that_openai_always_has_are_there(self) -> None:
        assert fold(delta(content="a"))["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a", "refusal": None},
                "logprobs": None,
                "finish_reason": None,
            }
        ]

    def test_tool_calls_are_put_together_by_their_index(self) -> None:
        def part(index: int, arguments: str) -> Json:
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

        folded = message(
            {"tool_calls": [{"index": 1, **call(2, "", "other")}]},
            {"tool_calls": [{"index": 0, **call(1, "")}]},
            part(0, '{"a"'),
            part(1, "{"),
            part(0, ":1}"),
            part(1, "}"),
        )
        assert folded["tool_calls"] == [call(1, '{"a":1}'), call(2, "{}", "other")]

    @pytest.mark.parametrize(
        "parts",
        [
            [[call(1), call(2)]],  # Gemini: no index, whole calls, in one chunk …
            [[call(1)], [call(2)]],  # … or in several
            [[{"index": 0, **call(1)}], [{"index": 0, **call(2)}]],
            [[call(1, "{")], [{"function": {"arguments": "}"}}], [call(2)]],
            [[call(1, "{")], [{"id": "call_1", "function": {"arguments": "}"}}], [call(2)]],
            [[call(1), {"index": None, **call(2)}], None, []],
        ],
    )
    def test_calls_that_an_index_does_not_tell_apart_stay_apart(self, parts: list[Any]) -> None:
        folded = message(*({"tool_calls": part} for part in parts))
        assert folded["tool_calls"] == [call(1), call(2)]

    @pytest.mark.parametrize(
        "more",
        [
            {"id": "", "type": "function", "function": {"name": "", "arguments": "}"}},
            {"id": None, "type": None, "function": {"name": None, "arguments": "}"}},
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "}"}},
            {"function": {"name": "look", "arguments": "}"}},
        ],
    )
    def test_what_a_call_repeats_is_not_repeated(self, more: Json) -> None:
        folded = message(
            {"tool_calls": [{"index": 0, **call(1, "{")}]}, {"tool_calls": [{"index": 0, **more}]}
        )
        assert folded["tool_calls"] == [call(1)]

    def test_a_new_id_alone_begins_no_new_call(self) -> None:
        """Old vLLM gave every fragment an id of its own."""
        more = {"index": 0, "id": "call_1b", "function": {"name": None, "arguments": "}"}}
        folded = message({"tool_calls": [{"index": 0, **call(1, "{")}]}, {"tool_calls": [more]})
        assert [c["function"]["arguments"] for c in folded["tool_calls"]] == ["{}"]

    def test_a_function_name_in_pieces_and_a_missing_type_are_made_whole(self) -> None:
        parts = [
            {"index": 0, "id": "call_1", "function": {"name": "lo", "arguments": "{"}},
            {"index": 0, "function": {"name": "ok", "arguments": "}"}},
        ]
        assert message({"tool_calls": parts})["tool_calls"] == [call(1)]

    def test_empty_tool_calls_are_none(self) -> None:
        assert "tool_calls" not in message({"content": "a", "tool_calls": []})

    def test_the_deprecated_function_call_is_joined(self) -> None:
        folded = message(
            {"function_call": {"name": "f", "arguments": ""}},
            {"function_call": {"arguments": "{"}},
            {"function_call": {"arguments": "}"}},
        )
        assert folded["function_call"] == {"name": "f", "arguments": "{}"}

    def test_unknown_strings_of_a_delta_are_joined_and_labels_are_not(self) -> None:
        part = {"role": "assistant", "channel": "analysis", "reasoning": "hm", "token_id": 5}
        folded = message({**part, "token_id": 4}, part, {"reasoning": None, "role": None})
        assert folded["reasoning"] == "hmhm"
        assert (folded["channel"], folded["token_id"]) == ("analysis", 5)

    def test_lists_of_a_delta_are_appended_and_indexed_items_joined(self) -> None:
        def part(text: str, index: int, **more: Any) -> Json:
            return {"type": "text", "index": index, "text": text, **more}

        folded = message(
            {"annotations": [{"url": "a"}], "details": [part("a", 0), part("b", 1)]},
            {"annotations": [{"url": "b"}], "details": [part("A", 0, format="x")]},
            {"annotations": [], "details": [{"type": "data", "index": 0, "data": "d"}]},
        )
        assert folded["annotations"] == [{"url": "a"}, {"url": "b"}]
        assert folded["details"] == [
            part("aA", 0, format="x"),
            part("b", 1),
            {"type": "data", "index": 0, "data": "d"},
        ]

    def test_objects_of_a_delta_are_merged(self) -> None:
        folded = message(
            {"content": "", "audio": {"id": "a1", "transcript": "Hal"}},
            {"audio": {"transcript": "lo", "data": "UklG"}},
            {"audio": {"expires_at": 9}},
        )
        assert folded["content"] is None
        assert folded["audio"] == {
            "id": "a1",
            "transcript": "Hallo",
            "data": "UklG",
            "expires_at": 9,
        }

    def test_content_in_parts_and_as_text_is_kept_as_parts(self) -> None:
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
        text = {"type": "text", "text": "a"}
        assert message({"content": ""}, {"content": [thinking]}, {"content": "a"}, {"content": ""})[
            "content"
        ] == [thinking, text]
        assert message({"content": "a"}, {"content": [thinking]})["content"] == [text, thinking]

    def test_logprobs_are_joined(self) -> None:
        chunks = [delta(content="a"), delta(content="b"), delta(finish="stop")]
        chunks[0]["choices"][0]["logprobs"] = {"content": [token("a")], "refusal": None}
        chunks[1]["choices"][0]["logprobs"] = {"content": [token("b")], "refusal": None}
        chunks[2]["choices"][0]["logprobs"] = None
        (choice,) = fold(*chunks)["choices"]
        assert choice["logprobs"] == {"content": [token("a"), token("b")], "refusal": None}

    def test_outside_of_a_delta_the_last_value_that_says_something_stays(self) -> None:
        first, last = delta(content="a"), delta(finish="stop")
        first["choices"][0] |= {"native_finish_reason": "end", "stop_reason": 5, "filter": {}}
        last["choices"][0] |= {"native_finish_reason": "end", "stop_reason": None}
        folded = fold(
            {"id": "", "object": "", "created": 0, "model": "", "choices": [], "extra": [1]},
            {**first, "id": "1", "created": 7, "model": "m", "service_tier": "x"},
            {**last, "id": "1", "created": 7, "model": "m", "service_tier": None},
            {**delta(content="b"), "obfuscation": "x", "error": None, "usage": None, "extra": []},
        )
        choice = folded.pop("choices")[0]
        assert folded == {
            "id": "1",
            "object": "chat.completion",
            "created": 7,
            "model": "m",
            "extra": [1],
            "service_tier": "x",
        }
        assert (choice["native_finish_reason"], choice["stop_reason"]) == ("end", 5)
        assert (choice["finish_reason"], choice["filter"]) == ("stop", {})

    @pytest.mark.parametrize(
        "chunk",
        [
            {"choices": [], "usage": USAGE},
            {"choices": None, "usage": USAGE},  # vLLM
            {**delta(), "usage": USAGE},
            {"choices": [{"index": 0, "delta": {}, "usage": USAGE}]},  # Moonshot
            {**delta(), "x_groq": {"id": "r", "usage": USAGE}},  # Groq
        ],
    )
    def test_usage_comes_to_the_top_wherever_it_was(self, chunk: Json) -> None:
        folded = fold({**delta(content="a"), "usage": {"prompt_tokens": 1}}, chunk)
        assert folded["usage"] == USAGE
        assert "usage" not in folded["choices"][0]
        assert "usage" not in folded.get("x_groq", {})

    def test_unknown_usage_is_left_out(self) -> None:
        assert "usage" not in fold({**delta(content="a"), "usage": None})

    def test_groqs_own_object_is_merged(self) -> None:
        folded = fold(
            {**delta(content="a"), "x_groq": {"id": "r", "seed": 1}},
            {**delta(), "x_groq": {"id": "r", "usage": USAGE}},
        )
        assert folded["x_groq"] == {"id": "r", "seed": 1}

    def test_a_whole_message_after_its_deltas_is_not_told_twice(self) -> None:
        """MiniMax ends a stream with it."""
        whole = {"index": 0, "message": {"role": "assistant", "content": "ab"}}
        folded = fold(delta(content="a"), delta(content="b"), {"choices": [whole]})
        assert folded["choices"][0]["message"]["content"] == "ab"

    def test_a_whole_message_in_the_stead_of_deltas_counts(self) -> None:
        said = {"role": "assistant", "content": "ab", "tool_calls": [{"index": 0, **call(1)}]}
        whole = {"index": 0, "message": said, "finish_reason": "stop"}
        folded = fold({"object": "chat.completion", "choices": [whole]})
        assert folded["choices"][0]["message"] == {
            "role": "assistant",
            "content": "ab",
            "refusal": None,
            "tool_calls": [call(1)],
        }


class TestEnd:
    @pytest.mark.parametrize(
        ("stream", "complete"),
        [
            (event(delta(content="a", finish="stop")), True),
            (event(delta(content="a")) + DONE, True),
            (event(delta(content="a")) + b"data: [DONE]", True),
            (event(delta(content="a")), False),
            (event(delta(content="a", finish="stop")) + event(delta(index=1)), False),
            (event(delta(content="a", finish="stop")) + b'data: {"choices":[],"us', True),
            (event(delta(content="a")) + b"data: {garbled\n\n" + DONE, False),
            (b": nothing\n\ndata: null\n\ndata: 5\n\n" + event(delta(content="a")) + DONE, True),
            (event(delta(content="a")) + b"data: ping\n\ndata: NaN\n\n" + DONE, True),
            (b"data: -Infinity\n\ndata: [1\n\n" + event(delta(content="a")) + DONE, True),
            (event(delta(content="a")) + b"data:  {NaN\n\n" + DONE, False),
            (DONE, False),
            (b"", False),
            (b"<html>", False),
        ],
    )
    def test_an_answer_is_complete_when_nothing_is_missing(
        self, stream: bytes, complete: bool
    ) -> None:
        folded = fold_pieces([stream])
        assert (folded.complete, folded.failed) == (complete, False)
        assert json.loads(folded.body)["object"] == "chat.completion"

    @pytest.mark.parametrize(
        ("error", "body"),
        [
            (b'data: {"error":{"message":"no"}}\n\n', {"message": "no"}),
            (b'event: error\ndata: {"error":{"message":"no"}}\n\n', {"message": "no"}),
            (b'event: error\ndata: {"message":"no"}\n\n', {"message": "no"}),
            (b"event: error\ndata: n\xc3\n\n", {"message": "n\N{REPLACEMENT CHARACTER}"}),
            (b'data: {"error":"no"}\n\n', "no"),
            (b'data: {"id":"1","choices":[],"error":{"code":1},"usage":{}}\n\n', {"code": 1}),
            (
                b'data: {"object":"error","message":"no"}\n\n',
                {"object": "error", "message": "no"},
            ),
        ],
    )
    def test_an_error_in_the_stream_is_the_answer(self, error: bytes, body: Any) -> None:
        text = event(delta(content="a", finish="stop"))
        for stream in (error, text + error, text + error + text + DONE):
            folded = fold_pieces([stream])
            assert (folded.complete, folded.failed) == (False, True)
            assert json.loads(folded.body) == {"error": body}

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    def test_a_number_that_json_has_none_for_costs_no_text(self, number: str) -> None:
        whole = event({**delta(content="NaN", finish="stop"), "score": "HERE"})
        stream = whole.replace(b'"HERE"', number.encode())
        folded = fold_pieces([event(delta(content="a ")), stream])
        assert folded.complete
        body = json.loads(folded.body)
        assert (body["choices"][0]["message"]["content"], body["score"]) == ("a NaN", None)

    def test_an_error_without_its_blank_line_counts_too(self) -> None:
        assert fold_pieces([b'data: {"error":{"message":"no"}}']).failed


class TestLimits:
    @pytest.mark.parametrize(
        "members",
        [
            {"content": "abcdefgh"},
            {"tool_calls": [{"index": 0, "function": {"arguments": "abcdefgh"}}]},
            {"annotations": ["abcdef"]},
        ],
    )
    def test_the_body_is_bounded_and_not_the_stream(self, members: Json) -> None:
        fold_pieces([event({**delta(**members), "usage": USAGE, "obfuscation": "x"})] * 90, 1000)
        with pytest.raises(FoldError, match="more than 1000 bytes"):
            fold_pieces([event(delta(**members))] * 130, 1000)

    @pytest.mark.parametrize(
        "form",
        [
            '{"choices":[{"index":%d}]}',
            '{"member %d":null}',
            '{"x_groq":{"member %d":1}}',
            '{"choices":[{"member %d":{}}]}',
            '{"choices":[{"delta":{"member %d":[]}}]}',
            '{"choices":[{"delta":{"tool_calls":[{"index":%d}]}}]}',
        ],
    )
    def test_what_says_nothing_is_bounded_too(self, form: str) -> None:
        with pytest.raises(FoldError, match="more than 1000 bytes"):
            fold_pieces([b"data: %b\n\n" % (form % n).encode() for n in range(200)], 1000)

    def test_what_is_replaced_does_not_count(self) -> None:
        def chunk(n: int) -> bytes:
            part = delta(role="assistant", channel="analysis", token_id=n, content="a")
            usage = {"prompt_tokens": n}
            return event({**part, "usage": usage, "created": n, "citations": [str(n)] * 50})

        folded = fold_pieces([chunk(n) for n in range(500)] + [DONE], 2000)
        assert folded.complete
        assert len(folded.body) < 2000

    @pytest.mark.parametrize(
        "form",
        [
            '{"x_groq":{"member %d":1}}',
            '{"x_groq":{"member %d":1},"choices":[{"delta":{"member":[1]}}]}',
            '{"member %d":1}',
            '{"choices":[{"delta":{"object":{"member %d":1}}}]}',
            '{"choices":[{"delta":{"content":"%d"},"object":{"member":[1]}}]}',
        ],
    )
    def test_what_is_kept_is_not_measured_again_with_each_chunk(
        self, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encode, measured = openai_folding._encode, 0

        def counting(value: Any) -> bytes:
            nonlocal measured
            measured += len(encoded := encode(value))
            return encoded

        monkeypatch.setattr(openai_folding, "_encode", counting)
        stream = [b"data: %b\n\n" % (form % n).encode() for n in range(500)]
        fold_pieces(stream)
        assert 0 < measured < 2 * sum(map(len, stream))

    @pytest.mark.parametrize(
        "answer",
        [
            {"id": "x" * 1000, "choices": [{"message": {}} for _ in range(40)]},
            {"model": "x" * 1000, "choices": [{"text": "a"} for _ in range(40)]},
            completion({}, logprobs={**{str(n): [] for n in range(500)}, "a": [1] * 500}),
        ],
    )
    def test_a_small_answer_does_not_unfold_into_a_large_stream(self, answer: Json) -> None:
        body = json.dumps(answer).encode()
        with pytest.raises(FoldError, match="more than 40000 bytes"):
            unfold(body, include_usage=True, limit=40_000)
        whole = unfold(body, include_usage=True)
        assert whole
        assert len(whole) > 40_000

    def test_no_real_answer_is_too_large_to_unfold(self) -> None:
        tokens = [token("word ") for _ in range(10_000)]
        whole = completion({"content": "word " * 10_000}, logprobs={"content": tokens})
        for answer in (whole, completion({"tool_calls": [call(1, "[1] " * 10_000)]})):
            body = json.dumps(answer, separators=(",", ":")).encode()
            assert unfold(body, include_usage=True, limit=2 * len(body))

    def test_an_event_may_not_be_too_large(self) -> None:
        folder = Folder()
        folder.feed(b"data: " + b"x" * (sse.MAX_EVENT - 10))
        with pytest.raises(FoldError, match="larger than"):
            folder.feed(b"x" * 10)

    @pytest.mark.parametrize("depth", [100, 300, 900, 5000, 100_000])
    @pytest.mark.parametrize("place", ["delta", "extra", "error"])
    def test_deep_nesting_raises_nothing_else(self, depth: int, place: str) -> None:
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        before = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
        form = b'{"choices":[{"delta":%b}]}' if place == "delta" else b'{"%b":%%b}' % place.encode()
        with contextlib.suppress(FoldError):
            fold_pieces([before, b"data: " + form % nested + b"\n\n", DONE])
        unfold(b'{"choices":[{"message":{"a":%b}}]}' % nested, include_usage=True)


class TestUnfold:
    def test_the_demo_answer_becomes_a_stream_of_the_same_form(self) -> None:
        answer = openai_answers.Answer("chatcmpl-1", 7, "m", "Hallo", 3)
        whole = openai_answers.chat(answer)
        for include_usage in (False, True):
            stream = openai_answers.chat_events(answer, include_usage=include_usage)
            expected = [json.loads(e.data) for e in stream if e.data != "[DONE]"]
            assert unfolded(whole, include_usage=include_usage) == expected

    def test_a_text_completion_too(self) -> None:
        answer = openai_answers.Answer("cmpl-1", 7, "m", "Hallo", 3)
        whole = openai_answers.completion(answer)
        for include_usage in (False, True):
            stream = openai_answers.completion_events(answer, include_usage=include_usage)
            expected = [json.loads(e.data) for e in stream if e.data != "[DONE]"]
            assert unfolded(whole, include_usage=include_usage) == expected

    def test_unknown_usage_has_no_event(self) -> None:
        chunks = unfolded({**completion({"content": "a"}), "usage": None}, include_usage=True)
        assert all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)

    def test_tool_calls_come_as_a_name_and_then_arguments(self) -> None:
        whole = completion(
            {"tool_calls": [call(1), call(2, '{"a":1}')]}, finish_reason="tool_calls"
        )
        role, *calls, end = [chunk["choices"][0] for chunk in unfolded(whole)]
        assert role["delta"] == {"role": "assistant", "content": None, "refusal": None}
        assert [c["delta"]["tool_calls"][0] for c in calls] == [
            {"index": 0, **call(1, "")},
            {"index": 0, "function": {"arguments": "{}"}},
            {"index": 1, **call(2, "")},
            {"index": 1, "function": {"arguments": '{"a":1}'}},
        ]
        assert (end["delta"], end["finish_reason"]) == ({}, "tool_calls")

    def test_an_odd_call_is_passed_on_in_one_piece(self) -> None:
        custom: Json = {"id": "1", "type": "custom", "custom": {"name": "n", "input": "i"}}
        parsed: Json = {"id": "2", "type": "function", "function": {"name": "n", "arguments": {}}}
        bare: Json = {"id": "3", "type": "function", "function": None}
        chunks = unfolded(completion({"tool_calls": [custom, parsed, bare]}))
        calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks[1:-1]]
        del bare["function"]
        assert calls == [{"index": n, **c} for n, c in enumerate((custom, parsed, bare))]

    def test_long_texts_are_cut(self) -> None:
        text = "aé\N{GRINNING FACE}\n" * PIECE
        for name in ("content", "refusal", "reasoning_content"):
            whole = completion({"content": None, name: text})
            deltas = [chunk["choices"][0]["delta"] for chunk in unfolded(whole)]
            assert "".join(d.get(name) or "" for d in deltas) == text
            assert max(len(d.get(name) or "") for d in deltas) == PIECE
        calls = unfolded(completion({"tool_calls": [call(1, text)]}))
        assert max(len(json.dumps(c, ensure_ascii=False)) for c in calls) < 2 * PIECE

    def test_logprobs_go_along_with_the_text(self) -> None:
        tokens = [token(f"{n} ") for n in range(3 * TOKENS + 1)]
        content = "".join(t["token"] for t in tokens)
        logprobs = {"content": tokens, "refusal": None}
        whole = completion({"content": content, "reasoning": "hm"}, logprobs=logprobs)
        role, reasoning, *parts, end = [chunk["choices"][0] for chunk in unfolded(whole)]
        assert role["logprobs"] is reasoning["logprobs"] is end["logprobs"] is None
        assert len(parts) == 4
        assert [t for p in parts for t in p["logprobs"]["content"]] == tokens

    def test_what_the_vendor_adds_is_said_once(self) -> None:
        whole = completion({"content": "a", "annotations": [1], "note": []}, native_reason="end")
        chunks = unfolded({**whole, "service_tier": "x", "provider": "P"}, include_usage=True)
        assert [chunk.get("service_tier") for chunk in chunks] == ["x"] * len(chunks)
        assert [chunk.get("provider") for chunk in chunks].count("P") == 1
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
        assert [d for d in deltas if "annotations" in d] == [{"annotations": [1]}]
        assert not any("note" in d for d in deltas)
        assert chunks[-2]["choices"][0]["native_reason"] == "end"

    def test_choices_without_an_index_are_numbered(self) -> None:
        choices = [{"message": {"content": text}} for text in "ab"]
        chunks = unfolded({"choices": choices})
        assert {c["choices"][0]["index"] for c in chunks} == {0, 1}
        texts = [choice["message"]["content"] for choice in fold(*chunks)["choices"]]
        assert texts == ["a", "b"]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"null",
            b"[]",
            b"{}",
            b'{"choices":null}',
            b'{"choices":[]}',
            b'{"choices":[5]}',
            b'{"choices":[{"index":0}]}',
            b'{"choices":[{"message":{"content":"a"}},{"text":"a"}]}',
            b'{"choices":[{"delta":{"content":"a"}}]}',
            b'{"error":{"message":"no"}}',
            b'{"error":{"message":"no"},"choices":[{"message":{"content":"a"}}]}',
            b'{"object":"response","output":[]}',
            b'{"object":"list","data":[]}',
            b"\xff",
        ],
    )
    def test_what_is_no_completion_is_left_to_the_caller(self, body: bytes) -> None:
        assert unfold(body, include_usage=True) is None


# --- recorded exchanges ---------------------------------------------------------------------------


def recordings(kind: str) -> list[str]:
    return sorted(path.name for path in RECORDINGS.glob(f"openai-chat.*.{kind}.*.json"))


def recorded(name: str) -> bytes:
    text: str = json.loads((RECORDINGS / name).read_text())["response"]["text"]
    return text.encode()


def slowly_folded(stream: str) -> Json:
    """Fold a recorded stream: a second implementation, for what the recordings have."""
    chunks = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: {")]
    errors = [chunk["error"] for chunk in chunks if "error" in chunk]
    if errors:
        return {"error": errors[0]}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert {choice["index"] for choice in choices} == {0}
    deltas = [choice["delta"] for choice in choices]
    said: Json = {"role": "assistant", "refusal": None}
    said["content"] = "".join(d.get("content") or "" for d in deltas) or None
    calls: Json = {}
    for part in [part for d in deltas for part in d.get("tool_calls", [])]:
        kept = calls.setdefault(part["index"], {"type": "function", "id": part.get("id")})
        function = kept.setdefault("function", {"name": "", "arguments": ""})
        for member in function:
            function[member] += part["function"].get(member, "")
    if calls:
        said["tool_calls"] = [calls[index] for index in sorted(calls)]
    if any("annotations" in d for d in deltas):
        said["annotations"] = [a for d in deltas for a in d.get("annotations", [])]
    whole = {**chunks[-1], "object": "chat.completion"}
    whole.pop("obfuscation", None)
    end = next(choice for choice in choices if choice["finish_reason"])
    whole["choices"] = [{"logprobs": None, **end, "message": said}]
    del whole["choices"][0]["delta"]
    return whole


def random_cuts(body: bytes) -> list[list[bytes]]:
    chance = random.Random(len(body))
    by_byte = [body[i : i + 1] for i in range(len(body))]
    return [[body], by_byte, cut(body, chance.choices(range(len(body)), k=30))]


@pytest.mark.parametrize("name", recordings("stream"))
def test_a_recorded_stream_folds_as_a_second_implementation_says(name: str) -> None:
    stream = recorded(name)
    expected = slowly_folded(stream.decode())
    for pieces in random_cuts(stream):
        folded = fold_pieces(pieces)
        assert json.loads(folded.body) == expected
        assert folded.failed is ("error" in expected)
        assert folded.complete is not folded.failed


@pytest.mark.parametrize("name", recordings("stream"))
def test_a_recorded_stream_reads_the_same_when_it_is_folded(name: str) -> None:
    stream = recorded(name)
    streamed, whole = ChatReader(event_stream=True), ChatReader(event_stream=False)
    streamed.feed(stream)
    streamed.close()
    whole.feed(fold_pieces([stream]).body)
    whole.close()
    assert whole.failed is streamed.failed
    if not whole.failed:
        assert whole.usage == streamed.usage is not None
        assert (whole.model, whole.finish_reason) == (streamed.model, streamed.finish_reason)


def normal(answer: Json) -> Json:
    """Take out what a round trip may add or drop: see the module."""
    answer = json.loads(json.dumps(answer))
    for choice in answer["choices"]:
        choice.setdefault("logprobs", None)
        said = {n: v for n, v in choice["message"].items() if v not in (None, "", [])}
        for tool_call in said.get("tool_calls", []):
            tool_call.pop("index", None)
            tool_call.setdefault("type", "function")
        choice["message"] = said
    return answer


@pytest.mark.parametrize("name", recordings("json"))
def test_a_recorded_answer_survives_being_unfolded_and_folded(name: str) -> None:
    body = recorded(name)
    stream = unfold(body, include_usage=True)
    assert stream is not None
    folded = fold_pieces([stream])
    assert folded.complete
    assert normal(json.loads(folded.body)) == normal(json.loads(body))


@pytest.mark.parametrize("name", recordings("error"))
def test_a_recorded_error_is_not_unfolded(name: str) -> None:
    assert unfold(recorded(name), include_usage=True) is None


# --- generated answers ----------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=30)
some_text = texts.filter(bool)
tokens = st.lists(texts.map(token), min_size=1, max_size=5)
calls = st.builds(call, st.integers(0, 99), texts, some_text)
spoken = st.fixed_dictionaries(
    {"content": texts, "refusal": st.none()}, optional={"reasoning_content": some_text}
)
refused = st.fixed_dictionaries({"content": st.none(), "refusal": some_text})
calling = st.fixed_dictionaries(
    {
        "content": st.none() | some_text,
        "refusal": st.none(),
        "tool_calls": st.lists(calls, min_size=1, max_size=3),
    }
)
messages = (spoken | refused | calling).map(lambda said: {"role": "assistant", **said})
logprobs = st.none() | st.fixed_dictionaries({"content": tokens, "refusal": st.none()})
reasons = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


@st.composite
def completions(draw: st.DrawFn) -> Json:
    choices = [
        {
            "index": index,
            "message": draw(messages),
            "logprobs": draw(logprobs),
            "finish_reason": draw(reasons),
        }
        for index in range(draw(st.integers(1, 3)))
    ]
    head: Json = {"id": draw(some_text), "object": "chat.completion", "created": 7, "model": "m"}
    usage: Json = draw(st.sampled_from([{}, {"usage": USAGE}]))
    return {**head, "choices": choices, **usage, "system_fingerprint": "fp"}


def shredded(answer: Json, chance: random.Random) -> bytes:
    """Stream an answer as a provider might: in fragments of any size, the choices in any order."""
    head = {n: v for n, v in answer.items() if n not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    queues = [list(shreds(choice, chance)) for choice in answer["choices"]]
    events = []
    while any(queues):
        queue = chance.choice([q for q in queues if q])
        events.append({**head, "choices": [queue.pop(0)], "usage": None})
    if "usage" in answer:
        events.append({**head, "choices": [], "usage": answer["usage"]})
    stream = b"".join(chance.choice([b"", b": ping\n\n"]) + event(e) for e in events) + DONE
    return stream.replace(b"\n", chance.choice([b"\n", b"\r\n", b"\r"]))


def fragments(text: str, chance: random.Random) -> Iterator[str]:
    while text:
        size = chance.randint(1, 10)
        yield text[:size]
        text = text[size:]


def shreds(choice: Json, chance: random.Random) -> Iterator[Json]:
    index, said = choice["index"], choice["message"]
    opening = {"role": "assistant", "content": "" if said["content"] == "" else None}
    left = choice["logprobs"]["content"] if choice["logprobs"] else []

    def part(members: Json, **more: Any) -> Json:
        nonlocal left
        size = chance.randint(0, 2)
        here, left = left[:size], left[size:]
        logprobs = {"content": here, "refusal": None} if here else None
        return {"index": index, "delta": members, "logprobs": logprobs, **more}

    yield part(opening)
    for name in ("reasoning_content", "content", "refusal"):
        for fragment in fragments(said.get(name) or "", chance):
            yield part({name: fragment})
    streams = [call_shreds(n, c, chance) for n, c in enumerate(said.get("tool_calls", []))]
    while streams:
        if (shred := next(stream := chance.choice(streams), None)) is None:
            streams.remove(stream)
        else:
            yield part({"tool_calls": [shred]})
    while left:
        yield part({})
    yield part({}, finish_reason=choice["finish_reason"])


def call_shreds(index: int, whole: Json, chance: random.Random) -> Iterator[Json]:
    name, arguments = whole["function"]["name"], whole["function"]["arguments"]
    yield {"index": index, **whole, "function": {"name": name, "arguments": ""}}
    for fragment in fragments(arguments, chance):
        yield {"index": index, "function": {"arguments": fragment}}


@settings(max_examples=150, deadline=None)
@given(completions(), st.randoms(use_true_random=False))
def test_any_stream_of_an_answer_folds_into_it(answer: Json, chance: random.Random) -> None:
    stream = shredded(answer, chance)
    marks = [chance.randint(0, len(stream)) for _ in range(chance.randint(0, 20))]
    folded = fold_pieces(cut(stream, marks))
    assert folded.complete
    assert json.loads(folded.body) == answer


@settings(max_examples=150, deadline=None)
@given(completions(), st.booleans(), st.randoms(use_true_random=False))
def test_any_answer_survives_being_unfolded_and_folded(
    answer: Json, include_usage: bool, chance: random.Random
) -> None:
    stream = unfold(json.dumps(answer).encode(), include_usage=include_usage)
    assert stream is not None
    marks = [chance.randint(0, len(stream)) for _ in range(chance.randint(0, 20))]
    folded = fold_pieces(cut(stream, marks))
    assert folded.complete
    if not include_usage:
        answer.pop("usage", None)
    assert json.loads(folded.body) == answer


ODD_NAMES = """
    index id type function name arguments tool_calls function_call content refusal role delta
    message text logprobs finish_reason usage x_groq choices object error annotations
"""
odd_values: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 1, 2**70, 1.5, "", "a", [], {}, ["a", None]]
)
odd_objects = st.recursive(
    st.dictionaries(st.sampled_from(ODD_NAMES.split()), odd_values, max_size=5),
    lambda inner: st.dictionaries(
        st.sampled_from(ODD_NAMES.split()), inner | st.lists(inner, max_size=2), max_size=4
    ),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(odd_objects, max_size=4), st.lists(odd_objects, max_size=3))
def test_odd_json_raises_nothing(chunks: list[Json], choices: list[Json]) -> None:
    stream = b"".join(map(event, [*chunks, *({"choices": [c]} for c in choices)]))
    folded = fold_pieces([stream])
    assert isinstance(json.loads(folded.body), dict)
    for body in [*chunks, {"choices": choices}, {"choices": [{"message": c} for c in choices]}]:
        unfold(json.dumps(body).encode(), include_usage=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"data: ", b"\n\n", b"{", b"}", b'"a"', b"[DONE]"]) | st.binary()))
def test_garbage_raises_nothing(pieces: list[bytes]) -> None:
    fold_pieces(pieces)
    unfold(b"".join(pieces), include_usage=False)


# --- what OpenAI's SDK makes of it ----------------------------------------------------------------


PROVIDER = Provider("far")


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        ThreadedServer([PROVIDER]) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        yield client


def will_answer(body: bytes, content_type: str) -> None:
    PROVIDER.replies.append(Reply(headers=[("content-type", content_type)], body=body))


def will_stream(answer: Json, *, include_usage: bool = True) -> None:
    stream = unfold(json.dumps(answer).encode(), include_usage=include_usage)
    assert stream is not None
    will_answer(stream, "text/event-stream")


def will_fold(stream: bytes) -> None:
    will_answer(fold_pieces([stream]).body, "application/json")


SPEECH = completion(
    {"content": "Grüße \N{WAVING HAND SIGN}", "reasoning_content": "hm"},
    logprobs={"content": [token("Grüße "), token("\N{WAVING HAND SIGN}")], "refusal": None},
)
CALLS = completion({"tool_calls": [call(1, '{"a":1}'), call(2)]}, finish_reason="tool_calls")
REFUSAL = completion({"refusal": "No."})
TWO: Json = {
    **SPEECH,
    "choices": [SPEECH["choices"][0], {**CALLS["choices"][0], "index": 1}],
}


def dumped(model: Any) -> Json:
    """Return what a client sees, less what the SDK adds."""
    whole: Json = model.model_dump(exclude_none=True)
    for choice in whole["choices"]:
        choice["message"].pop("parsed", None)
        for tool_call in choice["message"].get("tool_calls", []):
            tool_call["function"].pop("parsed_arguments", None)
            tool_call.pop("index", None)
    return whole


@pytest.mark.parametrize("answer", [SPEECH, CALLS, REFUSAL, TWO], ids=["text", "calls", "no", "n"])
class TestSdk:
    def test_its_stream_helper_puts_an_unfolded_answer_together(
        self, client: openai.OpenAI, answer: Json
    ) -> None:
        will_answer(json.dumps(answer).encode(), "application/json")
        plain = client.chat.completions.create(model="m", messages=[])
        will_stream(answer)
        with client.chat.completions.stream(model="m", messages=[]) as events:
            kinds = {e.type for e in events}
            assert dumped(events.get_final_completion()) == dumped(plain)
        said = answer["choices"][0]["message"]
        assert ("content.done" in kinds) is bool(said["content"])
        assert ("refusal.done" in kinds) is bool(said["refusal"])

    def test_it_reads_the_chunks(self, client: openai.OpenAI, answer: Json) -> None:
        will_stream(answer)
        *chunks, last = client.chat.completions.create(model="m", messages=[], stream=True)
        choices = [chunk.choices[0] for chunk in chunks]
        assert all(chunk.usage is None for chunk in chunks)
        assert (last.choices, last.usage and last.usage.total_tokens) == ([], 15)
        for whole in answer["choices"]:
            mine = [choice for choice in choices if choice.index == whole["index"]]
            assert [c.finish_reason for c in mine[:-1]] == [None] * (len(mine) - 1)
            assert mine[-1].finish_reason == whole["finish_reason"]
            text = "".join(choice.delta.content or "" for choice in mine)
            assert text == (whole["message"]["content"] or "")

    def test_it_reads_a_folded_answer(self, client: openai.OpenAI, answer: Json) -> None:
        will_fold(shredded(answer, random.Random(1)))
        read = client.chat.completions.create(model="m", messages=[])
        assert read.usage is not None
        assert read.usage.total_tokens == 15
        for choice, whole in zip(read.choices, answer["choices"], strict=True):
            assert choice.finish_reason == whole["finish_reason"]
            assert choice.message.role == "assistant"
            assert choice.message.content == whole["message"]["content"]
            assert choice.message.refusal == whole["message"]["refusal"]
            read_calls = [c.model_dump() for c in choice.message.tool_calls or []]
            assert read_calls == whole["message"].get("tool_calls", [])


def test_the_sdk_reads_text_completions_in_both_shapes(client: openai.OpenAI) -> None:
    answer = openai_answers.Answer("cmpl-1", 7, "m", "Hallo schöne Welt", 3)
    will_stream(openai_answers.completion(answer), include_usage=False)
    chunks = list(client.completions.create(model="m", prompt="", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.text
    assert chunks[-1].choices[0].finish_reason == "stop"
    events = openai_answers.completion_events(answer, include_usage=False)
    will_fold(b"".join(e.encode() for e in events))
    assert client.completions.create(model="m", prompt="").choices[0].text == answer.text
