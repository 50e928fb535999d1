"""The permissions that we hand out are valid, and are those that we use."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pointsman.config.resources import API_GROUP, BACKEND_APIS, KINDS

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes/components/rules-from-cluster"
FILES = sorted(file for file in FOLDER.glob("*.yaml") if file.name != "kustomization.yaml")


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_valid(file: Path) -> None:
    for document in documents(file):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_the_component_names_every_file() -> None:
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    assert all(f"- {file.name}" in text for file in FILES)
    (component,) = documents(FOLDER / "kustomization.yaml")
    assert component["kind"] == "Component"
    assert component["resources"] == ["namespace.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_role_allows_what_is_asked_and_no_more(file: Path) -> None:
    (role,) = [d for d in documents(file) if d["kind"] in {"Role", "ClusterRole"}]
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    ours = {f"{kind.lower()}s" for kind in KINDS}
    read = {(API_GROUP, plural) for plural in ours} | {("", "services"), ("", "pods")}
    read |= {(group, "inferencepools") for group, kind in BACKEND_APIS if kind == "InferencePool"}
    asked = {(group, plural, verb) for group, plural in read for verb in ("list", "watch")}
    if file.name == "status.yaml":
        asked |= {(API_GROUP, f"{plural}/status", "patch") for plural in ours}
    assert allowed == asked
