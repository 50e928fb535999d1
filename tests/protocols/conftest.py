"""What the tests of the protocols share."""

from collections.abc import Callable

import pytest

from pointsman.protocols import Reader, detect

type Read = Callable[..., Reader]


@pytest.fixture
def read() -> Read:
    """Read a whole response to a POST on `path`; its bytes must pass unchanged."""

    def read_body(path: str, body: bytes, *, event_stream: bool = False) -> Reader:
        api = detect("POST", path)
        assert api is not None
        reader = api.reader(event_stream=event_stream)
        assert reader.feed(body) + reader.close() == body
        assert reader.fault is None
        return reader

    return read_body
