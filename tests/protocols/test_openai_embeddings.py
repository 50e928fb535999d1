from collections.abc import Callable

import pytest

from pointsman.protocols import Reader, Usage, reader

PATH = "/v1/embeddings"


def test_embeddings_have_prompt_tokens_and_no_completion(read: Callable[..., Reader]) -> None:
    reader = read(
        PATH,
        b'{"data":[{"embedding":[0.1]}],"model":"m","usage":{"prompt_tokens":4,"total_tokens":4}}',
    )
    assert reader.usage == Usage(4, None, 4)
    assert (reader.model, reader.complete, reader.content_started) == ("m", True, True)


def test_of_any_number_of_vectors_the_usage_is_read(
    read: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MOST_VALUES", 10)
    vector = ",".join(["0.1"] * 100)
    body = f'{{"data":[{{"embedding":[{vector}]}}],"usage":{{"prompt_tokens":4,"total_tokens":4}}}}'
    assert read(PATH, body.encode()).usage == Usage(4, None, 4)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"data":', b'{"model":"\xff"}', b'{"model":' + b"[" * 100_000],
)
def test_garbage_is_unknown_and_no_error(read: Callable[..., Reader], body: bytes) -> None:
    reader = read(PATH, body)
    assert (reader.usage, reader.model, reader.complete) == (None, None, False)


def test_an_error_body_has_failed(read: Callable[..., Reader]) -> None:
    assert read(PATH, b'{"error":{"message":"no"}}').failed
