"""The sidecar's processes: workers that die, drain and share the load, and what is logged of it."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.ca.authority import generate
from pointsman.demo.openai_answers import Answer, chat_events
from pointsman.demo.provider import Reply
from tests.e2e.conftest import KEYS
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Json,
    RawServer,
    assert_entry,
    assert_refused,
    chat,
    connect,
    eventually,
    head_lines,
    openai_config,
    read_head,
    said,
    sse,
    trusting,
    write_rules,
)
from tests.e2e.sidecar import PROGRAM, STARTUP, Sidecar, StartSidecar, is_alive

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc"),
]

URL = "https://api.openai.com/v1/chat/completions"


@pytest.fixture(scope="module")
def own_confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the module: the modules that the first worker compiles are there for the others."""
    return tmp_path_factory.mktemp("c")


@pytest.fixture
def start_sidecar(own_confdir: Path) -> Iterator[StartSidecar]:
    """Start sidecars for one test: `start_sidecar(rules, *options, **more)`."""
    with ExitStack() as stack:

        def start(rules: Path, *options: str, **more: Any) -> Sidecar:
            env = {**KEYS, **more.pop("env", {})}
            confdir = more.pop("confdir", own_confdir)
            return stack.enter_context(Sidecar(confdir, rules, *options, env=env, **more))

        yield start


@pytest.fixture
def rules(tmp_path: Path, openai: Far) -> Path:
    return write_rules(tmp_path / "rules", openai.manifest())


def entries(sidecar: Sidecar) -> list[Json]:
    return sidecar.logged("llm_request")


def counted(page: str, metric: str) -> float:
    """Sum up a metric, whatever its labels."""
    values = re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    return sum(map(float, values))


# --- workers --------------------------------------------------------------------------------------


def test_workers_share_one_port_one_authority_and_one_admin_endpoint(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    sidecar = start_sidecar(rules, "--workers", "2", scripts=["noisy.py"])
    sidecar.expect_errors("plain text", "a fault")
    workers = sidecar.workers()
    assert len(workers) == 2

    def ask() -> None:
        with sidecar.client() as client:
            assert said(client.post(URL, json=chat(model="small")))

    def both_have_served() -> bool:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        return {entry["pid"] for entry in sidecar.logged("accepted")} == set(workers)

    eventually(both_have_served, what="connections at both workers")
    asked = len(openai.provider.calls)
    openai.calls(asked)
    sidecar.wait_for("llm_request", count=asked)
    for entry in entries(sidecar):
        assert_entry(entry, host="api.openai.com", status=200, provider="openai")
    assert sidecar.ask("/config").json()["routes"]
    assert "differingWorkers" not in sidecar.ask("/config").json()
    assert sidecar.ask("/api/live").json()["processes"] == 2
    page = sidecar.ask("/metrics").text
    assert counted(page, "pointsman_requests_total") == asked
    assert 'pointsman_sidecar_worker_up{worker="1"} 1.0' in page
    assert 'pointsman_sidecar_worker_up{worker="2"} 1.0' in page
    assert sidecar.ask("/readyz").json()["ready"] is True


def test_workers_run_without_asserts(start_sidecar: StartSidecar, rules: Path) -> None:
    sidecar = start_sidecar(rules, scripts=["noisy.py"])
    sidecar.expect_errors("plain text", "a fault")
    connect(sidecar.address).close()
    assert sidecar.wait_for("accepted")["optimized"] == 1


def greet(conn: socket.socket) -> bytes:
    """Answer one request with "hi"; return its head."""
    head = read_head(conn)
    conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
    return head


def assert_served(clients: Sequence[socket.socket], site: RawServer) -> None:
    """Assert that each of the open connections to the proxy is one by which the site answers."""
    for client in clients:
        request = f"GET http://{site.address}/ HTTP/1.1\r\nhost: {site.address}\r\n\r\n"
        client.sendall(request.encode())
    for client in clients:
        assert head_lines(read_head(client))[0] == "HTTP/1.1 200 OK"
        client.close()


def test_a_killed_worker_is_back_soon_and_its_clients_wait(
    start_sidecar: StartSidecar, rules: Path, raw_server: Callable[..., RawServer]
) -> None:
    """Another site is reached by way of the proxy or not at all."""

    def serve(conn: socket.socket) -> None:
        seen.append(head_lines(greet(conn))[0])

    seen: list[str] = []
    site = raw_server(serve)
    sidecar = start_sidecar(rules)
    stopping = threading.Event()
    answers: list[float] = []
    failures: list[Exception] = []

    def keep_asking() -> None:
        while not stopping.is_set():
            try:
                with sidecar.client() as client:
                    assert client.get(f"http://{site.address}/{len(answers)}").text == "hi"
            except httpx.HTTPError as error:
                failures.append(error)
            else:
                answers.append(time.monotonic())
            time.sleep(0.01)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    eventually(lambda: len(answers) >= 5, what="answers")
    (worker,) = sidecar.workers()
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: answers[-1] > killed + 0.1, what="an answer after the worker's death")
    stopping.set()
    asking.join(DEADLINE)
    gap = max(b - a for a, b in pairwise(answers))
    assert gap < 10, "the worker was away for too long"
    # The one whose connection the worker had may be cut; those that came later have waited.
    assert len(failures) <= 1
    assert len(seen) - len(answers) in (0, 1)
    sidecar.expect_error("worker 1 was killed by SIGKILL; it starts again in 0 s")
    (died,) = sidecar.logged("worker 1 was killed")
    assert_entry(died, level="error", worker=1, status=-9, pause_s=0.0)
    assert sidecar.workers() != [worker]
    sidecar.wait_until_ready()
    assert 'restarts_total{worker="1"} 1.0' in sidecar.ask("/metrics").text


