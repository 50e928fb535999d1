"""The sidecar's whole path, as in a pod: applications that know nothing of a proxy.

The application is user 1000, the proxy user 1337, and scripts/redirect has loaded its rules. The
providers are outside, under their real names and on their real ports, which the pod's hosts file
leads to; every test is made over IPv4 and over IPv6 by what that file has.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as ws_serve

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e import namespaces
from tests.e2e.conftest import KEYS
from tests.e2e.harness import (
    DEADLINE,
    PROGRAMS,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    seed,
    server_context,
    write_rules,
)
from tests.e2e.namespaces import (
    APP,
    NOWHERE,
    OUTSIDE,
    PROXY,
    PROXY_PORT,
    SITES,
    FamilyName,
    Namespaces,
    Place,
    as_user,
    in_namespace,
    run,
)

pytestmark = [pytest.mark.e2e, pytest.mark.root]

APPLICATIONS = Path(__file__).parent / "applications"
NODE_PACKAGE = "openai@6.30.1"  # the last line that Node 20 is good enough for
NPM_SECONDS = 120

QWEN = "This is dashscope with qwen1.5-72b-chat. You said: Hello there"
KIMI = "This is moonshot with moonshot-v1-8k. You said: Hello there"
SMALL = "This is openai with small. You said: Hello there"


@dataclass(frozen=True)
class Outside:
    """Who is there beyond the pod."""

    dashscope: Far
    moonshot: Far
    openai: Far
    unlisted: Provider

    def name(self, pod: Namespaces, family: FamilyName | None = None) -> None:
        """Put their names into the pod's hosts file, with the addresses of one family or both."""
        dashscope, moonshot, openai, chat_site = SITES[:4]
        pod.forget_names()
        pod.call("dashscope.aliyuncs.com", at=dashscope, family=family)
        pod.call("api.moonshot.cn", at=moonshot, family=family)
        pod.call("api.openai.com", at=openai, family=family)
        pod.call("chat.example", at=chat_site, family=family)
        pod.call("unlisted.example", at=OUTSIDE, family=family)
        pod.call("demo-llm-server", at=NOWHERE, family=family)  # a Service without servers

    def rules(self, folder: Path) -> Path:
        """Write the documentation's manifests, with whom to trust and no other address."""
        dashscope, moonshot = seed("LLMProvider"), seed("LLMProvider-moonshot")
        tls = {"caFile": str(self.openai.authority.certificate)}
        for provider in (dashscope, moonshot):
            provider["spec"]["tls"] = tls
        key = {"apiKey": "${OPENAI_API_KEY}"}
        openai = self.openai.manifest(
            address=None, tls=tls, configs={"defaultConfig": {"openAIConfig": key}}
        )
        return write_rules(
            folder, openai, dashscope, moonshot, seed("LLMRoute"), seed("LLMRoute-demo")
        )

    def forget(self) -> None:
        """Skip the calls that no test has looked at, since it failed."""
        for provider in (self.dashscope, self.moonshot, self.openai):
            provider.provider.calls.clear()
        self.unlisted.calls.clear()

    def assert_not_called(self) -> None:
        for far in (self.dashscope, self.moonshot, self.openai):
            far.calls(0)
        assert not self.unlisted.calls


def _echo(opened: ServerConnection) -> None:
    for message in opened:
        opened.send(message)


@contextmanager
def _websockets(name: str, host: str, authority: Authority) -> Iterator[None]:
    """Serve a WebSocket that says the same again."""
    tls = server_context(authority, "chat.example")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = in_namespace(name, lambda: socket.create_server((host, 443), family=family))
    server = ws_serve(_echo, sock=listener, ssl=tls)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(DEADLINE)


@contextmanager
def populated(names: Namespaces, authority: Authority) -> Iterator[Outside]:
    """Start everyone outside, at both their addresses."""
    with ExitStack() as stack:

        def serve(provider: Provider, at: Place, tls: str | None) -> ThreadedServer:
            port = 443 if tls else 80
            for host in at.both():
                issued = authority.issue(tls) if tls else None
                server = ThreadedServer([provider], host=host, port=port, tls=issued)
                in_namespace(names.outside, lambda: stack.enter_context(server))  # noqa: B023
            return server

        def far(name: str, host: str, at: Place, variable: str) -> Far:
            provider = Provider(name, host, key=KEYS[variable], chunk_delay=0)
            return Far(provider, serve(provider, at, host), authority, variable)

        unlisted = Provider("unlisted", chunk_delay=0)
        serve(unlisted, OUTSIDE, "unlisted.example")
        serve(unlisted, OUTSIDE, None)
        for host in SITES[3].both():
            stack.enter_context(_websockets(names.outside, host, authority))
        yield Outside(
            far("dashscope", "dashscope.aliyuncs.com", SITES[0], "DASHSCOPE_API_KEY"),
            far("moonshot", "api.moonshot.cn", SITES[1], "MOONSHOT_API_KEY"),
            far("openai", "api.openai.com", SITES[2], "OPENAI_API_KEY"),
            unlisted,
        )


