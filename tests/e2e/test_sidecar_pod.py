"""The sidecar as in a pod: user 1337 beside an application whose connections are redirected to it.

Two network namespaces: "pod" has the application (user 1000), the redirect (one nftables table for
IPv4 and IPv6) and the sidecar; "outside" has a provider and another site. Names are in the pod's own
hosts file; the provider's leads to addresses that nothing answers at.
"""

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
from tests.e2e.conftest import KEYS
from tests.e2e.harness import DEADLINE, Far, assert_entry, write_rules
from tests.e2e.sidecar import Sidecar
from tests.e2e.test_transparent import in_namespace, run

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PROXY_UID, APP_UID = 1337, 1000
POD, OUTSIDE = ("10.83.0.1", "fd83::1"), ("10.83.0.2", "fd83::2")
NOWHERE = ("10.83.0.77", "fd83::77")
REDIRECT = f"""\
table inet pointsman-test {{
  chain output {{
    type nat hook output priority -100;
    meta skuid {PROXY_UID} return
    oifname "lo" return
    tcp dport {{ 80, 443 }} redirect to :15001
  }}
}}
"""


def as_user(uid: int, *capabilities: str) -> tuple[str, ...]:
    user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    kept = ",".join(f"+{name}" for name in capabilities)
    return (*user, *((f"--inh-caps={kept}", f"--ambient-caps={kept}") if kept else ()), "--")


