"""What the tests of injection share: a call of it, and what Kubernetes would read."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from pointsman.kubernetes.inject import Injection, inject
from pointsman.kubernetes.settings import Settings

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry.example.com/pointsman:1.2.3"
# The first with native sidecars switched on, and the newest that the validator knows.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
KUBECTL = shutil.which("kubectl")

type Json = Any


def injected(text: str, **options: Any) -> Injection:
    return inject(text, Settings.of({"image": IMAGE} | options), version="1.2.3")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as Kubernetes reads it: a date is a text there."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way)
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":timestamp")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def documents(text: str) -> list[Json]:
    return [value for value in yaml.load_all(text, Loader=_Loader) if value is not None]


def document(text: str) -> Json:
    (found,) = documents(text)
    return found


def validate(value: Json, version: str) -> None:
    """Raise kubernetes_validate.ValidationError; unknown fields are errors."""
    if value["kind"] == "List":
        for item in value["items"]:
            validate(item, version)
    else:
        kubernetes_validate.validate(value, version, strict=True)


def pod_of(value: Json) -> Json:
    spec = value["spec"]
    if value["kind"] == "Pod":
        return value
    return (spec["jobTemplate"]["spec"] if value["kind"] == "CronJob" else spec)["template"]


def containers_of(value: Json) -> dict[str, Json]:
    spec = pod_of(value)["spec"]
    return {c["name"]: c for c in [*spec.get("initContainers", []), *spec["containers"]]}


def read_by_kubectl(text: str) -> list[Json]:
    """Return the documents as the real kubectl (go-yaml) reads them, without a cluster."""
    assert KUBECTL
    command = [KUBECTL, "annotate", "--local", "-o", "json", "-f", "-", "read-by=kubectl"]
    output = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
    decoder, rest, found = json.JSONDecoder(), output.decode().strip(), []
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].strip()
    return found
