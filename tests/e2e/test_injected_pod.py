"""A pod from the manifest that `pointsman inject` prints: it starts, routes and ends."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.demo.authority import Authority
from pointsman.kubernetes.inject import inject
from pointsman.kubernetes.settings import Settings
from tests.e2e import namespaces
from tests.e2e.conftest import KEYS
from tests.e2e.containers import Kubelet
from tests.e2e.harness import DEADLINE, chat, eventually, llm_route, seed, to
from tests.e2e.namespaces import POD, PROXY, Namespaces
from tests.e2e.test_pod import Outside, populated

pytestmark = [pytest.mark.e2e, pytest.mark.root]

APPLICATION = """\
apiVersion: v1
kind: Pod
metadata:
  name: shop
  namespace: default
  labels: {app: shop}
spec:
  containers:
  - name: shop
    image: shop
    securityContext:
      runAsUser: 1000
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
"""
OPENAI = "https://api.openai.com/v1/chat/completions"


def rules(outside: Outside, authority: Authority) -> dict[str, str]:
    """Return the files of the ConfigMap: a key from the environment, and one from a file."""
    tls = {"caFile": "/etc/pointsman/rules/authority.pem"}
    dashscope = seed("LLMProvider")
    dashscope["spec"]["tls"] = tls
    key = {"apiKeyFrom": {"file": "/etc/pointsman/keys/OPENAI_API_KEY"}}
    openai = outside.openai.manifest(
        address=None, tls=tls, configs={"defaultConfig": {"openAIConfig": key}}
    )
    route = llm_route("demo", "demo-llm-server", to("dashscope.aliyuncs.com", name="all"))
    return {
        "rules.yaml": yaml.safe_dump_all([dashscope, openai, route]),
        "authority.pem": authority.certificate.read_text(),
    }


def probe(names: Namespaces, path: str, port: int = 15021) -> str:
    """Call the pod from outside, as a kubelet does; return the status, 000 without an answer."""
    url = f"http://{POD.ipv4}:{port}{path}"
    command = ("curl", "--silent", "--max-time", "5", "--output", "/dev/null")
    done = subprocess.run(
        ["ip", "netns", "exec", names.outside, *command, "--write-out", "%{http_code}", url],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can read."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


QUESTION = (
    *("-H", "Content-Type: application/json"),
    *("--data", json.dumps(chat("Hello there", model="small"))),
)


def ask(kubelet: Kubelet, url: str) -> Any:
    """Ask as the application does: by curl, which trusts what its environment says."""
    curl = ("curl", "--disable", "--silent", "--show-error", "--max-time", "15")
    status, output, errors = kubelet.run("shop", *curl, *QUESTION, url)
    assert status == 0, errors
    return json.loads(output)


def test_an_injected_pod_starts_routes_and_ends(authority: Authority, folder: Path) -> None:
    settings = Settings.of({"image": "pointsman", "keys_secret": "provider-keys", "workers": 2})
    pod = yaml.safe_load(inject(APPLICATION, settings, version="1.2.3").text)
    with namespaces.network() as names, populated(names, authority) as outside:
        outside.name(names)
        objects = {"pointsman-rules": rules(outside, authority), "provider-keys": KEYS}
        kubelet = Kubelet(names, pod, folder, objects)

        *before, proxy = pod["spec"]["initContainers"]
        for container in before:
            status, _, errors = kubelet.run(container["name"])
            assert status == 0, f"{container['name']}: {errors}"
        sidecar = kubelet.start(proxy["name"])
        try:
            check_the_running_pod(kubelet, sidecar, outside)
        finally:
            sidecar.kill()
            output, errors = sidecar.communicate(timeout=DEADLINE)
        logged = [json.loads(line) for line in output.splitlines()]
        assert not errors
        requests = [entry for entry in logged if entry.get("event") == "llm_request"]
        assert [entry["host"] for entry in requests] == [
            "api.openai.com",
            "demo-llm-server",
            "demo-llm-server",
            "api.openai.com",
        ]
        for entry in requests:
            assert entry["status"] == 200
            assert (entry["workload"], entry["namespace"]) == ("shop", "default")
        assert "sk-" not in output


def check_the_running_pod(
    kubelet: Kubelet, sidecar: "subprocess.Popen[str]", outside: Outside
) -> None:
    names, proxy = kubelet.names, kubelet.container("pointsman")
    startup = proxy["startupProbe"]["httpGet"]["path"]

    def started() -> bool:
        assert sidecar.poll() is None, "".join(sidecar.communicate())
        return probe(names, startup) == "200"

    eventually(started, what="the startup probe succeeds", within=60)
    assert probe(names, proxy["livenessProbe"]["httpGet"]["path"]) == "200"
    # What is for the pod's own people is not for others.
    assert probe(names, "/config") == "404"
    assert probe(names, "/readyz", port=15020) == "000"

    assert ask(kubelet, OPENAI)["model"] == "small"
    assert ask(kubelet, "http://demo-llm-server")["model"] == "qwen1.5-72b-chat"
    (call,) = outside.openai.calls(1)
    assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    outside.dashscope.calls(1)

    # The proxy's group leads no one past it: a volume's group makes setgid programs.
    said = names.curl(*QUESTION, "http://demo-llm-server", gid=PROXY)
    assert json.loads(said)["model"] == "qwen1.5-72b-chat"
    outside.dashscope.calls(1)

    # Another site shows its own certificate, which the application has no reason to trust here.
    status, _, errors = kubelet.run("shop", "curl", "--silent", "-S", "https://unlisted.example")
    assert status == 60, errors
    outside.assert_not_called()

    listing = kubelet.run(
        "shop",
        "sh",
        "-c",
        "ls /etc/pointsman /var/lib/pointsman; ls $0",
        "/pointsman/trust",
    )
    assert listing[1].split() == ["ca-bundle.p12", "ca-bundle.pem", "pointsman-ca.pem"]
    assert kubelet.run("pointsman", "touch", "/usr/x", "/etc/x", "/x")[0] == 1

    # The pod ends: first the hook, while the application still works, then SIGTERM.
    hook = proxy["lifecycle"]["preStop"]["exec"]["command"]
    status, _, errors = kubelet.run("pointsman", *hook)
    assert status == 0, errors
    assert ask(kubelet, OPENAI)["model"] == "small"
    outside.openai.calls(1)
    sidecar.send_signal(signal.SIGTERM)
    assert sidecar.wait(DEADLINE) == 0
