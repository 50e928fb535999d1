import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from pointsman.config.compiling import Instance
from pointsman.config.credentials import CredentialError
from pointsman.config.loading import Later, Loaded, Problem
from pointsman.config.table import CallConfig, Target, TlsSettings

type Load = Callable[..., Loaded]
type Fail = Callable[..., tuple[Problem, ...]]

# What a case adds begins on line 6.
PROVIDER = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: p}
spec:
  host: p.test
"""
ROUTE = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {name: r}
spec:
  host: r.test
  rules:
  - name: vip
    backendRefs: [{providerHost: p.test}]
"""
KEY = "sk-0123456789abcdef"


def with_config(config: str, own: str = "") -> str:
    text = f"{PROVIDER}  configs:\n    defaultConfig:\n      openAIConfig: {config}\n"
    return text + (f"    routeSpecificConfigs: {{vip: {{openAIConfig: {own}}}}}\n" if own else "")


def target(loaded: Loaded, host: str = "p.test") -> Target:
    return loaded.table.exact[host].rules[0].targets[0]


def config(loaded: Loaded, host: str = "p.test") -> CallConfig:
    found = target(loaded, host).config
    assert found is not None
    return found


def key(loaded: Loaded, host: str = "p.test") -> str | None:
    credential = config(loaded, host).credential
    return credential.reveal() if credential else None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"apiKey: {KEY}", KEY),
        ("apiKey: '${A}'", "from-env"),
        ("apiKey: 'x-${A}'", "x-from-env"),
        ("apiKeyFrom: {env: A}", "from-env"),
        ("apiKeyFrom: {file: keys/k}", "from-file"),
        ("model: m", None),
    ],
)
def test_a_key_comes_from_where_the_manifest_says(
    rules: Load, folder: Path, source: str, expected: str | None
) -> None:
    (folder / "keys").mkdir()
    (folder / "keys" / "k").write_text("from-file\n")
    assert key(rules(with_config(f"{{{source}}}"), environ={"A": "from-env"})) == expected


@pytest.mark.parametrize(
    ("config", "field", "gist"),
    [
        ("{apiKey: '${dashscope API_KEY}'}", "apiKey", "write ${DASHSCOPE_API_KEY}"),
        ("{apiKey: '${MISSING}'}", "apiKey", "variable MISSING is not set; export it"),
        ("{apiKeyFrom: {env: MISSING}}", "apiKeyFrom.env", "variable MISSING is not set"),
        ("{apiKeyFrom: {file: none}}", "apiKeyFrom.file", "the key file rules/none can't be read"),
        ("{apiKey: ' '}", "apiKey", "the key is empty"),
        ("{apiKey: '${NAME'}", "apiKey", "is not closed; write ${NAME}"),
        ("{headers: {X-Org: 'a ${NAME'}}", "headers.x-org", "is not closed; write ${NAME}"),
        ("{apiKey: Bearer sk-x}", "apiKey", "write the key alone, without Bearer"),
        ("{apiKey: 'Bearer ${KEY}'}", "apiKey", "write the key alone, without Bearer"),
        ("{apiKeyFrom: {env: BEARER}}", "apiKeyFrom.env", "without Bearer"),
        ("{apiKeyFrom: {file: key}}", "apiKeyFrom.file", "the key file rules/key begins with"),
        ("{headers: {X-Org: '${MISSING}'}}", "headers.x-org", "variable MISSING is not set"),
        ("{headers: {X-Org: '${BREAK}'}}", "headers.x-org", "control characters"),
    ],
)
def test_a_credential_that_cannot_be_had_is_told_where_it_stands(
    problems: Fail, folder: Path, config: str, field: str, gist: str
) -> None:
    (folder / "key").write_text(f"Bearer {KEY}\n")
    environ = {"BREAK": "a\r\nb", "BEARER": f"Bearer {KEY}", "KEY": KEY}
    (problem,) = problems(with_config(config), environ=environ)
    assert problem.line == 8
    assert problem.field == f"spec.configs.defaultConfig.openAIConfig.{field}"
    assert gist in problem.message
    assert "0123456789" not in problem.message


