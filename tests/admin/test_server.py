"""The admin endpoint over real sockets, in front of a source that says what a test wants."""

import asyncio
import json
import logging
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.admin import server
from pointsman.admin.server import METRICS_TYPE, Server, serve
from pointsman.admin.source import Readiness

LIMIT = 20.0


class Told:
    """A source that answers what it was given, and remembers what it was asked to do."""

    def __init__(self, *reasons: str, key_reasons: tuple[str, ...] = ()) -> None:
        self.reasons = reasons
        self.key_reasons = key_reasons
        self.drains: list[bool] = []
        self.asked: list[Mapping[str, int] | None] = []
        self.fault: Exception | None = None
        self.table: dict[str, Any] = {"routes": []}

    async def readiness(self, *, keys: bool = True) -> Readiness:
        if not keys:
            return Readiness(self.reasons, under_way=3, warnings=self.key_reasons)
        return Readiness(self.reasons + self.key_reasons, under_way=3)

    async def config(self) -> dict[str, Any]:
        if self.fault:
            raise self.fault
        return self.table

    async def metrics(self) -> bytes:
        return b"pointsman_up 1\n"

    async def live(self, after: Mapping[str, int] | None = None) -> dict[str, Any]:
        self.asked.append(after)
        return {"recent": []}

    async def drain(self, *, soft: bool = False) -> None:
        self.drains.append(soft)


type Play = Callable[[Server, httpx.AsyncClient], Awaitable[None]]


def served(told: Told, play: Play, address: str = "127.0.0.1:0", **how: bool) -> None:
    """Run `play` beside a server, both in one event loop."""

    async def run() -> None:
        running = serve(told, address, **how)
        unix = running.address.removeprefix("unix:")
        transport = httpx.AsyncHTTPTransport(uds=unix) if address.startswith("unix:") else None
        base = "http://localhost" if transport else f"http://{running.address}"
        try:
            async with httpx.AsyncClient(
                base_url=base, transport=transport, trust_env=False, timeout=LIMIT
            ) as client:
                await play(running, client)
        finally:
            await running.close()

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_it_answers_probes() -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        health = await client.get("/healthz")
        assert (health.status_code, health.text) == (200, "ok\n")
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json() == {"ready": True, "reasons": [], "warnings": [], "under_way": 3}

    served(Told(), play)


def test_json_is_written_for_people() -> None:
    told = Told()
    targets = [{"host": "größe.test", "weight": 2, "path": 'a"\\b\n', "observe": None}]
    told.table = {"routes": [{"targets": targets, "also": [], "call": {}}], "seconds": 0.5}

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        answer = await client.get("/config")
        assert answer.headers["content-type"] == "application/json"
        assert answer.text == json.dumps(told.table, indent=2, ensure_ascii=False) + "\n"

    served(told, play)


def test_what_is_not_ready_says_why() -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["reasons"] == ["draining", "no listener"]

    served(Told("draining", "no listener"), play)


def test_a_probe_may_leave_out_keys_and_nothing_else() -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        assert (await client.get("/readyz")).status_code == 503
        ready = await client.get("/readyz?exclude=keys")
        assert (ready.status_code, ready.json()["warnings"]) == (200, ["no key"])
        for query in ("exclude=listeners", "exclude=keys&exclude=x", "exclude="):
            refused = await client.get(f"/readyz?{query}")
            assert (refused.status_code, refused.json()) == (400, {"error": "exclude is keys"})

    served(Told(key_reasons=("no key",)), play)


def test_it_shows_the_table_the_metrics_and_the_snapshot() -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        assert (await client.get("/config")).json() == {"routes": []}
        assert (await client.get("/api/live")).json() == {"recent": []}
        page = await client.get("/metrics")
        assert page.content == b"pointsman_up 1\n"
        assert page.headers["content-type"] == METRICS_TYPE

    served(Told(), play)


def test_the_snapshot_can_leave_out_what_was_seen() -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        await client.get("/api/live")
        await client.get("/api/live", params={"after": "a:1,b:22"})
        assert (await client.get("/api/live?after=nonsense")).status_code == 400

    served(told, play)
    assert told.asked == [None, {"a": 1, "b": 22}]


def test_a_drain_is_begun_by_post_alone() -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        refused = await client.get("/drain")
        assert refused.status_code == 405
        assert refused.headers["allow"] == "POST"
        assert told.drains == []
        assert (await client.post("/drain?soft=maybe")).status_code == 400
        assert (await client.post("/drain")).status_code == 202
        assert (await client.post("/drain?soft=true")).json() == {"draining": True, "soft": True}
        assert told.drains == [False, True]

    served(told, play)


def test_other_methods_and_paths_are_refused() -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        refused = await client.post("/config")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert (await client.get("/config/x")).status_code == 404
        assert (await client.post("/nothing")).status_code == 404

    served(Told(), play)


