"""Transparent mode as in a pod: two network namespaces, iptables, and a curl that knows nothing.

"pod" has the application (another uid) and mitmdump, "outside" has the providers on ports 443 and
80. Names are in the pod's own hosts file; all but the unlisted site's lead to addresses that
nothing answers at.
"""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import KEYS
from tests.e2e.harness import (
    DEADLINE,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    seed,
    write_rules,
)

pytestmark = [pytest.mark.e2e, pytest.mark.root]

POD, OUTSIDE = "10.79.0.1", "10.79.0.2"
NOWHERE = "10.79.0.77"
APP_UID = "1000"
CLONE_NEWNET = 0x40000000


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Namespaces:
    pod: str
    outside: str


def build(stack: ExitStack, names: Namespaces) -> None:
    """Make two namespaces joined by a cable, the pod's web traffic redirected."""
    hosts = Path("/etc/netns") / names.pod / "hosts"
    if not hosts.parents[1].exists():
        hosts.parents[1].mkdir()
        stack.callback(hosts.parents[1].rmdir)
    hosts.parent.mkdir()
    stack.callback(shutil.rmtree, hosts.parent)
    hosts.write_text(
        "127.0.0.1 localhost\n"
        f"{NOWHERE} dashscope.aliyuncs.com api.moonshot.cn demo-llm-server\n"
        f"{NOWHERE} api.openai.com\n"
        f"{OUTSIDE} unlisted.example\n",
        encoding="utf-8",
    )
    for name in (names.pod, names.outside):
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    pod, outside = f"vp{os.getpid() % 10**6}", f"vo{os.getpid() % 10**6}"
    ends = ("type", "veth", "peer", "name", outside, "netns", names.outside)
    run("ip", "-n", names.pod, "link", "add", pod, *ends)
    for name, end, address in ((names.pod, pod, POD), (names.outside, outside, OUTSIDE)):
        run("ip", "-n", name, "address", "add", f"{address}/24", "dev", end)
        run("ip", "-n", name, "link", "set", end, "up")
    run(
        *("ip", "netns", "exec", names.pod, "iptables", "-t", "nat", "-A", "OUTPUT"),
        *("-p", "tcp", "-m", "multiport", "--dports", "80,443"),
        *("-m", "owner", "!", "--uid-owner", "0", "-j", "REDIRECT", "--to-ports", "15001"),
    )