def test_until_a_killed_worker_serves_again_readiness_tells_what_ended_it(
    start_sidecar: StartSidecar, rules: Path
) -> None:
    sidecar = start_sidecar(rules)
    os.kill(sidecar.workers()[0], signal.SIGKILL)
    sidecar.expect_error("worker 1 was killed by SIGKILL")
    reasons = []
    while not (ready := sidecar.ask("/readyz").json())["ready"]:
        reasons += ready["reasons"]
    assert set(reasons) == {"worker 1 was killed by SIGKILL and starts again"}


def test_what_a_dead_worker_has_counted_stays(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    sidecar = start_sidecar(rules)
    for asked in (1, 2):
        with sidecar.client() as client:
            assert said(client.post(URL, json=chat(model="small")))
        sidecar.wait_for("llm_request", count=asked)
        assert counted(sidecar.ask("/metrics").text, "pointsman_requests_total") == asked
        os.kill(sidecar.workers()[0], signal.SIGKILL)
        sidecar.wait_for("worker 1 was killed by SIGKILL", count=asked)
        sidecar.wait_for("worker 1 serves", count=asked + 1)
        assert counted(sidecar.ask("/metrics").text, "pointsman_requests_total") == asked
    sidecar.expect_errors("worker 1 was killed by SIGKILL")
    openai.calls(2)


def test_no_one_reaches_the_admin_endpoint_through_the_proxy(
    start_sidecar: StartSidecar, rules: Path
) -> None:
    sidecar = start_sidecar(rules)
    with sidecar.client() as client, suppress(httpx.HTTPError):
        answer = client.post(f"http://{sidecar.admin}/drain")
        assert answer.status_code == 502
    assert sidecar.ask("/readyz").json()["ready"] is True


def test_while_a_worker_is_away_readiness_says_so_and_connections_wait(
    start_sidecar: StartSidecar, rules: Path, openai: Far, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    sidecar = start_sidecar(rules, scripts=["not_starting.py"], env={"NOT_STARTING": str(away)})
    away.touch()
    os.kill(sidecar.workers()[0], signal.SIGKILL)
    sidecar.expect_errors("worker 1 ", "this worker does not start", "Error logged during startup")
    sidecar.wait_for("worker 1 ended with status 1; it starts again in 1 s")
    ready = sidecar.ask("/readyz")
    assert ready.status_code == 503
    assert "worker 1 " in ready.json()["reasons"][0]
    with sidecar.client() as client:
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post(URL, json=chat(model="small")))
        )
        asking.start()
        sidecar.wait_for("worker 1 ended with status 1; it starts again in 2 s")
        assert answers == []
        assert not openai.provider.calls
        away.unlink()
        asking.join(DEADLINE)
    assert [said(answer) for answer in answers]
    openai.call()
    sidecar.wait_until_ready()


