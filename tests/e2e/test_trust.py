"""Applications trust the authority that `pointsman ca` made, by nothing but their environment."""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from pointsman.ca import ensure
from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.ca.conftest import Made
from tests.e2e.conftest import KEYS
from tests.e2e.harness import REPOSITORY, Far, Proxy, chat, write_rules

pytestmark = pytest.mark.e2e

CLIENTS = Path(__file__).resolve().parent / "clients"
URL = "https://api.openai.com/v1/models"
COMMAND = "from pointsman.cli import main; main()"


def pointsman_ca(*arguments: str | Path) -> str:
    """Run `pointsman ca` as a process of its own; return what it printed."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "ca", *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / "addon")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


class Application:
    """Runs programs with the environment that `pointsman ca bundle` printed, and a proxy's URL."""

    def __init__(self, proxy: Proxy, trust: Path, variables: dict[str, str]) -> None:
        self.proxy = proxy
        self.trust = trust
        self.variables = variables

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
        return subprocess.run(
            command,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.trust),
                **dict.fromkeys(names, self.proxy.url),
                **self.variables,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def untrusting(self) -> "Application":
        return Application(self.proxy, self.trust, {})

    def get(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def application(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, far_ends: dict[str, Far]
) -> Iterator[Application]:
    """An application beside a proxy whose authority the command line made."""
    folder = tmp_path_factory.mktemp("trust")
    confdir, trust = folder / "confdir", folder / "out"
    pointsman_ca("init", "--dir", confdir)
    printed = pointsman_ca(
        # Of the roots that the system trusts, the providers' authority is one here.
        *("bundle", "--dir", confdir, "--out", trust, "--roots", authority.certificate),
    )
    variables = dict(line.split("=", 1) for line in printed.splitlines())
    rules = write_rules(folder / "rules", far_ends["openai"].manifest())
    with Proxy(confdir, rules, env=KEYS) as proxy:
        yield Application(proxy, trust, variables)
        proxy.forget()


def _assert_routed(application: Application, openai: Far, printed: str) -> None:
    assert '"object":"list"' in printed.replace(" ", "")
    assert openai.call().header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert application.proxy.entry()["status"] == 200


CURL = ("curl", "--disable", "--silent", "--show-error", "--max-time", "30", URL)


def test_curl(application: Application, openai: Far) -> None:
    assert application.untrusting().run(*CURL).returncode == 60  # its certificate is not trusted
    _assert_routed(application, openai, application.get(*CURL))


@pytest.mark.parametrize("library", ["httpx", "requests", "urllib"])
def test_python(application: Application, openai: Far, library: str) -> None:
    code = {
        "httpx": f"import httpx; print(httpx.get({URL!r}).text)",
        "requests": f"import requests; print(requests.get({URL!r}).text)",
        "urllib": f"import urllib.request as r; print(r.urlopen({URL!r}).read().decode())",
    }[library]
    refused = application.untrusting().run(sys.executable, "-c", code)
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    _assert_routed(application, openai, application.get(sys.executable, "-c", code))


def test_python_with_the_strict_checks_of_3_13(application: Application, openai: Far) -> None:
    context = ssl.create_default_context(cafile=application.variables["SSL_CERT_FILE"])
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    with application.proxy.client(verify=context) as client:
        _assert_routed(application, openai, client.get(URL).text)


@pytest.mark.skipif(which("node") is None, reason="Node.js is not installed")
def test_node(application: Application, openai: Far) -> None:
    command = ("node", str(CLIENTS / "get.js"), application.proxy.url, "api.openai.com", URL)
    refused = application.untrusting().run(*command)
    assert refused.returncode == 1
    assert "CERT" in refused.stderr.upper()
    _assert_routed(application, openai, application.get(*command))


@pytest.mark.skipif(which("git") is None, reason="git is not installed")
def test_git(application: Application, openai: Far) -> None:
    """It gets no repository, but an answer: the certificate is good."""
    command = ("git", "ls-remote", "https://api.openai.com/repository")
    assert "certificate" in application.untrusting().run(*command).stderr
    done = application.run(*command)
    assert "certificate" not in done.stderr
    assert openai.call().path.startswith("/repository/info/refs")
    application.proxy.entry()


@pytest.mark.skipif(which("javac") is None, reason="Java's JDK is not installed")
def test_java(application: Application, openai: Far) -> None:
    """The trust store, as an option; Java 11 and later run a source file."""
    options = [
        f"-Dhttps.proxyHost={application.proxy.host}",
        f"-Dhttps.proxyPort={application.proxy.port}",
    ]
    store = [
        f"-Djavax.net.ssl.trustStore={application.trust / 'ca-bundle.p12'}",
        "-Djavax.net.ssl.trustStorePassword=changeit",
    ]
    program = [str(CLIENTS / "Get.java"), URL]
    refused = application.run("java", *options, *program)
    assert "SSLHandshakeException" in refused.stderr
    _assert_routed(application, openai, application.get("java", *options, *store, *program))


def test_the_bundle_trusts_the_systems_roots_too(
    application: Application, authority: Authority
) -> None:
    """A host that is not ours shows its own certificate, which one of the roots has issued."""
    certificate = authority.issue("localhost")
    with ThreadedServer([Provider("elsewhere")], tls=certificate) as server:
        url = f"https://localhost:{server.port}/v1/models"
        printed = application.get(*CURL[:-1], url)
        assert '"object"' in printed
        code = f"import httpx; print(httpx.get({url!r}).text)"
        assert '"object"' in application.get(sys.executable, "-c", code)
    application.proxy.assert_no_more_entries()


# --- which authority signs ------------------------------------------------------------------------


def _shown(proxy: Proxy, trust: bytes) -> x509.Certificate:
    """Return the certificate that the proxy shows, once it is found to be trusted."""
    context = ssl.create_default_context(cadata=trust.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with (
        proxy.tunnel("api.openai.com", 443) as plain,
        context.wrap_socket(plain, server_hostname="api.openai.com") as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    assert der
    return x509.load_der_x509_certificate(der)


def test_a_restart_keeps_the_authority(openai: Far, tmp_path: Path) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    trusted = ensure(tmp_path / "confdir").read_bytes()
    for _ in range(2):
        ensure(tmp_path / "confdir")
        with Proxy(tmp_path / "confdir", rules, env=KEYS) as proxy:
            _shown(proxy, trusted)


@pytest.mark.parametrize("kind", ["ec", "rsa", "intermediate"])
def test_the_authority_of_a_secret_signs(openai: Far, tmp_path: Path, kind: str) -> None:
    """Clients trust its root alone; what lies between comes with the handshake."""
    rsa_key = rsa.generate_private_key(65537, 2048)
    root = Made("Corporate root", key=rsa_key) if kind == "rsa" else Made("Corporate root")
    issuer = Made("Corporate LLM CA", issuer=root) if kind == "intermediate" else root
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "tls.crt").write_bytes(issuer.pem)
    (secret / "tls.key").write_bytes(issuer.key_pem())
    (secret / "ca.crt").write_bytes(root.pem)
    # What was there before was made; the Secret takes its place.
    ensure(tmp_path / "confdir")
    ensure(tmp_path / "confdir", secret)
    rules = write_rules(tmp_path / "rules", openai.manifest())
    with Proxy(tmp_path / "confdir", rules, env=KEYS) as proxy:
        assert _shown(proxy, root.pem).issuer.rfc4514_string() == f"CN={issuer.name}"
        chat_answer = proxy.client(verify=ssl.create_default_context(cadata=root.pem.decode()))
        with chat_answer as client:
            url = "https://api.openai.com/v1/chat/completions"
            assert client.post(url, json=chat(model="m")).status_code == 200
        assert proxy.entry()["status"] == 200
    assert len(openai.calls(1)) == 1
