"""The example for `kubectl apply -k`: complete, accepted by Kubernetes, and up to date."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pointsman.cli import app
from pointsman.config.loading import Instance, Later, load
from tests.kubernetes.injecting import KUBECTL, VERSIONS, containers_of, documents, validate

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "kubernetes"
COMPONENT = EXAMPLE / "components" / "rules-from-cluster"
KEYS = {"DASHSCOPE_API_KEY", "MOONSHOT_API_KEY"}


@pytest.fixture
def kustomization() -> Any:
    return yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text())


def manifests() -> list[Any]:
    found = [value for path in EXAMPLE.glob("*.yaml") for value in documents(path.read_text())]
    found += documents((COMPONENT / "namespace.yaml").read_text())
    return [value for value in found if value["kind"] != "Kustomization"]


def test_the_injected_application_is_what_inject_makes_of_it() -> None:
    arguments = [
        "inject",
        "-f",
        str(EXAMPLE / "application.yaml"),
        "--keys-secret",
        "provider-keys",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "warning" not in result.stderr
    assert result.stdout == (EXAMPLE / "application.injected.yaml").read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_manifest(version: str) -> None:
    found = manifests()
    assert {value["kind"] for value in found} == {
        "Namespace",
        "Service",
        "Deployment",
        "Role",
        "RoleBinding",
    }
    for value in found:
        validate(value, version)


def test_every_file_that_kustomize_needs_is_there_but_the_keys(kustomization: Any) -> None:
    (configmap,), (secret,) = kustomization["configMapGenerator"], kustomization["secretGenerator"]
    for name in [*kustomization["resources"], *configmap["files"]]:
        assert (EXAMPLE / name).is_file()
    component = yaml.safe_load((COMPONENT / "kustomization.yaml").read_text())
    assert all((COMPONENT / name).is_file() for name in component["resources"])
    # The keys are the user's: git ignores them, and the example of them has none.
    assert secret["envs"] == ["keys.env"]
    assert "/keys.env" in (EXAMPLE / ".gitignore").read_text().splitlines()
    entries = (EXAMPLE / "keys.env.example").read_text().splitlines()
    assert {line for line in entries if not line.startswith("#")} == {f"{name}=" for name in KEYS}


def test_the_rules_are_all_in_the_configmap_and_load(kustomization: Any, tmp_path: Path) -> None:
    named = {Path(name).name for name in kustomization["configMapGenerator"][0]["files"]}
    assert named == {path.name for path in (EXAMPLE / "rules").iterdir()}
    for path in (EXAMPLE / "rules").iterdir():
        text = path.read_text().replace("/etc/pointsman/keys", str(tmp_path / "keys"))
        (tmp_path / path.name).write_text(text)
    (tmp_path / "keys").mkdir()
    for name in KEYS:
        (tmp_path / "keys" / name).write_text("key")
    loaded = load(tmp_path, instance=Instance())
    assert (len(loaded.providers), len(loaded.routes)) == (2, 1)
    # As keys.env.example says: an empty one is no one's but its provider's.
    for name in KEYS:
        (tmp_path / "keys" / name).write_text("")
    (first, second) = load(tmp_path, instance=Instance(), later=Later.KEY_FILES).warnings
    assert first.resource != second.resource


def test_the_sidecar_mounts_what_the_generators_make(kustomization: Any) -> None:
    (deployment,) = documents((EXAMPLE / "application.injected.yaml").read_text())
    volumes = {v["name"]: v for v in deployment["spec"]["template"]["spec"]["volumes"]}
    (configmap,), (secret,) = kustomization["configMapGenerator"], kustomization["secretGenerator"]
    assert volumes["pointsman-rules"]["configMap"]["name"] == configmap["name"]
    assert volumes["pointsman-keys"]["secret"]["secretName"] == secret["name"]
    assert kustomization["generatorOptions"] == {"disableNameSuffixHash": True}
    assert "pointsman-keys" in {
        mount["name"] for mount in containers_of(deployment)["pointsman"]["volumeMounts"]
    }


def test_the_image_has_the_version_of_the_project(kustomization: Any) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert [image["newTag"] for image in kustomization["images"]] == [version]


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    return subprocess.run(
        [str(KUBECTL), "kustomize", folder],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.mark.skipif(not KUBECTL, reason="kubectl is not installed")
@pytest.mark.parametrize("components", [[], ["components/rules-from-cluster"]])
def test_kubectl_builds_it(components: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("keys.env"))
    if components:
        with (folder / "kustomization.yaml").open("a") as file:
            yaml.safe_dump({"components": components}, file)

    missing = build(folder)
    assert missing.returncode != 0
    assert "keys.env: no such file" in missing.stderr

    (folder / "keys.env").write_text("".join(f"{name}=a-key\n" for name in KEYS))
    built = build(folder)
    assert built.returncode == 0, built.stderr
    found = {value["kind"]: value for value in documents(built.stdout)}
    expected = {"Namespace", "ConfigMap", "Secret", "Service", "Deployment"}
    assert found.keys() == expected | ({"Role", "RoleBinding"} if components else set())
    for value in found.values():
        validate(value, VERSIONS[-1])
        if value["kind"] != "Namespace":
            assert value["metadata"]["namespace"] == found["Namespace"]["metadata"]["name"]
    assert found["ConfigMap"]["data"].keys() == {"providers.yaml", "routes.yaml"}
    assert found["Secret"]["data"].keys() == KEYS
    if components:
        assert found["RoleBinding"]["subjects"][0]["namespace"] == "pointsman-example"
