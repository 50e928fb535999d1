"""The command line, called as a user calls it but in this process."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import pointsman
from pointsman.cli import app

RULES = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: east}
spec:
  host: east.test
  path: /v1/chat/completions
  configs:
    defaultConfig:
      openAIConfig: {model: east-1, apiKey: "${EAST_KEY}"}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: west}
spec:
  host: west.test
  path: /api/chat/completions
  port: 8443
  configs:
    defaultConfig:
      openAIConfig: {model: west-1, apiKey: "${EAST_KEY}"}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {name: front}
spec:
  host: front
  rules:
  - name: vip
    matches:
    - headers: {user-type: {exact: subscriber}}
    backendRefs: [{providerHost: east.test}]
  - name: split
    matches:
    - path: {prefix: /v1}
    backendRefs:
    - {providerHost: east.test, weight: 3}
    - {providerHost: west.test, weight: 1}
"""
KEY = "sk-never-shown-1234"


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAST_KEY", KEY)
    (tmp_path / "rules.yaml").write_text(RULES)
    return tmp_path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_check_counts_what_is_valid(rules: Path) -> None:
    result = run("check", rules)
    assert result.exit_code == 0
    assert "2 providers and 1 route are valid" in result.output


def test_check_shows_every_error_and_exits_with_1(rules: Path) -> None:
    (rules / "rules.yaml").write_text(
        RULES.replace("path:", "paht:").replace("weight: 3", "weight: -3")
    )
    result = run("check", rules)
    assert result.exit_code == 1
    assert result.output.count('unknown field "paht"; did you mean "path"?') == 3
    assert "weight" in result.output
    assert "Traceback" not in result.output


def test_check_portable_names_each_extension(rules: Path) -> None:
    result = run("check", "--portable", rules)
    assert result.exit_code == 1
    assert "rules.yaml:17: LLMProvider/west: spec.port: " in result.output
    assert "2 fields that are not portable" in result.output


def test_check_tells_what_else_it_needs(rules: Path) -> None:
    assert run("check", rules, "--labels", "nonsense=").exit_code == 0
    result = run("check", rules, "--labels", str(rules / "missing"))
    assert result.exit_code == 2
    assert f"--labels: {rules / 'missing'} can't be read (no such file" in result.output
    (rules / "binary").write_bytes(b"\xff\xfe=")
    result = run("check", rules, "--labels", str(rules / "binary"))
    assert result.exit_code == 2
    assert f"--labels: {rules / 'binary'} can't be read (not text)" in result.output
    result = run("check", rules, "--labels", "a=b,c")
    assert result.exit_code == 2
    assert "--labels: 'c' is not a label" in result.output


def test_explain_goes_rule_by_rule_and_masks_the_key(rules: Path) -> None:
    result = run(
        "explain",
        rules,
        "--url",
        "http://front/v1/chat/completions",
        "-H",
        "authorization: Bearer own-key-of-client",
        "-d",
        '{"model": "gpt-4", "messages": [{"content": "a secret prompt"}]}',
    )
    assert result.exit_code == 0
    for expected in (
        "✗ rule vip: header user-type is absent (wanted: = subscriber)",
        "✓ rule split: path starts with /v1",
        "→ east (75%)",
        "POST https://east.test/v1/chat/completions",
        "→ west (25%)",
        "POST https://west.test:8443/api/chat/completions",
        "authorization: Bearer ...1234",
        'body model: "gpt-4" → "east-1"',
    ):
        assert expected in result.output
    for secret in (KEY, "own-key-of-client", "a secret prompt"):
        assert secret not in result.output


def test_explain_writes_ipv6_in_brackets(tmp_path: Path) -> None:
    (tmp_path / "six.yaml").write_text(
        "apiVersion: istio.alibabacloud.com/v1beta1\nkind: LLMProvider\nmetadata: {name: six}\n"
        'spec: {host: "fd00::1", scheme: http, port: 8000}\n'
    )
    output = run("explain", tmp_path, "--url", "http://[fd00::1]:8000/v1/x").output
    assert "POST http://[fd00::1]:8000/v1/x" in output
    assert "connects to [fd00::1]:8000" in output


def test_explain_as_json(rules: Path) -> None:
    result = run(
        "explain", rules, "--url", "http://front/", "-H", "User-Type: subscriber", "--json"
    )
    explained = json.loads(result.stdout)
    assert [step["rule"] for step in explained["rules"]] == ["vip"]
    assert explained["targets"][0]["url"] == "https://east.test/v1/chat/completions"
    assert KEY not in result.output


