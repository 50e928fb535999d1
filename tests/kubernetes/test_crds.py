"""The definitions: structural, valid, and of one mind with `pointsman check`."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import re2
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pointsman.cli import app
from pointsman.config.loading import Loaded, Problem
from pointsman.config.resources import API_VERSION, KINDS, host_or_wildcard
from pointsman.kubernetes.crds import definitions, manifest
from tests.config.test_validation import PROVIDER, ROUTE
from tests.kubernetes.cel import holds

type Schema = dict[str, Any]
type Fail = Callable[..., tuple[Problem, ...]]
type Load = Callable[..., Loaded]

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).resolve().parent / "crds.golden.yaml"
SEED = ROOT / "tests" / "config" / "data" / "seed"
SHARED = ROOT.parent / "shared" / "seeds"

BY_KIND = {crd["spec"]["names"]["kind"]: crd for crd in definitions()}


def schema_of(kind: str) -> Schema:
    (version,) = BY_KIND[kind]["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def parts(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield each schema of a field, and where it stands."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from parts(inner, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(keyword), dict):
            yield from parts(inner, f"{path}[{keyword}]")


def junctors(schema: Schema) -> Iterator[Schema]:
    for keyword in ("allOf", "anyOf", "oneOf"):
        for inner in schema.get(keyword, ()):
            yield inner
            yield from junctors(inner)
    if "not" in schema:
        yield schema["not"]


EVERY_PART = [
    pytest.param(schema, id=f"{kind}{path}")
    for kind in KINDS
    for path, schema in parts(schema_of(kind))
]


# --- the form -------------------------------------------------------------------------------------


def test_the_definitions_are_those_on_record() -> None:
    """A changed model shows here: look at the difference, then write the file again."""
    assert manifest() == GOLDEN.read_text(encoding="utf-8")


def test_the_command_prints_what_applies_to_a_cluster() -> None:
    printed = CliRunner().invoke(app, ["crds"])
    assert printed.exit_code == 0
    assert list(yaml.safe_load_all(printed.output)) == definitions()


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_is_valid(kind: str) -> None:
    kubernetes_validate.validate(BY_KIND[kind], "1.31", strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_has_the_names_that_alibaba_gave_it(kind: str) -> None:
    crd = BY_KIND[kind]
    plural = kind.lower() + "s"
    assert crd["metadata"]["name"] == f"{plural}.istio.alibabacloud.com"
    assert crd["spec"]["names"]["plural"] == plural
    assert crd["spec"]["scope"] == "Namespaced"
    (version,) = crd["spec"]["versions"]
    assert f"{crd['spec']['group']}/{version['name']}" == API_VERSION
    assert version["subresources"] == {"status": {}}


FORBIDDEN = {
    *("$ref", "$defs", "definitions", "dependencies", "deprecated", "discriminator", "id"),
    *("patternProperties", "propertyNames", "readOnly", "writeOnly", "xml", "uniqueItems"),
    # Numbers there, flags here; and a default would be written into the user's object.
    *("exclusiveMinimum", "exclusiveMaximum", "default", "title", "const", "examples"),
}
IN_JUNCTORS = {
    *("type", "description", "default", "additionalProperties", "nullable"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
}
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]


@pytest.mark.parametrize("schema", EVERY_PART)
def test_a_part_of_a_schema_is_structural(schema: Schema) -> None:
    """The rules of https://kubernetes.io/docs/tasks/extend-kubernetes (structural schema)."""
    free = schema.get("x-kubernetes-preserve-unknown-fields") is True
    either = schema.get("x-kubernetes-int-or-string") is True
    assert (
        free
        or either
        or schema["type"] in {*("array", "boolean", "integer", "number", "object", "string")}
    )
    assert not FORBIDDEN & set(schema)
    assert not ("properties" in schema and "additionalProperties" in schema)
    assert ("items" in schema) == (schema.get("type") == "array")
    assert isinstance(schema.get("additionalProperties", {}), dict)
    if either:
        assert schema["anyOf"] == INT_OR_STRING
        assert "type" not in schema
    else:
        for inner in junctors(schema):
            assert not IN_JUNCTORS & set(inner)
            assert not FORBIDDEN & set(inner)
    if schema.get("type") == "object":
        assert (
            free
            or "properties" in schema
            or "additionalProperties" in schema
            or not set(schema) - {"type"}
        )