@pytest.fixture(scope="module")
def namespaces() -> Iterator[Namespaces]:
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    missing = [tool for tool in ("ip", "iptables", "setpriv", "curl") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    names = Namespaces(f"pointsman-{os.getpid()}-pod", f"pointsman-{os.getpid()}-outside")
    with ExitStack() as stack:
        try:
            build(stack, names)
        except OSError as error:
            pytest.skip(f"network namespaces can't be used here: {error}")
        yield names


def in_namespace[T](name: str, action: Callable[[], T]) -> T:
    """Do something in a namespace, in a thread of its own: what it starts stays there."""
    results: list[T] = []
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            with Path("/run/netns", name).open("rb") as namespace:
                os.setns(namespace.fileno(), CLONE_NEWNET)
            results.append(action())
        except BaseException as failure:  # noqa: BLE001 (raised again in the test's thread)
            failures.append(failure)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(DEADLINE)
    if failures:
        raise failures[0]
    return results[0]


@dataclass(frozen=True)
class Pod:
    namespaces: Namespaces
    proxy: Proxy
    dashscope: Far
    moonshot: Far
    openai: Far
    unlisted: Provider
    authority: Authority

    def curl(self, *arguments: str) -> str:
        """Run curl as the application does: another user, no proxy settings."""
        return run(
            *("ip", "netns", "exec", self.namespaces.pod),
            *("setpriv", f"--reuid={APP_UID}", f"--regid={APP_UID}", "--clear-groups"),
            *("env", "-i", f"PATH={os.environ['PATH']}", "curl", "--disable", "--silent"),
            *("--show-error", "--max-time", "10", *arguments),
        )

    def ask(self, url: str, *arguments: str, **fields: object) -> Json:
        """Post a chat request."""
        data = json.dumps(chat("Please introduce yourself.", **fields))
        header = ("-H", "Content-Type: application/json")
        answer: Json = json.loads(self.curl(*header, "--data", data, *arguments, url))
        return answer

    def trust(self, certificate: Path, folder: Path) -> tuple[str, str]:
        """Put a certificate where another user can read it."""
        copy = folder / certificate.name
        shutil.copyfile(certificate, copy)
        copy.chmod(0o644)
        return "--cacert", str(copy)


@pytest.fixture(scope="module")
def pod(
    namespaces: Namespaces,
    confdir: Path,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pod]:
    with ExitStack() as stack:

        def serve(*providers: Provider, port: int, tls: str | None = None) -> ThreadedServer:
            server = ThreadedServer(
                providers, host=OUTSIDE, port=port, tls=authority.issue(tls) if tls else None
            )
            return in_namespace(namespaces.outside, lambda: stack.enter_context(server))

        def far(name: str, host: str, port: int, variable: str) -> Far:
            provider = Provider(name, host, key=KEYS[variable], chunk_delay=0)
            return Far(provider, serve(provider, port=port, tls=host), authority, variable)

        dashscope = far("dashscope", "dashscope.aliyuncs.com", 8443, "DASHSCOPE_API_KEY")
        moonshot = far("moonshot", "api.moonshot.cn", 8444, "MOONSHOT_API_KEY")
        openai = far("openai", "api.openai.com", 8445, "OPENAI_API_KEY")
        unlisted = Provider("unlisted", chunk_delay=0)
        serve(unlisted, port=443, tls="unlisted.example")
        serve(unlisted, port=80)
        rules = write_rules(
            tmp_path_factory.mktemp("pod"),
            openai.manifest(),
            seed("LLMProvider", dashscope),
            seed("LLMProvider-moonshot", moonshot),
            seed("LLMRoute"),
            seed("LLMRoute-demo"),
        )
        proxy = Proxy(
            confdir,
            rules,
            env=KEYS,
            mode="transparent",
            port=15001,
            prefix=("ip", "netns", "exec", namespaces.pod),
        )
        stack.enter_context(proxy)
        yield Pod(namespaces, proxy, dashscope, moonshot, openai, unlisted, authority)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can read; pytest's own are for one user."""
    folder = Path(run("mktemp", "--directory").strip())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_plain_http_to_a_provider_is_routed_over_tls(pod: Pod) -> None:
    answer = pod.ask("http://dashscope.aliyuncs.com")
    assert answer["model"] == "qwen1.5-72b-chat"
    subscriber = pod.ask("http://dashscope.aliyuncs.com", "-H", "user-type: subscriber")
    assert subscriber["model"] == "qwen-turbo"
    for call in pod.dashscope.calls(2):
        assert call.path == "/compatible-mode/v1/chat/completions"
        assert call.header("host") == "dashscope.aliyuncs.com"
        assert call.header("authorization") == f"Bearer {KEYS['DASHSCOPE_API_KEY']}"
    for entry in pod.proxy.logged(2):
        assert_entry(entry, host="dashscope.aliyuncs.com", status=200, flags=[])


def test_a_service_without_servers_is_shared_among_providers(pod: Pod) -> None:
    models = [pod.ask("http://demo-llm-server")["model"] for _ in range(10)]
    assert 4 <= models.count("moonshot-v1-8k") <= 6
    assert 4 <= models.count("qwen1.5-72b-chat") <= 6
    pod.moonshot.calls(models.count("moonshot-v1-8k"))
    pod.dashscope.calls(models.count("qwen1.5-72b-chat"))
    for entry in pod.proxy.logged(10):
        assert_entry(entry, host="demo-llm-server", rule="migrate-rule", status=200)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_https_is_routed_for_a_client_that_trusts_the_proxys_authority(
    pod: Pod, open_folder: Path, version: str
) -> None:
    trust = pod.trust(pod.proxy.certificate, open_folder)
    own = ("-H", "Authorization: Bearer sk-own")
    url = "https://api.openai.com/v1/chat/completions"
    answer = pod.ask(url, version, *trust, *own, model="small")
    assert answer["model"] == "small"
    call = pod.openai.call()
    assert call.header("host") == "api.openai.com"
    assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert_entry(pod.proxy.entry(), host="api.openai.com", status=200, request_model="small")


def test_an_unlisted_site_shows_its_own_certificate(pod: Pod, open_folder: Path) -> None:
    trust = pod.trust(pod.authority.certificate, open_folder)
    own = ("-H", "Authorization: Bearer sk-own")
    answer = pod.ask("https://unlisted.example/v1/chat/completions", *trust, *own, model="small")
    assert answer["model"] == "small"
    (call,) = pod.unlisted.calls
    pod.unlisted.calls.clear()
    assert call.http_version == "2"
    assert call.header("authorization") == "Bearer sk-own"
    pod.proxy.assert_no_more_entries()


def test_an_unlisted_site_is_passed_through_over_plain_http(pod: Pod) -> None:
    own = ("-H", "Authorization: Bearer sk-own")
    answer = pod.ask("http://unlisted.example/v1/chat/completions", *own, model="small")
    assert answer["model"] == "small"
    (call,) = pod.unlisted.calls
    pod.unlisted.calls.clear()
    assert call.header("authorization") == "Bearer sk-own"
    assert call.header("host") == "unlisted.example"
    pod.proxy.assert_no_more_entries()


def test_a_body_that_cannot_be_routed_is_refused(pod: Pod) -> None:
    answer = pod.curl("--data", "{", "-w", "%{http_code}", "http://dashscope.aliyuncs.com")
    assert answer.endswith("400")
    assert '"code":"malformed_body"' in answer
    assert_entry(pod.proxy.entry(), status=400, attempts=[])
