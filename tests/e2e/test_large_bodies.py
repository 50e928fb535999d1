"""Bodies over the limit pass as they come where no one has to read them: uploaded files."""

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.harness import Far, Proxy, assert_entry

pytestmark = pytest.mark.e2e

PIECE = bytes(range(256)) * 64  # 16 KiB
PIECES = 40
WHOLE = PIECE * PIECES  # ten times the limit of the shared proxy
OWN = {"authorization": "Bearer sk-own-key-of-client", "content-type": "multipart/form-data"}


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def client(request: pytest.FixtureRequest, pointsman: Proxy) -> Iterator[httpx.Client]:
    with pointsman.client(http2=request.param, headers=OWN) as client:
        yield client


def pieces() -> Iterator[bytes]:
    for _ in range(PIECES):
        yield PIECE


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_upload_to_a_host_that_is_only_accounted_for_passes(
    pointsman: Proxy, accounted: Far, client: httpx.Client, chunked: bool
) -> None:
    content = pieces() if chunked else WHOLE
    answer = client.post(f"https://{accounted.provider.host}/v1/files", content=content)
    assert answer.status_code == 404  # the provider has no such API, and says so itself
    assert "x-pointsman-error" not in answer.headers
    call = accounted.call()
    assert call.body == WHOLE
    assert call.header("authorization") == OWN["authorization"]
    assert_entry(
        pointsman.entry(), status=404, flags=[], request_bytes=len(WHOLE), path="/v1/files"
    )


def test_an_upload_gets_the_key_of_the_rules(
    pointsman: Proxy, openai: Far, client: httpx.Client
) -> None:
    answer = client.post("https://api.openai.com/v1/files", content=WHOLE)
    assert "x-pointsman-error" not in answer.headers
    call = openai.call()
    assert call.body == WHOLE
    assert call.header("authorization") not in {None, OWN["authorization"]}
    assert_entry(pointsman.entry(), request_bytes=len(WHOLE), upstream_path="/v1/files")


def test_an_upload_to_a_provider_that_is_gone_is_a_502(
    pointsman: Proxy, client: httpx.Client
) -> None:
    answer = client.post("https://refusing.example/v1/files", content=WHOLE)
    assert answer.status_code == 502
    assert answer.headers["x-pointsman-error"] == "upstream_failure"
    assert_entry(pointsman.entry(), status=502, flags=["UF"])