@pytest.mark.parametrize("schema", EVERY_PART)
def test_a_pattern_is_one_for_go_too(schema: Schema) -> None:
    for part in (schema, *junctors(schema)):
        if pattern := part.get("pattern"):
            re2.compile(pattern)
            re.compile(pattern)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str) -> None:
    for path, schema in parts(schema_of(kind)):
        inner = path.endswith("]") or path == ".metadata"
        assert inner or schema["description"].endswith((".", "v1beta1", kind)), path


@pytest.mark.parametrize("kind", KINDS)
def test_rules_stand_where_they_are_bounded(kind: str) -> None:
    """An API server refuses a definition whose rules might cost too much."""

    def look(schema: Schema, times: int) -> None:
        assert not schema.get("x-kubernetes-validations") or times <= 128 * 32 * 32, times
        for inner in schema.get("properties", {}).values():
            look(inner, times)
        if "items" in schema:
            look(schema["items"], times * schema.get("maxItems", 10**9))
        if values := schema.get("additionalProperties"):
            look(values, times * schema.get("maxProperties", 10**9))

    look(schema_of(kind), 1)


def test_yaml_1_1_reads_every_text_as_a_text() -> None:
    """PyYAML's loader and kubectl's read 1.1, where `on` and `no` are no texts."""
    assert list(yaml.load_all(manifest(), yaml.SafeLoader)) == definitions()


# --- what they take -------------------------------------------------------------------------------


def strict(schema: Schema) -> Schema:
    """Return a schema that names unknown fields, as `kubectl` does."""
    closed = dict(schema)
    if properties := schema.get("properties"):
        closed["properties"] = {name: strict(inner) for name, inner in properties.items()}
        closed["additionalProperties"] = False
    for keyword in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(keyword), dict):
            closed[keyword] = strict(inner)
    return closed