@pytest.mark.parametrize(
    ("written", "gist"),
    [
        (None, "can't be read"),
        ("", "is empty"),
        (f"Bearer {KEY}", "without Bearer"),
        (f"{KEY}\nb", "characters that no HTTP header may carry"),
        ("k" * 70_000, "larger than 64 KiB"),
    ],
)
def test_a_proxy_starts_without_a_key_file_and_calls_its_provider_when_it_is_there(
    rules: Load, folder: Path, problems: Fail, written: str | None, gist: str
) -> None:
    text = with_config("{apiKeyFrom: {file: key}}")
    if written is not None:
        (folder / "key").write_text(written)
    loaded = rules(text, later=Later.KEY_FILES)
    (warning,) = loaded.warnings
    assert (warning.line, warning.message.endswith("the provider is not called without it")) == (
        8,
        True,
    )
    assert gist in warning.message
    with pytest.raises(CredentialError, match=gist):
        key(loaded)
    (folder / "key").write_text(KEY)
    assert key(loaded) == KEY
    # Where no other value can come later, the start tells.
    (problem,) = problems(with_config("{apiKeyFrom: {env: A}}"), later=Later.KEY_FILES)
    assert "variable A is not set" in problem.message


def test_a_header_may_hold_what_a_key_may_not(rules: Load) -> None:
    loaded = rules(with_config("{headers: {Authorization: Bearer sk-x}}"))
    assert config(loaded).headers == {"authorization": "Bearer sk-x"}


def test_each_header_knows_its_line_though_it_lost_its_case(problems: Fail) -> None:
    text = with_config("\n        headers:\n          X-A: a\n          X-B: '${MISSING}'")
    (problem,) = problems(text)
    assert problem.line == 11


def test_credentials_are_told_beside_the_faults_of_others(problems: Fail) -> None:
    found = problems(with_config("{apiKey: '${A}'}", own="{apiKey: '${B}'}"), ROUTE + "  x: 1\n")
    assert [p.line for p in found] == [8, 9, 19]


def test_a_provider_of_other_workloads_needs_no_credentials_here(
    rules: Load, problems: Fail
) -> None:
    text = with_config("{apiKey: '${A}'}") + "  workloadSelector: {labels: {app: a}}\n"
    assert rules(text).table.exact == {}
    assert "A is not set" in problems(text, instance=Instance({"app": "a"}))[0].message


def test_a_provider_of_other_workloads_is_validated_all_the_same(problems: Fail) -> None:
    text = with_config("{modle: m}") + "  workloadSelector: {labels: {app: a}}\n"
    assert len(problems(text)) == 1


def test_header_values_are_expanded(rules: Load) -> None:
    loaded = rules(with_config("{headers: {X-Org: 'org ${A}'}}"), environ={"A": "1\n"})
    assert config(loaded).headers == {"x-org": "org 1"}


def test_a_rule_changes_only_what_its_config_sets(rules: Load) -> None:
    default = f"{{model: a, stream: false, apiKey: {KEY}}}"
    loaded = rules(with_config(default, "{model: b}"), ROUTE)
    assert (config(loaded, "r.test").model, config(loaded, "r.test").stream) == ("b", False)
    assert key(loaded, "r.test") == KEY
    assert config(loaded).model == "a"


def test_null_in_a_rule_s_config_sets_nothing(rules: Load) -> None:
    loaded = rules(with_config("{model: a, stream: true}", "{model: , stream: }"), ROUTE)
    assert (config(loaded, "r.test").model, config(loaded, "r.test").stream) == ("a", True)


def test_mappings_are_merged_key_by_key(rules: Load) -> None:
    default = "{modelMapping: {a: 1a, b: 1b}, headers: {X: '1', Y: '1'}, params: {set: {s: 1, t: 1}, default: {d: 1}}}"  # noqa: E501
    own = "{modelMapping: {b: 2b}, headers: {x: '2'}, params: {set: {s: 2}, default: {e: 2}}}"
    merged = config(rules(with_config(default, own), ROUTE), "r.test")
    assert merged.model_mapping == {"a": "1a", "b": "2b"}
    assert merged.headers == {"x": "2", "y": "1"}
    assert merged.params_set == {"s": 2, "t": 1}
    assert merged.params_default == {"d": 1, "e": 2}


