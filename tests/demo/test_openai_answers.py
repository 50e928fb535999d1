import json

from pointsman.demo.openai_answers import (
    Answer,
    chat,
    chat_events,
    completion_events,
    embeddings,
    response_events,
    texts,
)

ANSWER = Answer(id="chatcmpl-1", created=1, model="small", text="one  two three", prompt_tokens=4)


def test_the_words_of_a_stream_join_to_the_whole_text() -> None:
    chunks = [
        json.loads(event.data) for event in list(chat_events(ANSWER, include_usage=False))[:-1]
    ]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == ANSWER.text


def test_a_chat_stream_goes_role_words_finish_done() -> None:
    *events, done = chat_events(ANSWER, include_usage=False)
    choices = [json.loads(event.data)["choices"][0] for event in events]
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]
    assert choices[-1]["delta"] == {}
    assert done.encode() == b"data: [DONE]\n\n"


def test_without_include_usage_no_chunk_has_the_field() -> None:
    for events in (
        chat_events(ANSWER, include_usage=False),
        completion_events(ANSWER, include_usage=False),
    ):
        assert not any('"usage"' in event.data for event in events)


def test_with_include_usage_it_is_null_until_an_extra_event_without_choices() -> None:
    for events in (
        chat_events(ANSWER, include_usage=True),
        completion_events(ANSWER, include_usage=True),
    ):
        *chunks, last = [json.loads(event.data) for event in list(events)[:-1]]
        assert all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 7


def test_a_token_is_a_word() -> None:
    usage = chat(ANSWER)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 3)


def test_response_events_are_named_numbered_and_end_with_the_usage() -> None:
    events = list(response_events(ANSWER))
    values = [json.loads(event.data) for event in events]
    assert [value["type"] for value in values] == [event.name for event in events]
    assert [value["sequence_number"] for value in values] == list(range(len(events)))
    assert values[0]["response"]["usage"] is None
    assert values[-1]["type"] == "response.completed"
    assert values[-1]["response"]["usage"]["total_tokens"] == 7


def test_texts_are_found_in_every_form_of_a_prompt() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
    ]
    assert list(texts(messages)) == ["be brief", "hello"]
    assert list(texts("plain")) == ["plain"]
    assert list(texts(["a", "b"])) == ["a", "b"]


def test_the_same_input_has_the_same_embedding() -> None:
    first, second, other = embeddings("small", ["x", "x", "y"], "float")["data"]
    assert first["embedding"] == second["embedding"] != other["embedding"]