def broken_rules(schema: Schema, value: Any) -> Iterator[str]:
    """Yield the message of each rule in CEL that does not hold."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if not holds(rule["rule"], value):
            yield rule["message"]
    if isinstance(value, dict):
        for name, inner in value.items():
            within = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(within, dict):
                yield from broken_rules(within, inner)
    if isinstance(value, list) and "items" in schema:
        for inner in value:
            yield from broken_rules(schema["items"], inner)


def without_null(value: Any) -> Any:
    """Drop what is null, as an API server does."""
    if isinstance(value, dict):
        return {name: without_null(inner) for name, inner in value.items() if inner is not None}
    return [without_null(inner) for inner in value] if isinstance(value, list) else value


def faults(resource: Any) -> list[str]:
    """Return what an API server would say against a resource."""
    resource = without_null(resource)
    schema = strict(schema_of(resource["kind"]))
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema.Draft202012Validator(schema)
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(resource)]
    return found or list(broken_rules(schema_of(resource["kind"]), resource))


def ours(path: Path) -> Iterator[Any]:
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        if document and document["apiVersion"] == API_VERSION:
            yield document


MANIFESTS = [
    *sorted(SEED.glob("LLM*.yaml")),
    *sorted((ROOT / "rules" / "examples").glob("*/*.yaml")),
    ROOT / "rules" / "known-providers.yaml",
]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_good_manifest_is_taken(path: Path) -> None:
    for resource in ours(path):
        assert faults(resource) == []


def test_the_documentations_own_manifests_are_taken() -> None:
    if not SHARED.is_dir():
        pytest.skip("the documentation is not beside this repository")
    count = 0
    for page in SHARED.iterdir():
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(
            r"^( *)apiVersion: istio\.alibabacloud\.com.*\n(?:\1 *\S.*\n)+", text, re.MULTILINE
        ):
            indent = len(match[1])
            resource = yaml.safe_load("\n".join(row[indent:] for row in match[0].splitlines()))
            assert faults(resource) == []
            count += 1
    assert count >= 4


CONFIG = "  configs:\n    defaultConfig:\n     openAIConfig:\n"
RULE = "  rules:\n  - backendRefs: [{providerHost: p.test}]\n    "
STATED_BY_A_SCHEMA = [
    "  pth: /v1",
    "  path: v1/chat",
    "  path: 5",
    "  path:\n  - a",
    '  port: "443"',
    "  port: 443.5",
    "  port: 65536",
    "  port: 0",
    "  scheme: ftp",
    "  address: 10.0.0.1",
    "  address: p.test:65536",
    "  address: p.test:0",
    "  address: p.test:080",
    "  address: a@b:80",
    "  address: 'p.test :80'",
    "  address: ::1:80",
    "  streamUsage: 'off'",
    "  scheme: http\n  tls: {sni: x}",
    "  tls: {insecureSkipVerify: 'yes'}",
    "  tls: [a]",
    "  tls: {caFile: ca.pem, insecureSkipVerify: true}",
    "  tls: {cafile: x}",
    "  workloadSelector: {labels: {v: 1}}",
    "  workloadSelector: {labels: [a]}",
    "  configs: {default: {}}",
    "  configs: {defaultConfig: {}}",
    "  configs: {defaultConfig: {openAIConfig: }}",
    "  configs: {defaultConfig: {openaiConfig: {}}}",
    "  configs: {routeSpecificConfigs: {vip: {openAIConfig: {modle: x}}}}",
    "  configs: {defaultConfig: {geminiConfig: {}}}",
    "  timeouts: {idle: 5}",
    "  timeouts: {connect: 0s}",
    "  timeouts: {first: 1s}",
    "  outlierDetection: {consecutiveFailures: 0}",
    "  outlierDetection: {baseEjection: 0s}",
    "  outlierDetection: {baseEjection: 2m, maxEjection: 1m}",
    "  outlierDetection: {baseEjection: 10m}",
    "  outlierDetection: {maxEjection: 500ms}",
    CONFIG + "      model: 4",
    CONFIG + "      stream: 'no'",
    CONFIG + '      model: ""',
    CONFIG + '      model: " "',
    CONFIG + '      modelMapping: {a: " "}',
    CONFIG + "      apiKey: a\n      apiKeyFrom: {env: A}",
    CONFIG + "      apiKeyFrom: {}",
    CONFIG + "      apiKeyFrom: {env: A, file: b}",
    CONFIG + "      headers: {X-Y: 1}",
    CONFIG + '      headers: {X: "a\\nb"}',
    CONFIG + "      params: {set: [a]}",
]
STATED_BY_A_ROUTES_SCHEMA = [
    "  rules: []",
    "  rules: {a: b}",
    "  rules:",
    "  rules:\n  - name: a",
    "  rules:\n  - name: a\n    backendRefs: []",
    (
        "  rules:\n  - {name: a, backendRefs: [{providerHost: p.test}]}\n"
        "  - {backendRefs: [{providerHost: p.test}]}\n"
        "  - {name: a, backendRefs: [{providerHost: p.test}]}"
    ),
    "  rules:\n  - backendRefs: [{providerHost: p.test, weight: '1'}]",
    "  rules:\n  - backendRefs: [{providerHost: p.test, weight: -1}]",
    "  rules:\n  - backendRefs: [{provider: p.test}]",
    "  rules:\n  - backendRefs: [{}]",
    "  rules:\n  - backendRefs: [{providerHost: p.test, backendRef: {name: vllm}}]",
    "  rules:\n  - backendRefs: [{backendRef: {}}]",
    "  rules:\n  - backendRefs: [{backendRef: {name: Vllm}}]",
    "  rules:\n  - backendRefs: [{backendRef: {name: vllm, namespace: a.b}}]",
    "  rules:\n  - backendRefs: [{backendRef: {name: vllm, kind: Pod}}]",
    "  rules:\n  - backendRefs: [{backendRef: {name: vllm, kind: InferencePool}}]",
    "  rules:\n  - backendRefs: [{backendRef: {name: vllm, group: inference.networking.k8s.io}}]",
    "  rules:\n  - backendRefs: [{providerHost: p.test, priority: -1}]",
    "  rules:\n  - backendRefs: [{providerHost: p.test}, {providerHost: q, weight: 0}]",
    *(
        RULE + rule
        for rule in (
            "matches: [{headers: {user-type: vip}}]",
            "matches: [{headers: {a: {exact: x, prefix: y}}}]",
            "matches: [{headers: {a: {exact: 1}}}]",
            "matches: [{headers: {a: {exact: ''}}}]",
            "matches: [{headers: {a: {prefix: ' '}}}]",
            "matches: [{headers: {a: {regex: ''}}}]",
            "matches: [{header: {}}]",
            "matches: [{sourceLabels: {v: 1}}]",
            "matches:\n    - gateways: mesh",
            "mode: watch",
            "affinity: {header: a, cookie: b}",
            "affinity: {}",
            "affinity: {header: 'a b'}",
            "affinity: {header: ''}",
            "name: 3",
            "mirror: {percent: 5}",
            "mirror: {providerHost: p.test, percent: 101}",
            "mirror: {providerHost: p.test, percent: -0.1}",
            "mirror: {providerHost: p.test, percent: '5'}",
            "retry: {}",
            "retry: {attempts: 0}",
            "retry: {retryOn: []}",
            "retry: {retryOn: 429}",
            "retry: {retryOn: [429, 503]}",
            "retry: {perTryTimeout: 0s}",
            "retry: {perTryTimeout: 5 s}",
            "retry: {backoff: 25}",
            "retry: {atempts: 2}",
        )
    ),
]


@pytest.mark.parametrize("added", STATED_BY_A_SCHEMA)
def test_a_fault_in_a_provider_is_refused_by_the_api_server_too(problems: Fail, added: str) -> None:
    assert problems(PROVIDER + added)
    assert faults(yaml.safe_load(PROVIDER + added))


@pytest.mark.parametrize("added", STATED_BY_A_ROUTES_SCHEMA)
def test_a_fault_in_a_route_is_refused_by_the_api_server_too(problems: Fail, added: str) -> None:
    assert problems(ROUTE + added + "\n---\n" + PROVIDER)
    assert faults(yaml.safe_load(ROUTE + added))


@pytest.mark.parametrize(
    "host",
    [
        *("a:80", "p.test:8443", "[::1]:80", "https://p.test:80", "a b", "", "-a", "p.test/v1"),
        *(
            "[p.test]",
            "p.test..",
            ".",
            "a..b",
            "[::1",
            "::1]",
            "\N{KELVIN SIGN}.test",
            "p\u00e9.test",
        ),
        *("a" * 64, f"{'a' * 64}.test", ".".join(["a" * 63] * 4), "*.test", "a*.test", "p.test-"),
    ],
)
def test_a_host_that_can_not_be_is_refused(problems: Fail, host: str) -> None:
    resource = yaml.safe_load(PROVIDER) | {"spec": {"host": host}}
    assert faults(resource)
    assert problems(yaml.safe_dump(resource))


@pytest.mark.parametrize(
    "host",
    [
        *("p.test", "P.Test.", "::1", "[2001:DB8::1]", "::ffff:192.0.2.1", "192.0.2.1", "a_b", "x"),
        *("a" * 63, ".".join(["a" * 63] * 3 + ["a" * 61]), "_dmarc.p.test", "p--q.test"),
    ],
)
def test_a_host_that_can_be_is_taken(rules: Load, host: str) -> None:
    resource = yaml.safe_load(PROVIDER) | {"spec": {"host": host}}
    assert faults(resource) == []
    assert rules(yaml.safe_dump(resource)).providers


@given(st.text(alphabet="aZ0-_.*[]:/ @\u00e9", max_size=8))
@settings(max_examples=1000, deadline=None)
def test_a_host_is_the_same_to_both(host: str) -> None:
    """But for the groups of an IPv6 address, which no pattern counts."""
    pattern = schema_of("LLMRoute")["properties"]["spec"]["properties"]["host"]["pattern"]
    taken = re.match(pattern, host) is not None
    try:
        host_or_wildcard(host)
    except ValueError:
        assert not taken or ":" in host
    else:
        assert taken


@pytest.mark.parametrize(
    "added",
    [
        RULE + "retry: {retryOn: [429, '429', 5xx, reset]}",
        RULE + "matches: [{path: /v1, method: {exact: POST}, model: {}}]",
        RULE + "affinity: {bodyField: user}",
        RULE + "mirror: {providerHost: p.test, percent: 12.5}",
        "  rules:\n  - backendRefs: [{backendRef: {name: vllm, port: 8000}}]",
        (
            "  rules:\n  - backendRefs:\n    - backendRef: {group: inference.networking.k8s.io,"
            " kind: InferencePool, name: vllm, namespace: models}"
        ),
        "  rules:\n  - backendRefs: [{providerHost: p}, {providerHost: q, priority: 1}]",
        (
            "  rules:\n  - {name: a, backendRefs: [{providerHost: p.test}]}\n"
            "  - {backendRefs: [{providerHost: p.test}]}\n"
            "  - {backendRefs: [{providerHost: p.test}]}\n"
            "  - {name: b, backendRefs: [{providerHost: p.test}]}"
        ),
    ],
)
def test_what_a_route_may_say_is_taken(added: str) -> None:
    assert faults(yaml.safe_load(ROUTE + added)) == []


def test_our_own_status_is_taken() -> None:
    resource = yaml.safe_load(PROVIDER)
    condition = {
        "type": "Accepted",
        "status": "False",
        "observedGeneration": 2,
        "lastTransitionTime": "2026-01-31T12:00:00Z",
        "reason": "Invalid",
        "message": "spec.path: it is no path",
    }
    assert faults(resource | {"status": {"conditions": [condition]}}) == []
    assert faults(resource | {"status": {"conditions": [condition | {"status": "Maybe"}]}})
