"""`pointsman replay`: saved traffic through rules, without sending any of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.io import FlowWriter, tnetstring
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


def har(tmp_path: Path, *entries: dict[str, Any]) -> Path:
    path = tmp_path / "recorded.har"
    path.write_text(json.dumps({"log": {"entries": entries}}))
    return path


def entry(url: str = "http://front/", **request: Any) -> dict[str, Any]:
    sent = {
        "method": "POST",
        "url": url,
        "httpVersion": "HTTP/1.1",
        "headers": [{"name": "Host", "value": "front"}],
        "postData": {"mimeType": "application/json", "text": '{"model": "mini", "messages": []}'},
        **request,
    }
    return {"startedDateTime": "2026-01-31T12:00:00.000Z", "time": 5, "request": sent}


def test_har_files_are_read(tmp_path: Path) -> None:
    new = rules(tmp_path, "new")
    assert read(har(tmp_path, entry()), "--rules", new)["outcomes"] == {"re-routed": 1}


IPV6 = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: six}
spec: {host: "fd00::1", scheme: http, port: 8000}
"""


def test_a_provider_with_an_ipv6_address_is_the_host_that_was_called(tmp_path: Path) -> None:
    new = tmp_path / "six.yaml"
    new.write_text(IPV6)
    called = entry("http://[fd00::1]:8000/v1/chat/completions", headers=[])
    found = read(har(tmp_path, called), "--rules", new)
    assert found["outcomes"] == {"routed": 1}
    (line,) = found["lines"]
    assert line["request"] == "POST http://[fd00::1]/v1/chat/completions"
    assert "(http://[fd00::1]:8000/v1/chat/completions)" in line["after"]["detail"]


def test_entries_of_a_browser_that_are_no_requests_are_passed_over(tmp_path: Path) -> None:
    odd = [entry("data:text/plain,x"), entry("blob:http://front/1"), {"request": 5}, {}, 7]
    found = read(har(tmp_path, *odd, entry()), "--rules", rules(tmp_path, "new"))  # type: ignore[arg-type]
    assert (found["requests"], found["skipped"]) == (1, 5)


def test_a_body_that_was_left_out_is_unknown(tmp_path: Path) -> None:
    without = [
        entry(postData={"mimeType": "multipart/form-data", "params": []}, bodySize=500),
        entry(postData={}, headers=[{"name": "Content-Length", "value": "500"}]),
        entry(postData={}, headers=[{"name": "Transfer-Encoding", "value": "chunked"}]),
    ]
    found = read(har(tmp_path, *without), "--rules", rules(tmp_path, "new"))
    assert found["outcomes"] == {"unknown": 3}


def test_urls_that_are_written_for_people_are_read(tmp_path: Path) -> None:
    urls = ["http://front/schön?key=…", "http://front/a%20b", "https://shöp.test/ü"]
    found = read(
        har(tmp_path, *(entry(url, headers=[]) for url in urls)), "--rules", rules(tmp_path, "new")
    )
    assert (found["requests"], found["skipped"]) == (3, 0)
    assert found["outcomes"] == {"re-routed": 2, "untouched": 1}


def test_a_capture_without_requests_is_no_success(tmp_path: Path) -> None:
    new = rules(tmp_path, "new")
    empty = run(har(tmp_path), "--rules", new)
    assert (empty.exit_code, "no HTTP request" in empty.output) == (2, True)
    (tmp_path / "empty.mitm").write_bytes(b"")
    assert run(tmp_path / "empty.mitm", "--rules", new).exit_code == 2


def test_in_absolute_form_the_request_line_counts_as_in_the_proxy(tmp_path: Path) -> None:
    flow = request("http://192.0.2.1/v1/chat/completions")
    flow.client_conn.sni = None
    flow.request.headers["host"] = "front"
    path = tmp_path / "one.mitm"
    with path.open("wb") as file:
        FlowWriter(file).add(flow)
    assert read(path, "--rules", rules(tmp_path, "new"))["outcomes"] == {"untouched": 1}


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


@pytest.mark.parametrize(
    "data",
    [b"99999999999:xxxx,", b"9999:xxxx,", b"2:xx,", b"0:}", b"16:4:type;4:nope;}", b"\x00" * 100],
)
def test_a_file_that_is_broken_is_a_fault_and_no_refusal(tmp_path: Path, data: bytes) -> None:
    broken = tmp_path / "x.mitm"
    broken.write_bytes(data)
    done = run(broken, "--rules", rules(tmp_path, "new"))
    assert done.exit_code == 2
    assert "it is no saved traffic" in done.output


def test_a_flow_that_lacks_something_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.mitm"
    state = request("http://front/").get_state()
    del state["server_conn"]
    path.write_bytes(tnetstring.dumps(state))
    assert run(path, "--rules", rules(tmp_path, "new")).exit_code == 2


def test_rules_at_fault_are_no_refusal(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: [")
    good = rules(tmp_path, "new")
    assert run(saved, "--rules", tmp_path / "bad.yaml").exit_code == 2
    assert run(saved, "--rules", good, "--against", tmp_path / "bad.yaml").exit_code == 2


def test_what_a_capture_holds_steers_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.mitm"
    flow = request("http://front/")
    flow.request.path = "/a\nFAKE LINE: 0 refused\x1b[2J\u202e"
    flow.request.headers["user-type"] = "subscriber"
    with path.open("wb") as file:
        FlowWriter(file).add(flow)
    said = run(path, "--rules", rules(tmp_path, "new")).stdout
    assert not any(line.startswith("FAKE") for line in said.splitlines())
    assert all(line.isprintable() for line in said.splitlines())
    assert "/a\ufffdFAKE LINE" in said


def test_rules_are_checked_without_keys_too(tmp_path: Path) -> None:
    new = rules(tmp_path, "new")
    runner = CliRunner()
    assert runner.invoke(app, ["check", str(new)]).exit_code == 1
    assert runner.invoke(app, ["check", str(new), "--without-keys"]).exit_code == 0
    new.write_text(new.read_text().replace("NO_SUCH_VARIABLE", "no such variable"))
    assert runner.invoke(app, ["check", str(new), "--without-keys"]).exit_code == 1
