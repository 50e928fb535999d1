"""What the tests of the rules share: where they are, and requests as clients send them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pointsman.routing.request import Body, ClientRequest

RULES = Path(__file__).resolve().parents[2] / "rules"

type MakeRequest = Callable[..., ClientRequest]


@pytest.fixture
def rules() -> Path:
    """The folder that runs by default."""
    return RULES


@pytest.fixture
def make_request() -> MakeRequest:
    """Make the request that a client sends; a mapping as its body is sent as JSON."""

    def make(
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, object] | bytes = b"",
    ) -> ClientRequest:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = [(b"Host", parts.netloc.encode())]
        fields += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        return ClientRequest(
            method=method,
            scheme=parts.scheme,
            host=host,
            port=port,
            path=f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}",
            headers=tuple(fields),
            body=Body(raw, limit=1 << 20),
            address=(host, port),
        )

    return make
