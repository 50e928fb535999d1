import pytest

from pointsman.protocols import detect, model_in_path, streams_by_path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "openai-chat"),
        ("/compatible-mode/v1/chat/completions", "openai-chat"),
        ("/openai/deployments/d/chat/completions?api-version=2024-10-21", "openai-chat"),
        ("/chat/completions/", "openai-chat"),
        ("/v1/completions", "openai-completions"),
        ("/v1/embeddings", "openai-embeddings"),
        ("/v1/responses", "openai-responses"),
        ("/v1/messages?beta=true", "anthropic-messages"),
        ("/anthropic/v1/messages", "anthropic-messages"),
        ("/v1beta/models/gemini-2.5-pro:generateContent", "gemini"),
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", "gemini"),
        ("/v1beta/models/gemini-embedding-001:embedContent", "gemini"),
    ],
)
def test_the_shape_of_the_path_tells_the_api(path: str, name: str) -> None:
    api = detect("POST", path)
    assert api is not None
    assert api.name == name


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/models",
        "/v1/messages/count_tokens",
        "/v1/messages/batches",
        "/v1/threads/t/messages",
        "/v1/responses/resp_1/cancel",
        "/v1/files?next=/chat/completions",
        "/v1beta/models/gemini-2.5-pro:countTokens",
    ],
)
def test_other_paths_are_none_of_the_apis(path: str) -> None:
    assert detect("POST", path) is None


def test_only_a_post_is_an_api_call() -> None:
    assert detect("GET", "/v1/chat/completions") is None


def test_filter_usage_is_ignored_where_there_is_nothing_to_filter() -> None:
    event = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    for path, event_stream in (("/v1/messages", True), ("/v1/chat/completions", False)):
        api = detect("POST", path)
        assert api is not None
        reader = api.reader(event_stream=event_stream, filter_usage=True)
        assert reader.feed(event) == event


@pytest.mark.parametrize(
    ("path", "model", "stream"),
    [
        ("/v1beta/models/gemini-2.5-pro:generateContent", "gemini-2.5-pro", False),
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", "gemini-2.5-pro", True),
        ("/v1beta/models/gemini-embedding-001:embedContent/", "gemini-embedding-001", False),
        ("/v1beta/models/gemini-2.5-pro:countTokens?key=a/b:c", "gemini-2.5-pro", False),
        (
            "/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:streamGenerateContent",
            "gemini-2.5-pro",
            True,
        ),
        ("/v1beta/models/my%20model:generateContent", "my model", False),
        ("/v1beta/models/gemini-2.5-pro", None, False),
        ("/v1/models", None, False),
        ("/v1/models/a/b:generateContent", None, False),
        ("/v1/chat/completions", None, False),
        ("/v1/files?next=/models/m:streamGenerateContent", None, False),
    ],
)
def test_geminis_paths_tell_the_model_and_whether_to_stream(
    path: str, model: str | None, stream: bool
) -> None:
    assert model_in_path(path) == model
    assert streams_by_path(path) is stream
