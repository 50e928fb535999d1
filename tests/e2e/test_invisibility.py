"""What real providers once answered reaches the client byte for byte when it is accounted for."""

import base64
import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Call, Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.harness import REPOSITORY, Far, Json, Proxy, trusting, write_rules

pytestmark = pytest.mark.e2e

RECORDINGS = Path(
    os.environ.get("POINTSMAN_RECORDINGS", REPOSITORY.parent / "shared" / "recordings")
)
SEEDS = range(3)


@dataclass(frozen=True)
class Recording:
    """One recorded exchange."""

    name: str
    host: str
    path: str
    status: int
    content_type: str
    request: bytes
    response: bytes


def content(side: Json) -> bytes:
    return base64.b64decode(side["base64"]) if "base64" in side else side["text"].encode()


def read(path: Path) -> Recording:
    found = json.loads(path.read_text(encoding="utf-8"))
    return Recording(
        name=path.stem,
        host=found["host"],
        path=found["path"],
        status=found["status"],
        content_type=found["content_type"],
        request=content(found["request"]),
        response=content(found["response"]),
    )


FILES = sorted(RECORDINGS.glob("*.json"))


class Stage:
    def __init__(self, proxy: Proxy, far: Far) -> None:
        self.proxy = proxy
        self.far = far


def pieces(body: bytes, seed: int) -> Iterator[bytes]:
    """Cut into pieces of one byte to some kilobytes, small ones more often."""
    draw = random.Random(seed)
    start = 0
    while start < len(body):
        size = int(2 ** draw.uniform(0, 12))
        yield body[start : start + size]
        start += size


def replay(recording: Recording, seed: int) -> Reply:
    headers = [("content-type", recording.content_type), ("x-request-id", recording.name)]
    if seed % 2:
        headers.append(("content-length", str(len(recording.response))))
    return Reply(
        status=recording.status, headers=headers, body=list(pieces(recording.response, seed))
    )


@pytest.fixture(scope="module")
def stage(
    confdir: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    hosts = sorted({read(path).host for path in FILES})
    if not hosts:
        pytest.skip(f"no recordings in {RECORDINGS}")
    with ExitStack() as stack:
        provider = Provider("replaying", hosts[0])
        server = stack.enter_context(ThreadedServer([provider], tls=authority.issue(*hosts)))
        far = Far(provider, server, authority)
        rules = write_rules(
            tmp_path_factory.mktemp("invisibility"),
            *(
                {
                    **(made := far.manifest(path=None)),
                    "metadata": {"name": host.replace(".", "-")},
                    "spec": {**made["spec"], "host": host},
                }
                for host in hosts
            ),
        )
        with Proxy(confdir, rules) as proxy:
            yield Stage(proxy, far)


def fetch(client: httpx.Client, url: str, recording: Recording) -> tuple[Json, bytes]:
    headers = {
        "content-type": "application/json",
        "authorization": "Bearer own",
        "host": recording.host,
    }
    extensions = {"sni_hostname": recording.host}
    with client.stream(
        "POST", url, content=recording.request, headers=headers, extensions=extensions
    ) as answer:
        body = b"".join(answer.iter_raw())
        shown = {
            name: answer.headers.get_list(name)
            for name in ("content-type", "content-length", "x-request-id", "server", "set-cookie")
        }
        return {"status": answer.status_code, **shown}, body


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_an_accounted_answer_is_the_providers(stage: Stage, path: Path, http2: bool) -> None:
    recording = read(path)
    stage.proxy.forget()
    provider = stage.far.provider
    direct_trust = trusting(stage.far.authority.certificate)
    with (
        httpx.Client(verify=direct_trust, trust_env=False, http2=http2) as direct,
        stage.proxy.client(http2=http2) as client,
    ):
        for seed in SEEDS:
            provider.calls.clear()
            provider.replies.extend([replay(recording, seed), replay(recording, seed)])
            wanted = fetch(direct, f"{stage.far.server.url}{recording.path}", recording)
            found = fetch(client, f"https://{recording.host}{recording.path}", recording)
            assert found == wanted
            assert found[1] == recording.response
            first, second = stage.far.calls(2)
            assert_same_request(first, second)
    entries = stage.proxy.logged(len(SEEDS))
    assert [entry["status"] for entry in entries] == [recording.status] * len(SEEDS)
    assert [entry["response_bytes"] for entry in entries] == [len(recording.response)] * len(SEEDS)


def assert_same_request(direct: Call, through: Call) -> None:
    assert (through.method, through.path, through.body) == (direct.method, direct.path, direct.body)
    assert shown(through) == shown(direct)


def shown(call: Call) -> list[tuple[str, str]]:
    """Return the headers that both must have alike; Host differs as the direct way has a port."""
    own = {"connection", "host"}
    pairs = ((name.lower(), value) for name, value in call.headers)
    return sorted(pair for pair in pairs if pair[0] not in own)