@pytest.mark.parametrize(
    ("default", "own", "expected"),
    [
        ("apiKey: a", "apiKeyFrom: {env: B}", ("b", None)),
        ("apiKeyFrom: {env: B}", "apiKey: a", ("a", None)),
        ("headers: {Authorization: h}", "apiKey: a", ("a", None)),
        ("apiKey: a", "headers: {Authorization: h}", (None, "h")),
    ],
)
def test_a_rule_s_key_replaces_the_default_one_however_they_are_given(
    rules: Load, default: str, own: str, expected: tuple[str | None, str | None]
) -> None:
    loaded = rules(with_config(f"{{{default}}}", f"{{{own}}}"), ROUTE, environ={"B": "b"})
    found = config(loaded, "r.test")
    assert (key(loaded, "r.test"), found.headers.get("authorization")) == expected


def test_a_rule_may_have_a_config_where_there_is_no_default(rules: Load) -> None:
    text = (
        f"{PROVIDER}  configs: {{routeSpecificConfigs: {{vip: {{openAIConfig: {{model: m}}}}}}}}\n"
    )
    loaded = rules(text, ROUTE)
    assert config(loaded, "r.test").model == "m"
    assert target(loaded).config is None


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("", "asIs"),
        ("  streamUsage: inject\n", "inject"),
        ("  configs: {defaultConfig: {openAIConfig: {}}}\n", "inject"),
        ("  configs: {defaultConfig: {openAIConfig: {}}}\n  streamUsage: asIs\n", "asIs"),
    ],
)
def test_usage_is_asked_for_where_requests_are_rewritten_unless_said_otherwise(
    rules: Load, added: str, expected: str
) -> None:
    assert target(rules(PROVIDER + added)).stream_usage == expected


def test_the_connection_settings_of_a_provider_reach_its_target(rules: Load) -> None:
    added = "  path: /v1\n  scheme: http\n  port: 8000\n  address: '[::1]:81'\n"
    found = target(rules(PROVIDER + added))
    assert (found.provider, found.host, found.path) == ("p", "p.test", "/v1")
    assert (found.scheme, found.port, found.address) == ("http", 8000, ("::1", 81))
    assert found.tls == TlsSettings()
    assert found.config is None


def test_certificates_stand_relative_to_the_manifest(rules: Load, folder: Path) -> None:
    trustme.CA().cert_pem.write_to_path(folder / "ca.pem")
    added = "  tls: {caFile: ca.pem, sni: X.test, insecureSkipVerify: false}\n"
    expected = TlsSettings("rules/ca.pem", "x.test", verify=True)
    assert target(rules(PROVIDER + added)).tls == expected


def test_a_pipe_in_place_of_certificates_is_refused_and_not_waited_for(
    problems: Fail, folder: Path
) -> None:
    os.mkfifo(folder / "ca.pem")
    (problem,) = problems(PROVIDER + "  tls: {caFile: ca.pem}\n")
    assert problem.message == "rules/ca.pem is not a file; give the certificates' own"


def test_verification_can_be_switched_off(rules: Load) -> None:
    added = "  tls: {insecureSkipVerify: true}\n"
    assert target(rules(PROVIDER + added)).tls == TlsSettings(verify=False)


@pytest.mark.parametrize(
    ("content", "gist"),
    [
        (None, "rules/ca.pem can't be read (no such file or directory)"),
        ("no certificate", "no certificate that can be used; it must be PEM"),
        ("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "it must be PEM"),
        ("", "it must be PEM"),
    ],
)
def test_certificates_that_cannot_be_used_are_told(
    problems: Fail, folder: Path, content: str | None, gist: str
) -> None:
    if content is not None:
        (folder / "ca.pem").write_text(content)
    (problem,) = problems(PROVIDER + "  tls:\n    caFile: ca.pem\n")
    assert (problem.line, problem.field) == (7, "spec.tls.caFile")
    assert gist in problem.message


def test_nothing_that_is_loaded_prints_a_key(rules: Load) -> None:
    text = with_config(f"{{apiKey: {KEY}, headers: {{X-Key: {KEY}}}}}", f"{{apiKey: {KEY}x}}")
    loaded = rules(text, ROUTE)
    assert "0123456789" not in f"{loaded} {loaded!r}"
