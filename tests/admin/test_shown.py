"""The live table as JSON: complete, without keys, and the same for the same rules."""

import json
from pathlib import Path

import pytest
import yaml

from pointsman.admin.shown import fingerprint, show_key, show_table
from pointsman.config.credentials import KeyFile, Literal
from pointsman.config.loading import load
from pointsman.config.table import RoutingTable

KEY, OTHER, HEADER = "sk-shown-never-41d0", "sk-shown-other-7ee2", "sk-shown-header-c9b5"
RULES = """
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: far}
spec:
  host: far.example
  path: /v1/chat/completions
  address: 10.0.0.7:8443
  tls: {sni: other.example, insecureSkipVerify: true}
  timeouts: {firstByte: 20s}
  configs:
    defaultConfig:
      openAIConfig:
        model: m
        apiKey: ${KEY}
        headers: {x-secret: "${HEADER}"}
        modelMapping: {gpt-4*: m}
        params: {set: {temperature: 0}, default: {top_p: 1}}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: near}
spec: {host: near.example}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {name: shop}
spec:
  host: shop
  rules:
  - name: subscribers
    matches:
    - headers: {user-type: {exact: subscriber}}
      method: POST
    - model: {prefix: gpt}
    affinity: {header: x-user}
    mirror: {providerHost: near.example, percent: 5}
    retry: {attempts: 3, perTryTimeout: 9s}
    backendRefs:
    - {providerHost: far.example, weight: 1}
    - {providerHost: near.example, weight: 1, priority: 1}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {name: wild}
spec:
  host: "*.wild.example"
  rules:
  - {name: all, mode: observe, backendRefs: [{providerHost: near.example}]}
"""


def loaded(tmp_path: Path, rules: str = RULES, key: str = KEY) -> RoutingTable:
    (tmp_path / "rules.yaml").write_text(rules, encoding="utf-8")
    return load(tmp_path, environ={"KEY": key, "HEADER": HEADER}).table


def test_everything_that_decides_is_shown(tmp_path: Path) -> None:
    shown = {route["host"]: route for route in show_table(loaded(tmp_path))}
    assert list(shown) == ["*.wild.example", "far.example", "near.example", "shop"]
    shop = shown["shop"]
    assert shop["route"] == "shop"
    assert "shop.default.svc.cluster.local" in shop["also"]
    (rule,) = shop["rules"]
    assert rule["matches"] == [
        "header user-type = subscriber and method = POST",
        "model starts with gpt",
    ]
    assert rule["affinity"] == {"header": "x-user"}
    assert (rule["retry"]["attempts"], rule["retry"]["perTryTimeoutSeconds"]) == (3, 9.0)
    assert rule["mirror"]["percent"] == 5
    assert rule["mirror"]["target"]["provider"] == "near"
    far, near = rule["targets"]
    assert (far["address"], far["path"]) == ("10.0.0.7:8443", "/v1/chat/completions")
    assert far["tls"] == {"sni": "other.example", "verify": False}
    assert far["timeoutSeconds"]["firstByte"] == 20.0
    assert far["call"] == {
        "model": "m",
        "modelMapping": {"gpt-4*": "m"},
        "headers": {"x-secret": f"...{HEADER[-4:]}"},
        "params": {"set": {"temperature": 0}, "default": {"top_p": 1}},
    }
    assert (near["weight"], near["priority"]) == (1, 1)
    assert "call" not in near
    assert shown["*.wild.example"]["rules"][0]["observe"] is True
    # A provider without a route answers by itself.
    assert "route" not in shown["far.example"]


def test_no_key_is_shown(tmp_path: Path) -> None:
    text = json.dumps(show_table(loaded(tmp_path)))
    assert KEY not in text
    assert HEADER not in text


def test_no_key_that_stands_elsewhere_is_shown(tmp_path: Path) -> None:
    """In the query of a path, or where the name of a header belongs."""
    rules = RULES.replace("x-secret:", f"{KEY}:").replace("user-type:", f"{KEY}:")
    path = "path: /v1/chat/completions"
    assert path in rules
    text = json.dumps(show_table(loaded(tmp_path, rules.replace(path, f"{path}?key={KEY}&v=1"))))
    assert KEY not in text
    assert "&v=1" in text


def test_what_changes_while_it_runs_is_added_to_each_target(tmp_path: Path) -> None:
    shown = show_table(loaded(tmp_path), lambda target: {"state": f"{target.provider} is well"})
    states = [target["state"] for route in shown for rule in route["rules"]
              for target in rule["targets"]]  # fmt: skip
    assert set(states) == {"far is well", "near is well"}


def test_the_fingerprint_is_that_of_the_rules_and_not_of_the_keys(tmp_path: Path) -> None:
    first = fingerprint(loaded(tmp_path))
    assert first == fingerprint(loaded(tmp_path, key=OTHER))
    documents = list(yaml.safe_load_all(RULES))
    reordered = yaml.safe_dump_all(reversed(documents))
    assert first == fingerprint(loaded(tmp_path, reordered))
    assert first != fingerprint(loaded(tmp_path, RULES.replace("percent: 5", "percent: 6")))
    assert len(first) == 16


def test_a_key_is_shown_by_its_end_its_file_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.config.credentials._RECHECK", 0.0)
    assert show_key(None) == {}
    assert show_key(Literal(KEY)) == {"key": f"...{KEY[-4:]}"}
    file = tmp_path / "key"
    file.write_text(KEY)
    credential = KeyFile(file)
    assert show_key(credential) == {"key": f"...{KEY[-4:]}", "keyFile": str(file)}
    file.unlink()
    gone = show_key(credential)
    assert gone["key"] is None
    assert "can't be read" in gone["keyProblem"]