def test_every_answer_has_the_headers_that_keep_browsers_away() -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        for path in ("/healthz", "/config", "/nothing", "/drain"):
            headers = (await client.get(path)).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers
            assert "etag" not in headers

    served(Told(), play)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:15020", 200),
        ("[::1]:15020", 200),
        ("10.1.2.3", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("evil.example", 403),
        ("evil.example:15020", 403),
        ("[::1].evil.example", 403),
        ("[::1]evil:15020", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
def test_only_a_host_that_no_attacker_can_name_is_answered(host: str, status: int) -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        for path in ("/config", "/healthz"):
            assert (await client.get(path, headers={"host": host})).status_code == status
        missing = await client.get("/nothing", headers={"host": host})
        assert missing.status_code == (403 if status == 403 else 404)

    served(Told(), play)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_can_not_drain(headers: dict[str, str]) -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        assert (await client.post("/drain", headers=headers)).status_code == 403
        assert told.drains == []

    served(told, play)


def test_a_page_of_its_own_can_drain() -> None:
    told = Told()

    async def play(running: Server, client: httpx.AsyncClient) -> None:
        headers = {"origin": f"http://{running.address}", "sec-fetch-site": "same-origin"}
        assert (await client.post("/drain", headers=headers)).status_code == 202

    served(told, play)
    assert told.drains == [False]


def test_the_health_listener_serves_probes_and_metrics_alone_by_any_name() -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path, headers={"host": "pod.example"})).status_code == 200
        for path in ("/config", "/api/live", "/"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/drain")).status_code == 404

    served(told, play, health_only=True)
    assert told.drains == []


def test_a_fault_is_told_in_one_line_and_not_to_the_client(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    told.fault = KeyError("sk-secret")

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        broken = await client.get("/config")
        assert broken.status_code == 500
        assert broken.json() == {"error": "Internal Server Error"}
        assert (await client.get("/healthz")).status_code == 200

    with caplog.at_level(logging.INFO):
        served(told, play)
    told_of = [record for record in caplog.records if record.name != "httpx"]
    assert [record.levelname for record in told_of] == ["ERROR"]
    message = told_of[0].getMessage()
    assert message.startswith("the admin endpoint failed at GET /config: KeyError in test_server")
    assert "\n" not in message
    assert "sk-secret" not in message
    assert told_of[0].exc_info is None
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: se cret\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xffsecret\r\n\r\n",
        b"se cret line\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nsecret\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\xffsecret: 1\r\n\r\n",
        b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: secret\r\n\r\n",
        b"POST /drain HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
        b"POST /drain?soft=%ffsecret HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_malformed_is_not_quoted_in_the_log(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(running: Server, client: httpx.AsyncClient) -> None:
        host, _, port = running.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        writer.write_eof()
        assert b" 200 " not in await reader.read()
        writer.close()
        assert (await client.get("/healthz")).status_code == 200

    with caplog.at_level(logging.DEBUG):
        served(Told(), play)
    assert "cret" not in caplog.text
    assert "\\xff" not in caplog.text


@pytest.mark.parametrize(
    "large",
    [{"content": b"x" * 100_000}, {"headers": {"x-long": "x" * 100_000}}],
    ids=["body", "head"],
)
def test_what_is_large_is_refused(large: dict[str, Any]) -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        try:
            answer = await client.post("/drain", **large)
        except httpx.TransportError:
            pass  # closed while the client was still sending
        else:
            assert answer.status_code >= 400
        assert (await client.get("/healthz")).status_code == 200

    served(told, play)
    assert told.drains == []


def test_the_newest_connection_takes_the_place_of_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_MAX_CONNECTIONS", 3)

    async def play(running: Server, client: httpx.AsyncClient) -> None:
        host, _, port = running.address.rpartition(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(6)]
        assert (await client.get("/healthz")).status_code == 200
        assert await idle[0][0].read() == b""
        for _, writer in idle:
            writer.close()

    served(Told(), play)


# --- where it listens -----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["[::1]:0", "localhost:0", ":0", "[::]:0", "0.0.0.0:0"])
def test_it_listens_on_either_family(address: str) -> None:
    async def play(running: Server, client: httpx.AsyncClient) -> None:
        port = running.address.rpartition(":")[2]
        assert int(port) > 0
        near = "[::1]" if address.startswith("[::1]") else "127.0.0.1"
        assert (await client.get(f"http://{near}:{port}/healthz")).status_code == 200

    served(Told(), play, address)


def test_a_socket_file_is_private_replaces_a_stale_one_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def play(running: Server, client: httpx.AsyncClient) -> None:
        assert running.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        headers = {"host": "any.example"}
        assert (await client.get("/config", headers=headers)).status_code == 200
        with pytest.raises(OSError, match="another process listens there"):
            serve(Told(), f"unix:{path}")
        assert (await client.get("/healthz")).status_code == 200

    served(Told(), play, f"unix:{path}")
    assert not path.exists()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("kept", encoding="utf-8")
    with pytest.raises(OSError, match="a file that is no socket"):
        serve(Told(), f"unix:{path}")
    assert path.read_text(encoding="utf-8") == "kept"


def test_an_address_in_use_is_told_with_the_mend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"{address} can't be listened on: it is in use; choose"):
            serve(Told(), address)


@pytest.mark.parametrize(
    "address", ["", "15020", "127.0.0.1", "::1:15020", "a:70000", "http://a:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        serve(Told(), address)


def test_an_unknown_name_is_told_with_the_mend() -> None:
    with pytest.raises(OSError, match=r"its name is not known.*write an IP address"):
        serve(Told(), "no-such-host.invalid:0")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/config", "/metrics"])
def test_head_is_as_get_without_the_body(path: str) -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        answer, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (answer.status_code, b"")
        assert head.headers["content-type"] == answer.headers["content-type"]

    served(Told(), play)


@pytest.mark.parametrize("cursor", ["a:-99999999999999999999999", "a:1_0", "a:\u0663"])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        answer = await client.get("/api/live", params={"after": cursor})
        assert answer.status_code == 400

    served(Told(), play)