@dataclass(frozen=True)
class Pod:
    name: str
    sidecar: Sidecar
    provider: Provider
    site: Provider
    rules: Path

    def curl(self, url: str, *arguments: str, seconds: float = 10) -> tuple[int, str]:
        """Run curl as the application does; return its exit status and what it printed."""
        done = subprocess.run(
            [
                *("ip", "netns", "exec", self.name, *as_user(APP_UID)),
                *("env", "-i", f"PATH={os.environ['PATH']}", "curl", "--disable", "--silent"),
                *("--show-error", "--max-time", str(seconds), *arguments, url),
            ],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return done.returncode, done.stdout


def build(stack: ExitStack, pod: str, outside: str) -> None:
    hosts = Path("/etc/netns") / pod / "hosts"
    if not hosts.parents[1].exists():
        hosts.parents[1].mkdir()
        stack.callback(hosts.parents[1].rmdir)
    hosts.parent.mkdir()
    stack.callback(shutil.rmtree, hosts.parent)
    names = [(NOWHERE, "api.openai.com"), (OUTSIDE, "site.example")]
    lines = [f"{address} {name}\n" for addresses, name in names for address in addresses]
    hosts.write_text("127.0.0.1 localhost\n::1 localhost\n" + "".join(lines), encoding="utf-8")
    for name in (pod, outside):
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    ends = f"sp{os.getpid() % 10**6}", f"so{os.getpid() % 10**6}"
    far = ("type", "veth", "peer", "name", ends[1], "netns", outside)
    run("ip", "-n", pod, "link", "add", ends[0], *far)
    for name, end, (four, six) in ((pod, ends[0], POD), (outside, ends[1], OUTSIDE)):
        run("ip", "-n", name, "address", "add", f"{four}/24", "dev", end)
        run("ip", "-n", name, "address", "add", f"{six}/64", "dev", end, "nodad")
        run("ip", "-n", name, "link", "set", end, "up")
    subprocess.run(
        ["ip", "netns", "exec", pod, "nft", "-f", "-"],
        input=REDIRECT,
        text=True,
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[str, str]]:
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    missing = [tool for tool in ("ip", "nft", "setpriv", "curl") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    names = f"pointsman-{os.getpid()}-sidecar", f"pointsman-{os.getpid()}-beyond"
    with ExitStack() as stack:
        try:
            build(stack, *names)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces can't be used here: {error}")
        yield names


@pytest.fixture(scope="module")
def confdir() -> Iterator[Path]:
    """What a pod has as an emptyDir: the one place that the sidecar's user may write to."""
    folder = Path(tempfile.mkdtemp(prefix="pm-"))
    folder.chmod(0o700)
    os.chown(folder, PROXY_UID, PROXY_UID)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def pod(
    namespaces: tuple[str, str], confdir: Path, authority: Authority, tmp_path: Path
) -> Iterator[Pod]:
    name, outside = namespaces
    with ExitStack() as stack:

        def serve(provider: Provider, port: int, tls: str | None = None) -> ThreadedServer:
            certificate = authority.issue(tls) if tls else None
            server = ThreadedServer([provider], host="", port=port, tls=certificate)
            return in_namespace(outside, lambda: stack.enter_context(server))

        openai = Provider("openai", "api.openai.com", key=KEYS["OPENAI_API_KEY"], chunk_delay=0)
        server = serve(openai, 8443, openai.host)
        site = Provider("site", chunk_delay=0)
        serve(site, 80)
        far = Far(openai, server, authority, "OPENAI_API_KEY")
        rules = write_rules(
            tmp_path / "rules",
            {**far.manifest(), "spec": {**far.manifest()["spec"], "address": f"{OUTSIDE[0]}:8443"}},
        )
        sidecar = Sidecar(
            confdir,
            rules,
            env=KEYS,
            mode="transparent",
            port=15001,
            admin=f"unix:{confdir}/admin.sock",
            # The capability is for the tests' own files; in an image every user can read Python.
            prefix=("ip", "netns", "exec", name, *as_user(PROXY_UID, "dac_read_search")),
        )
        stack.enter_context(sidecar)
        yield Pod(name, sidecar, openai, site, rules / "rules.yaml")


CHAT = ("-H", "Content-Type: application/json", "--data", '{"model": "small", "messages": []}')


@pytest.mark.parametrize("family", ["--ipv4", "--ipv6"])
def test_what_the_application_sends_comes_by_the_sidecar(pod: Pod, family: str) -> None:
    own = ("-H", "Authorization: Bearer sk-own")
    status, answer = pod.curl(
        "http://api.openai.com/v1/chat/completions", family, *CHAT, *own, "-w", "%{http_code}"
    )
    assert (status, answer[-3:]) == (0, "200")
    (call,) = pod.provider.calls
    assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert_entry(pod.sidecar.wait_for("llm_request"), host="api.openai.com", status=200)
    status, answer = pod.curl(
        "http://site.example/v1/chat/completions", family, *CHAT, *own, "-w", "%{http_code}"
    )
    assert (status, answer[-3:]) == (0, "200")
    (call,) = pod.site.calls
    assert call.header("authorization") == "Bearer sk-own"


def test_it_runs_as_the_user_that_the_redirect_leaves_out(pod: Pod) -> None:
    for pid in (pod.sidecar.pid, *pod.sidecar.workers()):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        (uids,) = [line for line in status if line.startswith("Uid:")]
        assert uids.split()[1:] == [str(PROXY_UID)] * 4
    key = pod.sidecar.confdir / "mitmproxy-ca.pem"
    assert key.stat().st_mode & 0o777 == 0o600


def test_without_a_worker_nothing_passes_it_by(pod: Pod) -> None:
    """Other sites fail closed: what is asked for meanwhile waits, and reaches no one."""
    url = "http://site.example/v1/chat/completions"
    good = pod.rules.read_text()
    pod.rules.write_text("kind: [")
    pod.sidecar.expect_error("the rules were not reloaded")
    pod.sidecar.expect_errors("worker 1 ", "Error logged during startup", "1 error in the rules")
    os.kill(pod.sidecar.workers()[0], signal.SIGKILL)
    pod.sidecar.wait_for("worker 1 ended with status 1")
    timed_out = 28
    assert pod.curl(url, *CHAT, seconds=1)[0] == timed_out
    assert pod.curl("http://api.openai.com", *CHAT, seconds=1)[0] == timed_out
    assert not pod.site.calls
    assert not pod.provider.calls
    pod.rules.write_text(good)
    status, answer = pod.curl(url, *CHAT, "-w", "%{http_code}", seconds=DEADLINE - 1)
    assert (status, answer[-3:]) == (0, "200")
    pod.sidecar.wait_until_ready()
    pod.site.calls.clear()
    pod.sidecar.stop()
    refused = 7
    assert pod.curl(url, *CHAT)[0] == refused
    assert not pod.site.calls