@contextmanager
def sidecar(names: Namespaces, confdir: Path, rules: Path) -> Iterator[Proxy]:
    """Start the proxy as its own user, on all addresses."""
    prefix = (*names.in_pod, *as_user(PROXY, reads_all=True))
    with Proxy(
        confdir, rules, env=KEYS, prefix=prefix, mode="transparent", host="", port=PROXY_PORT
    ) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that another user can read; pytest's own are for one user."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def public(certificate: Path, folder: Path) -> str:
    """Put a certificate where another user can read it."""
    copy = folder / certificate.name
    shutil.copyfile(certificate, copy)
    copy.chmod(0o644)
    return str(copy)


@dataclass(frozen=True)
class Pod:
    """The pod with its proxy, and what its applications trust."""

    names: Namespaces
    proxy: Proxy
    outside: Outside
    ours: str
    theirs: str

    def ask(self, url: str, *arguments: str, **fields: object) -> Json:
        """Post a chat request by curl."""
        data = json.dumps(chat("Hello there", **fields))
        header = ("-H", "Content-Type: application/json")
        text = self.names.curl(*header, "--data", data, *arguments, url)
        answer: Json = json.loads(text)
        return answer

    def start(self, *command: str, trust: str) -> list[str]:
        """Run an application to its end; return the lines that it prints."""
        trusted = [f"{name}={trust}" for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")]
        environment = ("env", "-i", f"PATH={os.environ['PATH']}", *trusted)
        user = as_user(APP, reads_all=True)
        return run(*self.names.in_pod, *user, *environment, *command, within=60).splitlines()


@pytest.fixture(scope="module")
def started(
    confdir: Path,
    authority: Authority,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pod]:
    with namespaces.network() as names, populated(names, authority) as outside:
        names.apply()
        outside.name(names)
        rules = outside.rules(tmp_path_factory.mktemp("pod"))
        with sidecar(names, confdir, rules) as proxy:
            ours = public(proxy.certificate, folder)
            yield Pod(names, proxy, outside, ours, public(authority.certificate, folder))


@pytest.fixture(params=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> FamilyName:
    name: FamilyName = request.param
    return name


@pytest.fixture
def pod(started: Pod, family: FamilyName) -> Iterator[Pod]:
    """The pod, where every name has addresses of one family alone."""
    started.outside.name(started.names, family)
    started.proxy.forget()
    started.outside.forget()
    yield started
    started.proxy.assert_no_more_entries()
    started.outside.assert_not_called()


def came_from_the_application(entries: Sequence[Json], family: FamilyName) -> None:
    """Assert that the application's own connection was redirected, of this family."""
    for entry in entries:
        address = entry["client"].rpartition(":")[0].strip("[]").removeprefix("::ffff:")
        assert address == namespaces.POD.of(family)


# --- applications ---------------------------------------------------------------------------------


def assert_all_were_routed(pod: Pod, family: FamilyName, lines: Sequence[str]) -> None:
    """An application has asked dashscope, demo-llm-server and openai, each whole and streamed."""
    answers = [json.loads(line) for line in lines]
    assert [answer["text"] for answer in answers[:2]] == [QWEN, QWEN]
    assert {answer["text"] for answer in answers[2:4]} <= {QWEN, KIMI}
    assert [answer["text"] for answer in answers[4:]] == [SMALL, SMALL]
    assert all(f" {answer['model']}. " in answer["text"] for answer in answers)
    entries = pod.proxy.logged(6)
    came_from_the_application(entries, family)
    for entry, host, stream in zip(
        entries,
        ["dashscope.aliyuncs.com"] * 2 + ["demo-llm-server"] * 2 + ["api.openai.com"] * 2,
        [False, True] * 3,
        strict=True,
    ):
        # moonshot's config says `stream: false`; its answer is given the shape that was asked for.
        kept = stream and entry["provider_host"] != "api.moonshot.cn"
        assert_entry(entry, host=host, stream=kept, status=200, flags=[])
        assert entry["total_tokens"] > 0
    to_kimi = sum(answer["text"] == KIMI for answer in answers)
    for far, count in (
        (pod.outside.dashscope, 4 - to_kimi),
        (pod.outside.moonshot, to_kimi),
        (pod.outside.openai, 2),
    ):
        for call in far.calls(count):
            assert call.header("host") == far.provider.host
            assert call.header("authorization") == f"Bearer {KEYS[far.variable]}"
            assert b"sk-own" not in call.body


def test_openai_for_python_is_routed(pod: Pod, family: FamilyName) -> None:
    program = (str(PROGRAMS / "python"), str(APPLICATIONS / "ask_openai.py"))
    urls = ("http://dashscope.aliyuncs.com/compatible-mode/v1", "http://demo-llm-server/v1", "")
    assert_all_were_routed(pod, family, pod.start(*program, *urls, trust=pod.ours))


def test_httpx_is_routed(pod: Pod, family: FamilyName) -> None:
    program = (str(PROGRAMS / "python"), str(APPLICATIONS / "ask_httpx.py"))
    openai = "https://api.openai.com/v1/chat/completions"
    urls = ("http://dashscope.aliyuncs.com", "http://demo-llm-server", openai)
    assert_all_were_routed(pod, family, pod.start(*program, *urls, trust=pod.ours))


@pytest.fixture(scope="module")
def node_application(folder: Path) -> Path:
    """OpenAI's package for Node, and a program that uses it."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("not installed: node, npm")
    options = ("--no-save", "--no-audit", "--no-fund", "--ignore-scripts")
    try:
        run("npm", "install", NODE_PACKAGE, *options, "--prefix", str(folder), within=NPM_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{NODE_PACKAGE} can't be installed: {str(error).splitlines()[-1]}")
    program = folder / "ask_openai.mjs"
    shutil.copyfile(APPLICATIONS / program.name, program)
    return program


def test_openai_for_node_is_routed(pod: Pod, family: FamilyName, node_application: Path) -> None:
    urls = ("http://dashscope.aliyuncs.com/compatible-mode/v1", "http://demo-llm-server/v1", "")
    lines = pod.start("node", str(node_application), *urls, trust=pod.ours)
    assert_all_were_routed(pod, family, lines)


def test_curl_to_a_provider_is_upgraded_to_tls(pod: Pod, family: FamilyName) -> None:
    answer = pod.ask("http://dashscope.aliyuncs.com")
    assert answer["model"] == "qwen1.5-72b-chat"
    subscriber = pod.ask("http://dashscope.aliyuncs.com", "-H", "user-type: subscriber")
    assert subscriber["model"] == "qwen-turbo"
    for call in pod.outside.dashscope.calls(2):
        assert call.path == "/compatible-mode/v1/chat/completions"
        assert call.header("host") == "dashscope.aliyuncs.com"
        assert call.header("authorization") == f"Bearer {KEYS['DASHSCOPE_API_KEY']}"
    entries = pod.proxy.logged(2)
    came_from_the_application(entries, family)
    for entry in entries:
        assert_entry(entry, host="dashscope.aliyuncs.com", status=200, flags=[])


def test_curl_gets_a_stream(pod: Pod) -> None:
    data = json.dumps(chat("Hello there", stream=True))
    header = ("-H", "Content-Type: application/json", "--no-buffer")
    text = pod.names.curl(*header, "--data", data, "http://dashscope.aliyuncs.com")
    assert text.startswith("data: {")
    assert text.endswith("data: [DONE]\n\n")
    pod.outside.dashscope.call()
    assert_entry(pod.proxy.entry(), stream=True, status=200, flags=[])


def test_a_service_without_servers_is_shared_among_providers(pod: Pod) -> None:
    models = [pod.ask("http://demo-llm-server")["model"] for _ in range(10)]
    assert 4 <= models.count("moonshot-v1-8k") <= 6
    assert 4 <= models.count("qwen1.5-72b-chat") <= 6
    pod.outside.moonshot.calls(models.count("moonshot-v1-8k"))
    pod.outside.dashscope.calls(models.count("qwen1.5-72b-chat"))
    for entry in pod.proxy.logged(10):
        assert_entry(entry, host="demo-llm-server", rule="migrate-rule", status=200)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_https_is_routed_for_a_client_that_trusts_the_proxys_authority(
    pod: Pod, version: str
) -> None:
    own = ("-H", "Authorization: Bearer sk-own")
    url = "https://api.openai.com/v1/chat/completions"
    answer = pod.ask(url, version, "--cacert", pod.ours, *own, model="small")
    assert answer["model"] == "small"
    call = pod.outside.openai.call()
    assert call.header("host") == "api.openai.com"
    assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert_entry(pod.proxy.entry(), host="api.openai.com", status=200, request_model="small")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_may_be_written_with_a_dot_at_its_end_and_in_any_case(pod: Pod, scheme: str) -> None:
    """It is no name for a certificate: the provider is called by its own."""
    url = f"{scheme}://api.openai.com/v1/chat/completions"
    trust = ("--cacert", pod.ours)
    assert pod.ask(url, *trust, "-H", "Host: API.OpenAI.com.", model="small")["model"] == "small"
    call = pod.outside.openai.call()
    assert call.header("host") == "api.openai.com"
    assert_entry(pod.proxy.entry(), status=200)
    # By HTTP/2, mitmproxy takes such a name for a fault of the protocol.
    refused = pod.ask(url, *trust, "--http1.1", "-H", "Host: api.openai.com..", model="small")
    assert refused["error"]["code"] == "ambiguous_host"
    assert_entry(pod.proxy.entry(), status=400, attempts=[])


def test_a_body_that_cannot_be_routed_is_refused(pod: Pod) -> None:
    url = "http://dashscope.aliyuncs.com"
    answer = pod.names.curl("--data", "{", "-w", "%{http_code}", url)
    assert answer.endswith("400")
    assert '"code":"malformed_body"' in answer
    assert_entry(pod.proxy.entry(), status=400, attempts=[])


# --- everyone else --------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_an_unlisted_site_shows_its_own_certificate(pod: Pod, option: str, version: str) -> None:
    """The client trusts the site's authority alone; the proxy's certificate would be refused."""
    own = ("-H", "Authorization: Bearer sk-own", "--cacert", pod.theirs)
    url = "https://unlisted.example/v1/chat/completions"
    answer = pod.ask(url, option, *own, model="small")
    assert answer["model"] == "small"
    (call,) = pod.outside.unlisted.calls
    pod.outside.unlisted.calls.clear()
    assert call.http_version == version
    assert call.header("authorization") == "Bearer sk-own"


def test_an_unlisted_site_is_passed_through_over_plain_http(pod: Pod) -> None:
    own = ("-H", "Authorization: Bearer sk-own")
    answer = pod.ask("http://unlisted.example/v1/chat/completions", *own, model="small")
    assert answer["model"] == "small"
    (call,) = pod.outside.unlisted.calls
    pod.outside.unlisted.calls.clear()
    assert call.header("authorization") == "Bearer sk-own"
    assert call.header("host") == "unlisted.example"


def test_a_websocket_to_an_unlisted_site_works(pod: Pod) -> None:
    program = (str(PROGRAMS / "python"), str(APPLICATIONS / "open_websocket.py"))
    assert pod.start(*program, "wss://chat.example/", trust=pod.theirs) == ["goodbye"]


def test_the_proxys_own_connections_are_not_redirected(pod: Pod) -> None:
    """So a provider sees whom the proxy's user is, with no key of ours."""
    trust = ("--cacert", pod.theirs)
    url = "https://unlisted.example/v1/chat/completions"
    data = json.dumps(chat("Hello there", model="small"))
    pod.names.curl("--data", data, *trust, url, uid=PROXY)
    assert len(pod.outside.unlisted.calls) == 1
    pod.outside.unlisted.calls.clear()
    refused = pod.names.curl(
        *("--data", data, *trust, "https://api.openai.com/v1/chat/completions"),
        *("-w", "%{http_code}"),
        uid=PROXY,
    )
    assert refused.endswith("401")
    pod.outside.openai.call()


@pytest.mark.parametrize("host", ["api.openai.com", "unlisted.example"])
def test_who_dials_the_proxys_own_port_gets_nothing(
    pod: Pod, family: FamilyName, host: str
) -> None:
    """Neither the pod's keys, nor a proxy that connects to itself again and again."""
    address = namespaces.POD.of(family)
    address = f"[{address}]" if ":" in address else address
    url = f"http://{address}:{PROXY_PORT}/v1/models"
    named = ("-H", f"Host: {host}", "--max-time", "5")
    closed = r"curl: \((52|56)\)"
    with pytest.raises(OSError, match=closed):
        run("ip", "netns", "exec", pod.names.outside, "curl", "--disable", "-sS", *named, url)
    for uid in (APP, PROXY):
        with pytest.raises(OSError, match=closed):
            pod.names.curl(*named, url, uid=uid)
    pod.proxy.says(f"to the proxy's own port {PROXY_PORT}")


def test_check_finds_the_proxy(started: Pod) -> None:
    done = started.names.redirect("check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" arrived at port 15001, where the proxy listens") == 4


# --- without the proxy ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orphaned(authority: Authority) -> Iterator[tuple[Namespaces, Outside]]:
    """A pod with rules and without a proxy."""
    with namespaces.network() as names, populated(names, authority) as outside:
        names.apply()
        yield names, outside


@pytest.mark.parametrize(
    "url",
    [
        "http://dashscope.aliyuncs.com",
        "http://demo-llm-server",
        "https://api.openai.com/v1/chat/completions",
        "https://unlisted.example",
        "http://unlisted.example",
    ],
)
def test_nothing_goes_past_a_proxy_that_is_not_there(
    orphaned: tuple[Namespaces, Outside], family: FamilyName, url: str
) -> None:
    names, outside = orphaned
    outside.name(names, family)
    outside.forget()
    with pytest.raises(OSError, match=r"curl: \(7\)"):  # could not connect
        names.curl("--insecure", url)
    outside.assert_not_called()
