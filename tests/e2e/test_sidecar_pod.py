"""The sidecar as in a pod: user 1337 beside an application whose connections are led to it."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e import namespaces
from tests.e2e.conftest import KEYS
from tests.e2e.harness import DEADLINE, Far, assert_entry, write_rules
from tests.e2e.namespaces import (
    APP,
    NOWHERE,
    OUTSIDE,
    PROXY,
    PROXY_PORT,
    FamilyName,
    Namespaces,
    as_user,
    in_namespace,
)
from tests.e2e.sidecar import Sidecar

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PROVIDER_PORT = 8443
CHAT = ("-H", "Content-Type: application/json", "--data", '{"model": "small", "messages": []}')
SITE = "http://site.example/v1/chat/completions"
TIMED_OUT, REFUSED = 28, 7  # curl's


@pytest.fixture(scope="module")
def names() -> Iterator[Namespaces]:
    with namespaces.network() as made:
        made.apply()
        made.call("api.openai.com", at=NOWHERE)
        made.call("site.example", at=OUTSIDE)
        yield made


@pytest.fixture(scope="module")
def own_confdir() -> Iterator[Path]:
    """What a pod has as an emptyDir: the one place that the sidecar's user may write to."""
    folder = Path(tempfile.mkdtemp(prefix="pm-"))
    os.chown(folder, PROXY, PROXY)
    yield folder
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Pod:
    names: Namespaces
    sidecar: Sidecar
    provider: Provider
    site: Provider
    away: Path  # as long as it is there no worker starts

    def curl(self, url: str, *arguments: str, seconds: float = 10) -> tuple[int, str]:
        """Post a chat as the application does; return curl's exit status and the HTTP status."""
        done = subprocess.run(
            [
                *(*self.names.in_pod, *as_user(APP), "env", "-i", f"PATH={os.environ['PATH']}"),
                *("curl", "--disable", "--silent", "--max-time", str(seconds)),
                *("--output", "/dev/null", "--write-out", "%{http_code}", *CHAT, *arguments, url),
            ],
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def pod(
    names: Namespaces, own_confdir: Path, authority: Authority, tmp_path: Path
) -> Iterator[Pod]:
    with ExitStack() as stack:

        def serve(server: ThreadedServer) -> ThreadedServer:
            return in_namespace(names.outside, lambda: stack.enter_context(server))

        openai = Provider("openai", "api.openai.com", key=KEYS["OPENAI_API_KEY"], chunk_delay=0)
        tls = authority.issue(openai.host)
        far_end = ThreadedServer([openai], host=OUTSIDE.ipv4, port=PROVIDER_PORT, tls=tls)
        far = Far(openai, serve(far_end), authority, "OPENAI_API_KEY")
        site = Provider("site", chunk_delay=0)
        for host in OUTSIDE.both():
            serve(ThreadedServer([site], host=host, port=80))
        rules = write_rules(tmp_path / "rules", far.manifest())
        away = tmp_path / "away"
        sidecar = Sidecar(
            own_confdir,
            rules,
            env={**KEYS, "NOT_STARTING": str(away)},
            scripts=["not_starting.py"],
            mode="transparent",
            port=PROXY_PORT,
            admin=f"unix:{own_confdir}/admin.sock",
            prefix=(*names.in_pod, *as_user(PROXY, reads_all=True)),
        )
        stack.enter_context(sidecar)
        yield Pod(names, sidecar, openai, site, away)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_the_application_sends_comes_by_the_sidecar(pod: Pod, family: FamilyName) -> None:
    own = ("-H", "Authorization: Bearer sk-own", f"--{family}")
    assert pod.curl("http://api.openai.com/v1/chat/completions", *own) == (0, "200")
    (call,) = pod.provider.calls
    assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert_entry(pod.sidecar.wait_for("llm_request"), host="api.openai.com", status=200)
    assert pod.curl(SITE, *own) == (0, "200")
    (call,) = pod.site.calls
    assert call.header("authorization") == "Bearer sk-own"


def test_it_runs_as_the_user_that_the_redirect_leaves_out(pod: Pod) -> None:
    for pid in (pod.sidecar.pid, *pod.sidecar.workers()):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        (uids,) = [line for line in status if line.startswith("Uid:")]
        assert uids.split()[1:] == [str(PROXY)] * 4
    key = pod.sidecar.confdir / "mitmproxy-ca.pem"
    assert key.stat().st_mode & 0o777 == 0o600


def test_without_a_worker_nothing_passes_it_by(pod: Pod) -> None:
    """Other sites fail closed: what is asked for meanwhile waits, and reaches no one."""
    pod.away.touch()
    pod.sidecar.expect_errors("worker 1 ", "this worker does not start", "Error logged during")
    os.kill(pod.sidecar.workers()[0], signal.SIGKILL)
    pod.sidecar.wait_for("worker 1 ended with status 1")
    assert pod.curl(SITE, seconds=1)[0] == TIMED_OUT
    assert pod.curl("http://api.openai.com", seconds=1)[0] == TIMED_OUT
    assert not pod.site.calls
    assert not pod.provider.calls
    pod.away.unlink()
    assert pod.curl(SITE, seconds=DEADLINE) == (0, "200")
    pod.sidecar.wait_until_ready()
    pod.site.calls.clear()
    pod.sidecar.stop()
    assert pod.curl(SITE)[0] == REFUSED
    assert not pod.site.calls