def test_a_worker_that_starts_again_while_the_rules_are_bad_serves_by_the_last_good_ones(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    sidecar = start_sidecar(rules, "--workers", "2")

    def asked() -> None:
        with sidecar.client() as client:
            assert said(client.post(URL, json=chat(model="small")))
        openai.calls(len(openai.provider.calls))

    good = (rules / "rules.yaml").read_text()
    (rules / "rules.yaml").write_text(good.replace("kind:", "knid:"))
    sidecar.expect_error("the rules were not reloaded, the last good ones stay")
    sidecar.wait_for("the rules were not reloaded", count=2)
    for index, worker in enumerate(sidecar.workers(), 1):
        os.kill(worker, signal.SIGKILL)
        sidecar.expect_error(f"worker {index} was killed by SIGKILL; it starts again in 0 s")
        sidecar.wait_for("worker ", count=2 + 2 * index)  # serves, serves, died, serves, ...
        assert "serves" in sidecar.logged("worker ")[-1]["event"]
    sidecar.wait_for("the rules can't be used, the last good ones are live", count=2)
    asked()
    ready = sidecar.ask("/readyz").json()
    assert ready["ready"] is True
    assert "refused" in ready["warnings"][0]
    assert sidecar.ask("/config").json()["refused"]["problems"]
    assert counted(sidecar.ask("/metrics").text, "pointsman_last_reload_successful") == 0

    (rules / "rules.yaml").write_text(good)
    eventually(lambda: not sidecar.ask("/readyz").json()["warnings"], what="good rules")
    assert sidecar.ask("/config").json()["refused"] is None
    asked()


def test_a_worker_that_hangs_is_killed_and_starts_again(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    impatient = (
        "from pointsman.sidecar import watchdog, workers; watchdog._EVERY_SECONDS = 0.2;"
        " workers._SECONDS = 1.0;"
    )
    sidecar = start_sidecar(rules, program=f"{impatient} {PROGRAM}")
    (worker,) = sidecar.workers()
    os.kill(worker, signal.SIGSTOP)
    sidecar.expect_error("worker 1 hangs: it has not answered 6 times; killing it")
    sidecar.expect_error("worker 1 was killed by SIGKILL; it starts again in 0 s")
    sidecar.wait_for("worker 1 serves", count=2)
    assert not is_alive(worker)
    with sidecar.client() as client:
        assert said(client.post(URL, json=chat(model="small")))
    openai.call()


def test_a_worker_that_hangs_is_told_before_a_probe_gives_up(
    start_sidecar: StartSidecar, rules: Path
) -> None:
    sidecar = start_sidecar(rules)
    (worker,) = sidecar.workers()
    os.kill(worker, signal.SIGSTOP)
    ready = sidecar.ask("/readyz")
    os.kill(worker, signal.SIGCONT)
    assert (ready.status_code, ready.json()["reasons"]) == (503, ["worker 1 does not answer"])


def test_the_limit_of_open_files_is_the_hard_one(start_sidecar: StartSidecar, rules: Path) -> None:
    few = ("sh", "-c", 'ulimit -Sn 256; ulimit -Hn 700; exec "$@"', "sh")
    sidecar = start_sidecar(rules, "--allow-root", prefix=few)
    for pid in (sidecar.pid, *sidecar.workers()):
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
        (line,) = [each for each in limits.splitlines() if each.startswith("Max open files")]
        assert line.split()[3:5] == ["700", "700"]


def test_the_supervisors_death_is_the_workers(
    start_sidecar: StartSidecar, rules: Path, own_confdir: Path
) -> None:
    sidecar = start_sidecar(rules, "--workers", "2")
    workers = sidecar.workers()
    sidecar.kill()
    eventually(lambda: not any(map(is_alive, workers)), what="the end of the workers")
    eventually(lambda: refused(sidecar), what="refused connections")
    assert list(own_confdir.glob("run-*"))
    # The next run sweeps up.
    start_sidecar(rules).stop()


# --- its end --------------------------------------------------------------------------------------


class Held:
    """A stream that goes on when it is let."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def reply(self) -> Reply:
        return Reply(headers=[("content-type", "text/event-stream")], body=self.pieces())

    def pieces(self) -> Iterator[bytes]:
        answer = Answer("chatcmpl-1", 1_700_000_000, "small", "Four words are here", 3)
        first, *others = chat_events(answer, include_usage=False)
        yield first.encode()
        while not self.go_on.wait(0.01):
            # Comments, which the provider's loop needs to go on.
            yield b": still here\n\n"
        for event in others:
            yield event.encode()


def test_sigterm_lets_streams_end_and_takes_no_more(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    held = Held()
    openai.provider.replies.append(held.reply())
    sidecar = start_sidecar(rules, "--workers", "2")
    body = bytearray()
    with (
        sidecar.client() as client,
        client.stream("POST", URL, json=chat(model="small", stream=True)) as answer,
    ):
        pieces = answer.iter_raw()
        body += next(pieces)
        sidecar.send(signal.SIGTERM)
        sidecar.wait_for("draining")
        eventually(lambda: refused(sidecar), what="refused connections")
        assert "draining" in sidecar.ask("/readyz").json()["reasons"]
        held.go_on.set()
        for piece in pieces:
            body += piece
    assert len(sse(bytes(body).replace(b": still here\n\n", b""))) > 2
    sidecar.assert_ended(0)
    (entry,) = entries(sidecar)
    assert_entry(entry, status=200, flags=[], stream=True)


def test_connections_that_no_worker_has_accepted_yet_are_served_at_the_end(
    start_sidecar: StartSidecar, rules: Path, raw_server: Callable[..., RawServer]
) -> None:
    """To their clients they are connected: to close the sockets at once would be to reset them."""

    site = raw_server(greet)
    sidecar = start_sidecar(rules, "--workers", "2")
    workers = sidecar.workers()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    clients = [connect(sidecar.address) for _ in range(60)]
    sidecar.send(signal.SIGTERM)
    sidecar.wait_for("draining")
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    assert_served(clients, site)
    sidecar.assert_ended(0)


def test_connections_that_wait_for_a_worker_to_start_are_served_at_the_end(
    start_sidecar: StartSidecar, rules: Path, raw_server: Callable[..., RawServer]
) -> None:
    site = raw_server(greet)
    sidecar = start_sidecar(rules)
    os.kill(sidecar.workers()[0], signal.SIGKILL)
    sidecar.expect_error("worker 1 was killed by SIGKILL; it starts again in 0 s")
    eventually(lambda: sidecar.workers() != [], what="a worker that starts")
    clients = [connect(sidecar.address) for _ in range(5)]
    sidecar.send(signal.SIGTERM)
    sidecar.wait_for("draining")
    assert_served(clients, site)
    sidecar.assert_ended(0)


def test_who_waits_where_no_worker_is_left_is_told_of(
    start_sidecar: StartSidecar, rules: Path, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    sidecar = start_sidecar(rules, scripts=["not_starting.py"], env={"NOT_STARTING": str(away)})
    away.touch()
    os.kill(sidecar.workers()[0], signal.SIGKILL)
    sidecar.expect_errors("worker 1 ", "this worker does not start", "Error logged during startup")
    sidecar.wait_for("worker 1 ended with status 1; it starts again in 2 s")
    with connect(sidecar.address):
        sidecar.send(signal.SIGTERM)
        sidecar.expect_error("no worker is there to serve the connections that wait")
        sidecar.assert_ended(1)


def test_a_soft_drain_outlives_a_worker(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    sidecar = start_sidecar(rules)
    assert sidecar.ask("/drain?soft=true", "POST").status_code == 202
    os.kill(sidecar.workers()[0], signal.SIGKILL)
    sidecar.expect_error("worker 1 was killed by SIGKILL")
    sidecar.wait_for("worker 1 serves", count=2)

    def asked_to_come_again() -> bool:
        with sidecar.client() as client:
            answer = client.post(URL, json=chat(model="small"))
        assert said(answer)
        return bool(answer.headers.get("connection") == "close")

    eventually(asked_to_come_again, what="an answer that closes its connection")
    openai.calls(len(openai.provider.calls))


def refused(sidecar: Sidecar) -> bool:
    try:
        connect(sidecar.address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_before_the_first_worker_serves_ends_it(own_confdir: Path, rules: Path) -> None:
    sidecar = Sidecar(own_confdir, rules, env=KEYS)
    sidecar.start()
    sidecar.wait_for("listening")
    sidecar.send(signal.SIGTERM)
    sidecar.assert_ended(0)
    assert not sidecar.logged("worker 1 serves")


def test_a_second_sigterm_cuts_every_stream_and_logs_it(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    held = Held()
    openai.provider.replies += [held.reply() for _ in range(5)]
    sidecar = start_sidecar(rules, "--workers", "2")
    with ExitStack() as stack:
        streams = []
        for _ in range(5):
            client = stack.enter_context(sidecar.client())
            asked = client.stream("POST", URL, json=chat(model="small", stream=True))
            streams.append(stack.enter_context(asked).iter_raw())
            next(streams[-1])
        sidecar.send(signal.SIGTERM)
        sidecar.wait_for("draining: the workers")
        eventually(lambda: refused(sidecar), what="both workers draining")
        sidecar.send(signal.SIGTERM)
        for pieces in streams:
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
    held.go_on.set()
    sidecar.assert_ended(0)
    assert len(entries(sidecar)) == 5
    for entry in entries(sidecar):
        assert_entry(entry, status=200, flags=["LR"], error="stopped")


def test_a_second_sigterm_kills_a_worker_that_hangs(
    start_sidecar: StartSidecar, rules: Path
) -> None:
    sidecar = start_sidecar(rules)
    os.kill(sidecar.workers()[0], signal.SIGSTOP)
    sidecar.send(signal.SIGTERM)
    sidecar.wait_for("draining")
    sidecar.send(signal.SIGTERM)
    sidecar.assert_ended(128 + signal.SIGKILL)


def test_drain_by_the_admin_endpoint_ends_it_and_a_sigterm_after_it_cuts_nothing(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    held = Held()
    openai.provider.replies.append(held.reply())
    sidecar = start_sidecar(rules, "--workers", "2")
    with (
        sidecar.client() as client,
        client.stream("POST", URL, json=chat(model="small", stream=True)) as answer,
    ):
        pieces = answer.iter_raw()
        body = next(pieces)
        assert sidecar.ask("/drain", "POST").status_code == 202
        sidecar.wait_for("draining")
        sidecar.send(signal.SIGTERM)
        eventually(lambda: refused(sidecar), what="refused connections")
        held.go_on.set()
        body += b"".join(pieces)
    assert len(sse(body.replace(b": still here\n\n", b""))) > 2
    sidecar.assert_ended(0)


def test_sighup_is_ignored(start_sidecar: StartSidecar, rules: Path, openai: Far) -> None:
    sidecar = start_sidecar(rules)
    sidecar.send(signal.SIGHUP)
    sidecar.wait_for("SIGHUP is ignored")
    with sidecar.client() as client:
        assert said(client.post(URL, json=chat(model="small")))
    openai.call()


@pytest.mark.root
def test_one_writable_folder_is_enough(
    start_sidecar: StartSidecar, own_confdir: Path, rules: Path, openai: Far
) -> None:
    """As with `readOnlyRootFilesystem` and one emptyDir."""
    if os.geteuid() != 0:
        pytest.skip("making a mount namespace needs root")
    read_only = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
    prefix = ("unshare", "--mount", "--", "sh", "-c", read_only, str(own_confdir))
    beside = str(own_confdir.parent / "beside")
    tried = subprocess.run([*prefix, "touch", beside], capture_output=True, text=True, check=False)
    if "Read-only file system" not in tried.stderr:
        pytest.skip(f"the file system can't be made read-only here: {tried.stderr}")
    sidecar = start_sidecar(rules, "--allow-root", prefix=prefix)
    with sidecar.client() as client:
        assert said(client.post(URL, json=chat(model="small")))
    openai.call()
    assert counted(sidecar.ask("/metrics").text, "pointsman_requests_total") == 1


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_confdir(own_confdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A confdir with room for 1 MiB, as a memory volume with a limit has it."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path_factory.mktemp("small")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    try:
        (folder / "bytecode").symlink_to(own_confdir / "bytecode")
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "fill").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.root
def test_a_confdir_that_fills_up_costs_counts_and_no_traffic(
    start_sidecar: StartSidecar, small_confdir: Path, rules: Path, openai: Far
) -> None:
    sidecar = start_sidecar(rules, confdir=small_confdir)
    fill(small_confdir)

    def ask_for_models(first: int) -> None:
        with sidecar.client() as client:
            for number in range(first, first + 30):
                assert said(client.post(URL, json=chat(model=f"model-{number}")))
        sidecar.wait_for("llm_request", count=first + 30)

    def missing() -> int:
        return len(sidecar.logged("some counts are missing from the metrics"))

    ask_for_models(0)
    assert missing() == 1
    assert counted(sidecar.ask("/metrics").text, "pointsman_requests_total") > 0
    os.kill(sidecar.workers()[0], signal.SIGKILL)
    sidecar.expect_error("worker 1 was killed by SIGKILL")
    sidecar.wait_for("worker 1 serves", count=2)
    ask_for_models(30)
    assert missing() in (2, 3)  # in both lives, and by the supervisor, which has to tidy up
    assert sidecar.ask("/metrics").status_code == 200
    openai.calls(60)


@pytest.mark.root
def test_a_confdir_that_is_full_at_the_start_ends_it_with_the_mend(
    small_confdir: Path, rules: Path
) -> None:
    (small_confdir / "left").write_bytes(bytes(900 * 1024))
    nearly = failing(small_confdir, "--workers", "2", rules=rules, env=KEYS)
    fill(small_confdir)
    full = failing(small_confdir / "c", rules=rules, env=KEYS)
    for end in (nearly, full):
        assert end["code"] == 1
        assert "No space left on device" in end["event"]
        assert "make its volume larger" in end["event"]


# --- its output -----------------------------------------------------------------------------------


def test_all_that_a_worker_prints_becomes_json(start_sidecar: StartSidecar, rules: Path) -> None:
    """(That all lines are JSON, and standard error is empty, is looked at at each end.)"""
    sidecar = start_sidecar(rules, scripts=["noisy.py"])
    sidecar.expect_errors("plain text", "a fault")
    (worker,) = sidecar.workers()
    about = {"worker": 1, "pid": worker}
    assert_entry(
        sidecar.wait_for("plain text"), level="error", logger="pointsman.worker.stdout", **about
    )
    assert_entry(
        sidecar.wait_for("plain text of an error"), logger="pointsman.worker.stderr", **about
    )
    fault = sidecar.wait_for("a fault")
    assert "KeyError" in fault["exception"]
    assert fault["level"] == "critical"
    (warning,) = [one for one in sidecar.logged() if "this is a warning" in one["event"]]
    assert warning["level"] == "warning"


def test_a_reader_of_the_log_that_stalls_costs_lines_and_no_traffic(
    start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    keep_few = (
        "from pointsman.telemetry.line_writer import LineWriter;"
        " LineWriter.__init__.__defaults__ = (50_000,);"
    )
    sidecar = start_sidecar(rules, "--workers", "2", program=f"{keep_few} {PROGRAM}")
    asked = 200
    with sidecar.out.stalled(), sidecar.client() as client:
        for _ in range(asked):
            assert said(client.post(URL, json=chat(model="small")))
        assert sidecar.ask("/healthz").status_code == 200
    told = "lines of this log were lost, as its reader had stalled: "
    sidecar.wait_for(told)

    def lost() -> int:
        return sum(int(entry["event"].removeprefix(told)) for entry in sidecar.logged(told))

    eventually(lambda: len(entries(sidecar)) + lost() == asked, what="the number of lost lines")
    assert lost() > 0
    with sidecar.client() as client:
        assert said(client.post(URL, json=chat(model="small")))
    sidecar.wait_for("llm_request", count=asked - lost() + 1)
    openai.calls(asked + 1)


def failing(confdir: Path, *options: str, rules: Path | None = None, **more: Any) -> Json:
    """Run a sidecar that can't start; return its last words, and its exit status beside them."""
    sidecar = Sidecar(confdir, rules, *options, **more)
    sidecar.start()
    code = sidecar.wait()
    last = sidecar.logged()[-1]
    assert last["level"] == "critical"
    return {**last, "code": code, "all": sidecar.out.text()}


def test_bad_rules_at_the_start_end_it(own_confdir: Path, tmp_path: Path, openai: Far) -> None:
    manifest = openai.manifest()
    manifest["spec"]["paht"] = manifest["spec"].pop("path")
    rules = write_rules(tmp_path / "rules", manifest)
    end = failing(own_confdir, "--workers", "2", rules=rules, env=KEYS)
    assert end["code"] == 1
    assert end["event"].startswith("worker 1 ended with status 1 before it could serve")
    assert 'did you mean \\"path\\"?' in end["all"]
    assert "rules.yaml:" in end["all"]
    assert end["all"].count("did you mean") == 1


@pytest.mark.parametrize("key", [None, ""], ids=["missing", "empty"])
def test_a_missing_key_keeps_its_provider_from_being_called_and_nothing_from_starting(
    start_sidecar: StartSidecar, tmp_path: Path, openai: Far, moonshot: Far, key: str | None
) -> None:
    """As in an injected pod: its application starts when the startup probe succeeds."""
    file = tmp_path / "key"
    if key is not None:
        file.write_text(key)
    rules = write_rules(
        tmp_path / "rules",
        openai.manifest(configs=openai_config(apiKeyFrom={"file": str(file)}, model="m")),
        moonshot.manifest(configs=openai_config(apiKey="${MOONSHOT_API_KEY}", model="m")),
    )
    sidecar = start_sidecar(rules)
    assert sidecar.ask(STARTUP).status_code == 200
    ready = sidecar.ask("/readyz")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == [
        "no key for the provider openai; api.openai.com has no other"
    ]
    with sidecar.client() as client:
        assert_refused(client.post(URL, json=chat()), 503, "no_key")
        assert said(client.post("http://api.moonshot.cn/v1/chat/completions", json=chat()))
        file.write_text(KEYS["OPENAI_API_KEY"])
        eventually(lambda: client.post(URL, json=chat()).status_code == 200, what="the key")
    assert sidecar.ask("/readyz").status_code == 200
    sidecar.expect_error("the provider openai is not called until its key is back")
    warnings = [line["event"] for line in sidecar.logged() if line.get("level") == "warning"]
    (told,) = [event for event in warnings if "rules.yaml:" in event]
    assert "LLMProvider/openai: spec.configs.defaultConfig.openAIConfig.apiKeyFrom.file:" in told
    assert told.endswith("the provider is not called without it")


def test_the_authority_of_a_secret_is_used(
    own_confdir: Path, tmp_path: Path, start_sidecar: StartSidecar, rules: Path, openai: Far
) -> None:
    secret, confdir = tmp_path / "secret", tmp_path / "c"
    authority = generate(name="the platform's own")
    secret.mkdir()
    (secret / "tls.key").write_bytes(authority.key_pem())
    (secret / "tls.crt").write_bytes(authority.chain_pem())
    confdir.mkdir()
    (confdir / "bytecode").symlink_to(own_confdir / "bytecode")
    sidecar = start_sidecar(rules, "--ca", str(secret), confdir=confdir)
    with httpx.Client(
        proxy=f"http://{LOOPBACK}:{sidecar.port}",
        verify=trusting(secret / "tls.crt"),
        trust_env=False,
        timeout=DEADLINE,
    ) as client:
        assert said(client.post(URL, json=chat(model="small")))
    openai.call()
    sidecar.stop()
    end = failing(confdir, "--ca", str(tmp_path / "missing"))
    assert end["code"] == 1
    assert "there is no tls.key and tls.crt" in end["event"]


def test_what_it_cannot_use_is_told_in_json(own_confdir: Path, tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        in_use = failing(own_confdir, "--port", str(port))
    assert in_use["code"] == 1
    assert in_use["event"].startswith(f"127.0.0.1 port {port} can't be listened on")
    no_workers = failing(own_confdir, "--workers", "none")
    assert (no_workers["code"], no_workers["event"][:9]) == (2, "--workers")
    (tmp_path / "file").touch()
    no_folder = failing(tmp_path / "file" / "confdir")
    assert no_folder["code"] == 1
    assert no_folder["event"].startswith(str(tmp_path / "file"))
    word = failing(own_confdir, "llm_unknown=deny")
    assert word["code"] == 1
    assert "did you mean --set llm_unknown=deny?" in word["all"]
    unknown = failing(own_confdir, "--set", "bogus=1", "--set=stream_large_bodys=1m")
    assert unknown["code"] == 1
    assert "unknown option bogus" in unknown["all"]
    assert (
        'unknown option stream_large_bodys; did you mean \\"stream_large_bodies\\"'
        in unknown["all"]
    )
    udp = failing(own_confdir, mode="reverse:udp://127.0.0.1:1")
    assert udp["code"] == 1
    assert "over UDP" in udp["all"]
