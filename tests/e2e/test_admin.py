"""The admin endpoint of a real proxy: what it tells, who may ask, and how it drains."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.demo.provider import Reply
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    REPOSITORY,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    closed_port,
    connect,
    eventually,
    llm_route,
    openai_config,
    read_all,
    read_head,
    said,
    to,
    write_rules,
)

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
ADMIN = ("--set", "llm_admin=127.0.0.1:0")
HEADER = "sk-header-0a77d2e4b8"


@pytest.fixture
def rules(openai: Far, moonshot: Far, tmp_path: Path) -> Path:
    config = openai_config(
        apiKey="${OPENAI_API_KEY}", model="m", headers={"x-secret": "${HEADER_KEY}"}
    )
    matched = to(
        "api.openai.com",
        "api.moonshot.cn",
        name="subscribers",
        matches=[{"headers": {"user-type": {"exact": "subscriber"}}}],
    )
    return write_rules(
        tmp_path / "rules",
        openai.manifest(configs=config),
        moonshot.manifest(),
        llm_route("shop", "shop.test", matched, to("api.openai.com", name="others")),
    )


@pytest.fixture
def proxy(start_proxy: StartProxy, rules: Path) -> Proxy:
    return start_proxy(rules, *ADMIN, env={"HEADER_KEY": HEADER})


def ask(proxy: Proxy, path: str, method: str = "GET", **more: Any) -> httpx.Response:
    url = f"http://{proxy.admin}{path}"
    return httpx.request(method, url, trust_env=False, timeout=DEADLINE, **more)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    code = "from pointsman.cli import main; main()"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / "addon")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=DEADLINE * 2, check=False
    )


# --- what it tells --------------------------------------------------------------------------------


def test_a_proxy_that_serves_is_ready(proxy: Proxy) -> None:
    assert ask(proxy, "/healthz").text == "ok\n"
    ready = ask(proxy, "/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "reasons": [], "warnings": [], "under_way": 0}
    page = ask(proxy, "/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "\n# TYPE pointsman_" in page.text
    assert ask(proxy, "/api/live").status_code == 200


def test_the_live_table_is_shown_without_keys(proxy: Proxy, rules: Path) -> None:
    answer = ask(proxy, "/config")
    shown = answer.json()
    for key in (*KEYS.values(), HEADER):
        assert key not in answer.text
    assert shown["rules"] == str(rules)
    assert shown["refused"] is None
    assert shown["options"]["llm_drain_timeout"] == "75s"
    assert shown["options"]["mode"] == ["regular"]
    routes = {route["host"]: route for route in shown["routes"]}
    assert {"api.openai.com", "api.moonshot.cn", "shop.test"} <= set(routes)
    subscribers, others = routes["shop.test"]["rules"]
    assert subscribers["matches"] == ["header user-type = subscriber"]
    assert [target["provider"] for target in subscribers["targets"]] == ["openai", "moonshot"]
    (target,) = others["targets"]
    assert target["state"] == "healthy"
    assert target["key"] == f"...{KEYS['OPENAI_API_KEY'][-4:]}"
    assert target["call"] == {"model": "m", "headers": {"x-secret": f"...{HEADER[-4:]}"}}


def test_a_refused_reload_is_shown_until_it_is_mended(proxy: Proxy, rules: Path) -> None:
    before = ask(proxy, "/config").json()
    bad = rules / "bad.yaml"
    bad.write_text("apiVersion: istio.alibabacloud.com/v1beta1\nkind: LLMRoute\n", encoding="utf-8")
    refused = eventually(lambda: ask(proxy, "/config").json()["refused"], what="the problems")
    assert any("bad.yaml" in problem for problem in refused["problems"])
    ready = ask(proxy, "/readyz")
    assert ready.status_code == 200
    assert "refused" in ready.json()["warnings"][0]
    bad.unlink()
    eventually(lambda: ask(proxy, "/config").json()["refused"] is None, what="good rules")
    after = ask(proxy, "/config").json()
    assert after["fingerprint"] == before["fingerprint"]
    assert after["liveSince"] > before["liveSince"]
    proxy.expect_error("the rules were not reloaded")


def test_a_certificate_that_is_gone_makes_it_not_ready(
    confdir: Path, rules: Path, tmp_path: Path
) -> None:
    own = tmp_path / "confdir"
    shutil.copytree(confdir, own)
    with Proxy(own, rules, *ADMIN, env={**KEYS, "HEADER_KEY": HEADER}) as proxy:
        assert ask(proxy, "/readyz").status_code == 200
        proxy.certificate.unlink()
        ready = ask(proxy, "/readyz")
        assert ready.status_code == 503
        assert ready.json()["reasons"] == ["the CA's certificate is not exported"]


def test_what_is_not_ready_is_told_by_the_command_line(proxy: Proxy) -> None:
    found = run("health", "--admin", proxy.admin)
    assert (found.returncode, found.stdout) == (0, "ready\n")
    assert ask(proxy, "/drain?soft=true", "POST").status_code == 202
    found = run("health", "--admin", proxy.admin)
    assert (found.returncode, found.stderr) == (1, "not ready: draining\n")


# --- who may ask ----------------------------------------------------------------------------------


def test_another_name_and_another_site_are_refused(proxy: Proxy) -> None:
    assert ask(proxy, "/config", headers={"host": "evil.example"}).status_code == 403
    refused = ask(proxy, "/drain", "POST", headers={"origin": "https://evil.example"})
    assert refused.status_code == 403
    assert ask(proxy, "/drain").status_code == 405
    assert ask(proxy, "/readyz").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"])
def test_no_one_reaches_it_through_the_proxy(proxy: Proxy, host: str) -> None:
    port = proxy.admin.rpartition(":")[2]
    with connect(proxy.address) as conn:
        head = f"POST http://{host}:{port}/drain HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        conn.sendall(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        assert b" 502 " in read_all(conn).partition(b"\r\n")[0]
    assert ask(proxy, "/readyz").status_code == 200


def test_probes_from_outside_have_a_listener_of_their_own(
    start_proxy: StartProxy, rules: Path
) -> None:
    port = closed_port()
    options = (*ADMIN, "--set", f"llm_health=0.0.0.0:{port}")
    proxy = start_proxy(rules, *options, env={"HEADER_KEY": HEADER})
    proxy.says(f"health endpoint at 0.0.0.0:{port}")
    url = f"http://{LOOPBACK}:{port}"
    named = {"host": "a-pod.example"}
    with httpx.Client(base_url=url, trust_env=False, headers=named) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200
        for path in ("/config", "/api/live", "/drain", "/"):
            assert client.get(path).status_code == 404
        assert client.post("/drain").status_code == 404
    assert ask(proxy, "/config").status_code == 200


# --- where it listens -----------------------------------------------------------------------------


def test_it_listens_on_a_socket_file(start_proxy: StartProxy, rules: Path, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    options = ("--set", f"llm_admin=unix:{path}")
    proxy = start_proxy(rules, *options, env={"HEADER_KEY": HEADER})
    assert proxy.admin == f"unix:{path}"
    assert run("health", "--admin", proxy.admin).returncode == 0
    proxy.stop()
    assert not path.exists()


def test_where_the_default_address_is_taken_it_goes_on_without(
    start_proxy: StartProxy, rules: Path
) -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # then someone else has it
            stack.enter_context(socket.create_server(("127.0.0.1", 15020)))
        proxy = start_proxy(rules, env={"HEADER_KEY": HEADER}, default_admin=True)
        proxy.says("there is no admin endpoint: 127.0.0.1:15020 can't be listened on: it is in use")
        with proxy.client() as client:
            assert said(client.post(URL, json=chat()))
        proxy.entry()
        proxy.stop()


@pytest.mark.parametrize("program", ["mitmdump", "mitmweb"])
def test_an_address_that_is_taken_is_a_start_up_error(
    confdir: Path, rules: Path, program: str
) -> None:
    more = ("--set", "web_port=0", "--set", "web_open_browser=false")
    with socket.create_server((LOOPBACK, 0)) as taken:
        address = f"{LOOPBACK}:{taken.getsockname()[1]}"
        options = ("--set", f"llm_admin={address}", *(more if program == "mitmweb" else ()))
        env = {**KEYS, "HEADER_KEY": HEADER}
        proxy = Proxy(confdir, rules, *options, env=env, program=program)
        proxy.start()
        assert proxy.wait() == 1
    assert f"llm_admin: {address} can't be listened on: it is in use; choose" in proxy.printed


def test_an_odd_address_is_a_start_up_error(confdir: Path, rules: Path) -> None:
    env = {**KEYS, "HEADER_KEY": HEADER}
    proxy = Proxy(confdir, rules, "--set", "llm_admin=15020", env=env)
    proxy.start()
    assert proxy.wait() == 1
    assert "llm_admin: '15020' is no address to listen on; write host:port" in proxy.printed


# --- drain ----------------------------------------------------------------------------------------


def test_a_drain_by_the_command_line_ends_the_process(proxy: Proxy, openai: Far) -> None:
    openai.provider.replies.append(
        Reply(
            headers=[("content-type", "text/event-stream")],
            body=[b"data: {}\n\n"] * 4 + [b"data: [DONE]\n\n"],
            chunk_delay=0.5,
        )
    )
    admin = proxy.admin
    with (
        proxy.client() as client,
        client.stream("POST", URL, json=chat(stream=True)) as answer,
    ):
        chunks = answer.iter_raw()
        got = next(chunks)
        begun = run("drain", "--admin", admin)
        assert (begun.returncode, begun.stdout) == (0, "draining\n")
        got += b"".join(chunks)
    assert got.endswith(b"data: [DONE]\n\n")
    assert_entry(proxy.entry(), status=200, flags=[])
    waited = run("drain", "--wait", "--admin", admin)
    assert waited.returncode in (0, 1)  # it may have ended before it could be asked
    proxy.ended()
    gone = run("drain", "--admin", admin)
    assert gone.returncode == 1
    assert f"no admin endpoint at {admin}" in gone.stderr


def test_draining_is_told_while_the_last_requests_end(proxy: Proxy, openai: Far) -> None:
    openai.provider.replies.append(Reply(delay=3))
    got: list[int] = []

    def post() -> None:
        with proxy.client() as client:
            got.append(client.post(URL, json=chat()).status_code)

    client = threading.Thread(target=post)
    client.start()
    eventually(lambda: len(openai.provider.calls) == 1, what="the call")
    assert ask(proxy, "/drain", "POST").status_code == 202
    ready = ask(proxy, "/readyz")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == ["draining"]
    assert ready.json()["under_way"] == 1
    client.join(DEADLINE)
    assert got == [200]
    assert_entry(proxy.entry(), status=200)
    proxy.ended()


def test_a_soft_drain_goes_on_accepting(proxy: Proxy, openai: Far) -> None:
    soft = run("drain", "--soft", "--wait", "--admin", proxy.admin)
    assert (soft.returncode, soft.stdout) == (0, "drained\n")
    ready = ask(proxy, "/readyz")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == ["draining"]
    with proxy.client() as client:
        for _ in range(2):
            answer = client.post(URL, json=chat())
            assert said(answer)
            assert answer.headers["connection"] == "close"
    with proxy.client(http2=True) as client:
        assert said(client.post(URL, json=chat()))
    assert [entry["status"] for entry in proxy.logged(3)] == [200] * 3


def test_two_streams_of_one_http2_connection_both_end(proxy: Proxy, openai: Far) -> None:
    """The end of the first must not take the connection from the second."""
    events: list[Json] = [{"choices": [{"delta": {"content": str(n)}}]} for n in range(6)]
    pieces = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    for delay in (0.1, 0.6):
        openai.provider.replies.append(
            Reply(
                headers=[("content-type", "text/event-stream")],
                body=[*pieces, b"data: [DONE]\n\n"],
                chunk_delay=delay,
            )
        )
    with proxy.client(http2=True) as client:
        with (
            client.stream("POST", URL, json=chat(stream=True)) as first,
            client.stream("POST", URL, json=chat(stream=True)) as second,
        ):
            one, other = first.iter_raw(), second.iter_raw()
            got = [next(one), next(other)]
            assert ask(proxy, "/drain", "POST").status_code == 202
            got[0] += b"".join(one)
            got[1] += b"".join(other)
        assert got == [b"".join([*pieces, b"data: [DONE]\n\n"])] * 2
    assert [entry["flags"] for entry in proxy.logged(2)] == [[], []]
    proxy.ended()


def test_a_raw_client_is_told_to_leave(proxy: Proxy, openai: Far) -> None:
    assert ask(proxy, "/drain?soft=true", "POST").status_code == 202
    body = json.dumps(chat()).encode()
    with connect(proxy.address) as conn:
        conn.sendall(
            b"POST http://api.openai.com/v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        head = read_head(conn)
        assert b" 200 " in head.partition(b"\r\n")[0]
        assert b"connection: close\r\n" in head.lower()
        assert read_all(conn)
    assert_entry(proxy.entry(), status=200)