@pytest.mark.parametrize(
    "body", ['{"model":"a","x":NaN}', '{"model":"a","x":"\\ud83d"}', '{"x":-Infinity,"model":"a"}']
)
def test_explain_takes_a_body_that_python_clients_send(rules: Path, body: str) -> None:
    result = run("explain", rules, "--url", "http://front/v1/chat/completions", "-d", body)
    assert result.exit_code == 0
    assert 'body model: "a" → "east-1"' in result.output
    assert "body x" not in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--url", "http://front/other"], 1, "404: no rule of the route matches"),
        (
            ["--url", "http://front/v1/chat/completions", "-d", "{"],
            1,
            "400: The request body is not a JSON object",
        ),
        (["--url", "http://elsewhere.test/"], 0, "passed on untouched"),
        (["--url", "ftp://x"], 2, "is not an http or https URL"),
        (["--url", "http://front:99999/"], 2, "has a port that can't be; write 1 to 65535"),
        (["--url", "http://front:0/"], 2, "write 1 to 65535"),
        (["--url", "http://front:x/"], 2, "write 1 to 65535"),
        (["--url", "http://[::1/"], 2, "is not a URL; IPv6 goes in brackets"),
        (["--url", "http://front/a b"], 2, "white space in it; write %20"),
        (["--url", "http://front/a\nb"], 2, "white space in it"),
        (["--url", "http://front/", "-X", "GE T"], 2, "--method: 'GE T' is not an HTTP method"),
        (["--url", "http://front/", "-X", ""], 2, "--method: '' is not an HTTP method"),
        (["--url", "http://front/", "-H", "no colon"], 2, "is not `name: value`"),
        (["--url", "http://front/", "-d", "@/nowhere"], 2, "can't be read"),
    ],
)
def test_explain_tells_what_would_be_refused(
    rules: Path, arguments: list[str], status: int, said: str
) -> None:
    result = run("explain", rules, *arguments)
    assert result.exit_code == status
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workers", "2", "--listen", "all"], "--workers, --listen"),
        (["--allow-root"], "--allow-root"),
    ],
)
def test_options_of_the_sidecar_are_refused_without_it(arguments: list[str], named: str) -> None:
    result = run("run", *arguments)
    assert result.exit_code == 2
    assert f"{named}: only with --sidecar" in result.output


@pytest.mark.parametrize("before", [(), ("-p", "0"), ("--set", "llm_observe=true")])
def test_an_option_without_set_is_refused_as_mitmdump_takes_it_for_a_filter(
    before: tuple[str, ...],
) -> None:
    result = run("run", *before, "llm_unknown=deny")
    assert result.exit_code == 2
    assert "write --set llm_unknown=deny" in result.output


def test_the_version_is_told() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.startswith(f"pointsman {pointsman.__version__} (mitmproxy ")


@pytest.mark.parametrize("command", ["check", "explain", "run", "demo"])
def test_every_command_has_help_with_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"pointsman {command}" in result.output


def test_explain_tells_of_a_known_llm_host_that_no_rule_names(rules: Path) -> None:
    known = run("explain", rules, "--url", "https://api.deepseek.com/chat/completions")
    assert known.exit_code == 0
    assert "in no rule: passed on untouched" in known.output
    assert "a known LLM host: with llm_unknown=deny it is refused" in known.output
    other = run("explain", rules, "--url", "https://example.com/")
    assert "known LLM host" not in other.output
    for url, found in (("https://API.deepseek.com./", True), ("https://example.com", False)):
        result = run("explain", rules, "--url", url, "--json")
        assert json.loads(result.output)["known_llm_host"] is found


POOL = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {name: pooled, namespace: models}
spec:
  host: pooled
  rules:
  - backendRefs:
    - backendRef: {group: inference.networking.k8s.io, kind: InferencePool, name: vllm}
"""


def test_rules_with_a_pool_are_for_proxies_that_read_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(POOL)
    for command in (["check"], ["explain", "--url", "http://pooled"]):
        alone = run(*command, tmp_path)
        assert alone.exit_code == 1
        assert "set llm_kubernetes=true, or name the Service of the pool" in alone.stderr
        assert run(*command, "--kubernetes", tmp_path).exit_code == 0
    explained = run("explain", "--kubernetes", tmp_path, "--url", "http://pooled").stdout
    assert "→ inferencepool/models/vllm (100%)" in explained
    assert "connects to a ready pod of the InferencePool models/vllm" in explained


@pytest.mark.parametrize("command", ["check", "explain"])
def test_outside_of_a_checkout_the_default_rules_are_the_packages(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = ["--url", "https://api.openai.com/v1/models"] if command == "explain" else []
    done = CliRunner().invoke(app, [command, *url])
    assert done.exit_code == 0, done.output
