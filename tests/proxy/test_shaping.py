"""The client's shape, where an answer can't be given in it."""

import gzip
import json

import pytest

from pointsman.config.table import TlsSettings
from pointsman.proxy.shaping import ShapeError, Shaper
from pointsman.routing.rewriting import Outgoing, Shape


def shaper(shape: Shape) -> Shaper:
    """Return a shaper for a chat request, whose answer comes gzipped."""
    return Shaper(
        Outgoing(
            method="POST",
            scheme="https",
            host="far.test",
            port=443,
            address=("far.test", 443),
            tls=TlsSettings(),
            path="/v1/chat/completions",
            headers=(),
            body=b"",
            model="m",
            stream=shape == "fold",
            shape=shape,
        ),
        "gzip",
    )


def test_a_small_answer_that_would_be_a_stream_without_end_is_refused() -> None:
    choices = [{"index": n, "message": {"content": "a"}} for n in range(1500)]
    answer = gzip.compress(json.dumps({"id": "z" * 100_000, "choices": choices}).encode())
    assert len(answer) < 20_000
    turned = shaper("unfold")
    turned.feed(answer)
    with pytest.raises(ShapeError, match="can't be read"):
        turned.close()
