"""`pointsman replay`: saved traffic through rules, without sending any of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow
from typer.testing import CliRunner, Result

from pointsman.cli import app

RULES = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {{name: east}}
spec:
  host: east.test
  path: /v1/chat/completions
  configs:
    defaultConfig:
      openAIConfig: {{model: east-1, apiKeyFrom: {{file: no/such/key}}}}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {{name: west}}
spec:
  host: west.test
  path: /v1/chat/completions
  configs:
    defaultConfig:
      openAIConfig: {{model: "{model}", apiKey: "${{NO_SUCH_VARIABLE}}"}}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {{name: front}}
spec:
  host: front
  rules:
  - name: vip
    matches:
    - headers: {{user-type: {{exact: subscriber}}}}
    backendRefs: [{{providerHost: {vip}}}]
  - name: small
    matches:
    - model: {{prefix: mini}}
    backendRefs: [{{providerHost: east.test}}]
"""


def rules(folder: Path, name: str, *, model: str = "west-1", vip: str = "west.test") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(RULES.format(model=model, vip=vip))
    return path


MINI = b'{"model": "mini-1", "messages": []}'


def request(url: str, body: bytes | None = MINI, user_type: str = "") -> http.HTTPFlow:
    made = http.Request.make("POST", url, body or b"")
    made.headers["host"] = made.host
    if user_type:
        made.headers["user-type"] = user_type
    if body is None:
        made.raw_content = None
    return tflow.tflow(req=made)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    flows = [
        request("https://elsewhere.test/v1/chat?key=secret-value"),
        request("https://east.test/v1/chat/completions"),
        request("http://front/"),
        request("http://front/", user_type="subscriber"),
        request("http://front/", user_type="subscriber"),
        request("http://front/", b'{"model": "big", "messages": []}'),
        request("http://front/", None),
        tflow.ttcpflow(),
    ]
    path = tmp_path / "traffic.mitm"
    with path.open("wb") as file:
        for flow in flows:
            FlowWriter(file).add(flow)
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


def read(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
    return found


def test_each_request_has_an_outcome(saved: Path, tmp_path: Path) -> None:
    found = read(saved, "--rules", rules(tmp_path, "new"))
    assert found["requests"] == 7
    assert found["skipped"] == 1
    assert found["outcomes"] == {
        "untouched": 1,
        "routed": 1,
        "re-routed": 3,
        "refused": 1,
        "unknown": 1,
    }
    lines = {(line["after"]["outcome"], line["after"]["rule"]): line for line in found["lines"]}
    vip = lines["re-routed", "front/vip"]
    assert (vip["request"], vip["count"]) == ("POST http://front/", 2)
    assert "west 100% (https://west.test/v1/chat/completions)" in vip["after"]["detail"]
    assert lines["refused", "front"]["after"]["detail"].startswith("404")
    assert "secret-value" not in json.dumps(found)


def test_a_refused_request_fails_unless_told_otherwise(saved: Path, tmp_path: Path) -> None:
    new = rules(tmp_path, "new")
    failed = run(saved, "--rules", new)
    assert failed.exit_code == 1
    assert "1  refused: answered with an error" in failed.stdout
    assert "1 × POST http://front/  [refused]" in failed.stdout  # noqa: RUF001
    assert run(saved, "--rules", new, "--fail-on", "never").exit_code == 0


def test_the_same_rules_change_nothing(saved: Path, tmp_path: Path) -> None:
    new = rules(tmp_path, "new")
    same = run(saved, "--rules", new, "--against", new, "--fail-on", "changed")
    assert same.exit_code == 0
    assert read(saved, "--rules", new, "--against", new)["changes"] == {"same": 7}


def test_other_rules_are_compared(saved: Path, tmp_path: Path) -> None:
    new, old = rules(tmp_path, "new", vip="east.test"), rules(tmp_path, "old")
    found = run(saved, "--rules", new, "--against", old, "--fail-on", "changed")
    assert found.exit_code == 1
    assert "2 × POST http://front/  [moved]" in found.stdout  # noqa: RUF001
    assert "before: re-routed: west 100%" in found.stdout
    assert "after: re-routed: east 100%" in found.stdout
    # Refused before as well: nothing new.
    assert run(saved, "--rules", new, "--against", old).exit_code == 0


def test_a_request_that_is_only_rewritten_otherwise_is_told(saved: Path, tmp_path: Path) -> None:
    new, old = rules(tmp_path, "new", model="west-2"), rules(tmp_path, "old")
    changes = read(saved, "--rules", new, "--against", old)["changes"]
    assert changes == {"same": 5, "rewritten otherwise": 2}


def test_new_refusals_fail(saved: Path, tmp_path: Path) -> None:
    new, old = rules(tmp_path, "new"), tmp_path / "old.yaml"
    old.write_text(new.read_text().replace("- model: {prefix: mini}", "- path: {prefix: /}"))
    assert read(saved, "--rules", new, "--against", old)["changes"]["newly refused"] == 1
    assert run(saved, "--rules", new, "--against", old).exit_code == 1
    back = read(saved, "--rules", old, "--against", new)
    assert back["changes"]["no longer refused"] == 1


def test_har_files_are_read(tmp_path: Path) -> None:
    sent = {
        "method": "POST",
        "url": "http://front/",
        "httpVersion": "HTTP/1.1",
        "headers": [{"name": "Host", "value": "front"}],
        "postData": {"mimeType": "application/json", "text": '{"model": "mini", "messages": []}'},
    }
    got = {
        "status": 200,
        "statusText": "OK",
        "httpVersion": "HTTP/1.1",
        "headers": [],
        "content": {"size": 2, "mimeType": "application/json", "text": "{}"},
    }
    entry = {
        "startedDateTime": "2026-01-31T12:00:00.000Z",
        "time": 5,
        "request": sent,
        "response": got,
        "timings": {"send": 1, "wait": 2, "receive": 2, "connect": 1, "ssl": 1},
    }
    har = tmp_path / "recorded.har"
    har.write_text(json.dumps({"log": {"entries": [entry]}}))
    found = read(har, "--rules", rules(tmp_path, "new"))
    assert found["outcomes"] == {"re-routed": 1}


def test_faults_say_what_and_where(saved: Path, tmp_path: Path) -> None:
    new = rules(tmp_path, "new")
    nowhere = run(tmp_path / "none.mitm", "--rules", new)
    assert (nowhere.exit_code, "No such file" in nowhere.output) == (2, True)
    broken = tmp_path / "broken.mitm"
    broken.write_bytes(saved.read_bytes()[:-50])
    cut = run(broken, "--rules", new)
    assert (cut.exit_code, "cut short" in cut.output) == (2, True)
    alone = run(saved, "--rules", new, "--fail-on", "changed")
    assert (alone.exit_code, "--against" in alone.output) == (2, True)


def test_rules_are_checked_without_keys_too(tmp_path: Path) -> None:
    new = rules(tmp_path, "new")
    runner = CliRunner()
    assert runner.invoke(app, ["check", str(new)]).exit_code == 1
    assert runner.invoke(app, ["check", str(new), "--without-keys"]).exit_code == 0
    new.write_text(new.read_text().replace("NO_SUCH_VARIABLE", "no such variable"))
    assert runner.invoke(app, ["check", str(new), "--without-keys"]).exit_code == 1
