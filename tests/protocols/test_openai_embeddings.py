from collections.abc import Callable

import pytest

from pointsman.protocols import Reader, Usage

PATH = "/v1/embeddings"


def test_embeddings_have_prompt_tokens_and_no_completion(read: Callable[..., Reader]) -> None:
    reader = read(
        PATH,
        b'{"data":[{"embedding":[0.1]}],"model":"m","usage":{"prompt_tokens":4,"total_tokens":4}}',
    )
    assert reader.usage == Usage(4, None, 4)
    assert (reader.model, reader.complete, reader.content_started) == ("m", True, True)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"data":', b'{"model":"\xff"}', b'{"model":' + b"[" * 100_000],
)
def test_garbage_is_unknown_and_no_error(read: Callable[..., Reader], body: bytes) -> None:
    reader = read(PATH, body)
    assert (reader.usage, reader.model, reader.complete) == (None, None, False)


def test_an_error_body_has_failed(read: Callable[..., Reader]) -> None:
    assert read(PATH, b'{"error":{"message":"no"}}').failed
