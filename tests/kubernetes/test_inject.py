"""`pointsman inject`: golden files, the schema, and what must hold for any pod.

`WRITE_GOLDEN=1 pytest tests/kubernetes/test_inject.py` writes the golden files anew.
"""

import copy
import os
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.kubernetes import sidecar
from pointsman.kubernetes.manifests import ManifestError
from pointsman.kubernetes.settings import (
    _TAKEN,
    LLM_OPTIONS,
    STATUS,
    SWITCH,
    Settings,
    SettingsError,
)
from pointsman.proxy.options import declare
from tests.kubernetes.injecting import (
    GOLDEN,
    KUBECTL,
    VERSIONS,
    Json,
    containers_of,
    document,
    documents,
    injected,
    pod_of,
    read_by_kubectl,
    validate,
)

CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml") if ".injected" not in path.name)
KINDS = ["pod", "deployment", "statefulset", "daemonset", "replicaset", "job", "cronjob"]


def case(name: str) -> str:
    return (GOLDEN / f"{name}.yaml").read_text()


def pod(spec: str = "", annotations: str = "") -> str:
    return (
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: shell\n"
        f"  annotations: {{{annotations}}}\n"
        f"spec:\n  containers: [{{name: shell, image: shell}}]\n  {spec}\n"
    )


def container(more: str) -> str:
    return pod().replace("image: shell}", f"image: shell, {more}}}")


def test_there_is_a_golden_file_for_every_kind() -> None:
    assert set(KINDS) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_manifest_is_the_golden_one(name: str) -> None:
    text = injected(case(name)).text
    golden = GOLDEN / f"{name}.injected.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", CASES)
def test_injecting_twice_is_injecting_once(name: str) -> None:
    once = injected(case(name)).text
    assert injected(once).text == once


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "mixed"])
def test_kubernetes_accepts_it(name: str, version: str) -> None:
    for value in documents(injected(case(name)).text):
        validate(value, version)


def broken(value: Json) -> Iterator[tuple[str, Json]]:
    """Yield the manifest with one mistake in each part that is put in."""

    def proxy(copied: Json) -> Json:
        return containers_of(copied)["pointsman"]

    def redirect(copied: Json) -> Json:
        return containers_of(copied)["pointsman-redirect"]

    mistakes: dict[str, Any] = {
        "restartPolicy": lambda c: proxy(c).update(restartPolicy=True),
        "unknown field": lambda c: proxy(c).update(restartPolice="Always"),
        "probe": lambda c: proxy(c)["startupProbe"].update(httpGet={"path": "/readyz"}),
        "preStop": lambda c: proxy(c)["lifecycle"]["preStop"]["exec"].update(command="drain"),
        "limit": lambda c: proxy(c)["resources"]["limits"].update(cpu=[]),
        "env": lambda c: proxy(c)["env"].append({"value": "no name"}),
        "capabilities": lambda c: redirect(c)["securityContext"].update(
            capabilities={"add": "NET_ADMIN"}
        ),
        "user": lambda c: redirect(c)["securityContext"].update(runAsUser="root"),
        "args": lambda c: redirect(c)["args"].append(15001),
        "volume": lambda c: pod_of(c)["spec"]["volumes"].append({"emptyDir": {}}),
        "grace": lambda c: pod_of(c)["spec"].update(terminationGracePeriodSeconds="90"),
        "annotation": lambda c: pod_of(c)["metadata"]["annotations"].update({STATUS: {}}),
    }
    for name, mistake in mistakes.items():
        copied = copy.deepcopy(value)
        mistake(copied)
        yield name, copied


@pytest.mark.parametrize("version", VERSIONS)
def test_the_check_against_the_schema_can_fail(version: str) -> None:
    for name, value in broken(document(injected(case("deployment")).text)):
        try:
            validate(value, version)
        except kubernetes_validate.ValidationError:
            continue
        pytest.fail(f"{name}: accepted")


@pytest.mark.skipif(not KUBECTL, reason="kubectl is not installed")
@pytest.mark.parametrize("name", [name for name in CASES if name not in {"list", "mixed"}])
def test_kubectl_finds_everything_that_was_there_before(name: str) -> None:
    (before,) = read_by_kubectl(case(name))
    (after,) = read_by_kubectl(injected(case(name)).text)
    assert without_sidecar(after) == before


# --- what holds for any pod -----------------------------------------------------------------------


def without_sidecar(value: Json) -> Json:
    """Take out what is documented to be put in, and nothing else."""
    value = copy.deepcopy(value)
    template = pod_of(value)
    spec = template["spec"]
    status = template["metadata"]["annotations"].pop(STATUS)
    if not template["metadata"]["annotations"]:
        del template["metadata"]["annotations"]
    if not template["metadata"]:
        del template["metadata"]
    if '"gracePeriod": "set"' in status:
        del spec["terminationGracePeriodSeconds"]
    assert [c["name"] for c in spec["initContainers"][:3]] == list(sidecar.CONTAINERS)
    spec["initContainers"] = spec["initContainers"][3:]
    spec["volumes"] = [v for v in spec["volumes"] if v["name"] not in sidecar.VOLUMES]
    for each in [*spec["initContainers"], *spec["containers"]]:
        assert each["volumeMounts"].pop()["name"] == "pointsman-trust"
        each["env"] = [
            entry
            for entry in each["env"]
            if not str(entry.get("value")).startswith("/pointsman/trust/")
        ]
        drop_empty(each, "volumeMounts", "env")
    drop_empty(spec, "initContainers", "volumes")
    return value


def drop_empty(value: Json, *names: str) -> None:
    for name in names:
        if not value[name]:
            del value[name]


words = st.text("abcdefghij-", min_size=1, max_size=8)
texts = st.text(max_size=40) | st.sampled_from(
    ["on", "1e3", "0o7", "012", "2024-01-31", "a: b", ""]
)
mappings = st.dictionaries(words, texts, max_size=3)
variables = st.fixed_dictionaries(
    {"name": words | st.sampled_from(sorted(sidecar.TRUST_VARIABLES)), "value": texts}
)
mounts = st.fixed_dictionaries({"name": words, "mountPath": words})
containers = st.fixed_dictionaries(
    {"name": words, "image": texts},
    optional={
        "args": st.lists(texts, min_size=1, max_size=3),
        "env": st.lists(variables, min_size=1, max_size=3, unique_by=lambda entry: entry["name"]),
        "volumeMounts": st.lists(mounts, min_size=1, max_size=2),
        "securityContext": st.just({"runAsUser": 1000}),
    },
)
volumes = st.fixed_dictionaries({"name": words, "configMap": st.just({"defaultMode": 0o644})})
specs = st.fixed_dictionaries(
    {"containers": st.lists(containers, min_size=1, max_size=3)},
    optional={
        "initContainers": st.lists(containers, min_size=1, max_size=2),
        "volumes": st.lists(volumes, min_size=1, max_size=2),
        "terminationGracePeriodSeconds": st.integers(0, 600),
        "nodeSelector": mappings.filter(bool),
    },
)
pods = st.fixed_dictionaries(
    {"spec": specs},
    optional={
        "metadata": st.fixed_dictionaries(
            {"labels": mappings.filter(bool)}, optional={"annotations": mappings.filter(bool)}
        )
    },
)


@st.composite
def manifests(draw: st.DrawFn) -> str:
    """Texts of workloads, as people and tools write them."""
    template = draw(pods)
    kind = draw(st.sampled_from(["Pod", "Deployment", "StatefulSet", "Job", "CronJob"]))
    group = {"Pod": "v1", "Job": "batch/v1", "CronJob": "batch/v1"}.get(kind, "apps/v1")
    value = {"apiVersion": group, "kind": kind} | (
        template
        if kind == "Pod"
        else {
            "metadata": {"name": "shop"},
            "spec": {"jobTemplate": {"spec": {"template": template}}},
        }
        if kind == "CronJob"
        else {"metadata": {"name": "shop"}, "spec": {"template": template}}
    )
    return yaml.safe_dump(
        value,
        sort_keys=False,
        default_flow_style=draw(st.sampled_from([None, False, True])),
        default_style=draw(st.sampled_from([None, '"', "'"])),
        allow_unicode=draw(st.booleans()),
        width=draw(st.sampled_from([20, 80, 1000])),
    )


@settings(deadline=None, max_examples=40)
@given(manifests())
def test_any_pod_is_what_it_was_but_for_the_sidecar(text: str) -> None:
    assert without_sidecar(document(injected(text).text)) == document(text)


@settings(deadline=None, max_examples=40)
@given(manifests(), st.sampled_from([{}, {"workers": 3, "keys_secret": "keys"}]))
def test_any_pod_is_injected_twice_as_once(text: str, options: dict[str, Any]) -> None:
    once = injected(text).text
    assert injected(once).text == once
    # Other options, or another version, take the place of what was there.
    assert injected(injected(once, **options).text).text == once


# --- what a pod gets ------------------------------------------------------------------------------


def test_only_the_redirection_has_privileges_and_only_for_a_while() -> None:
    value = document(injected(case("deployment")).text)
    found = containers_of(value)
    capable = {
        name: each["securityContext"]["capabilities"]
        for name, each in found.items()
        if "capabilities" in each.get("securityContext", {})
    }
    assert capable == {
        "pointsman-ca": {"drop": ["ALL"]},
        "pointsman-redirect": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        "pointsman": {"drop": ["ALL"]},
    }
    for name in sidecar.CONTAINERS:
        context = found[name]["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["runAsUser"] == (0 if name == "pointsman-redirect" else 1337)
        assert found[name]["resources"].keys() == {"requests", "limits"}
    assert [name for name, each in found.items() if "restartPolicy" in each] == ["pointsman"]


def test_the_private_key_and_the_provider_keys_are_in_no_application() -> None:
    text = injected(case("deployment"), keys_secret="keys", ca_secret="ca").text
    secret = {"pointsman-state", "pointsman-keys", "pointsman-ca-secret"}
    for name, each in containers_of(document(text)).items():
        mounted = {mount["name"] for mount in each["volumeMounts"]}
        if name not in sidecar.CONTAINERS:
            assert not mounted & secret
            assert "envFrom" not in each
        if name != "pointsman-ca":
            assert "pointsman-ca-secret" not in mounted


def test_every_container_of_the_application_trusts_the_authority() -> None:
    found = containers_of(document(injected(case("deployment")).text))
    for name in ("migrate", "worker"):
        assert {entry["name"]: entry["value"] for entry in found[name]["env"]} == (
            sidecar.TRUST_VARIABLES
        )
        assert sidecar.trust_mount() in found[name]["volumeMounts"]
    env = [(entry["name"], entry["value"]) for entry in found["web"]["env"]]
    assert ("NODE_EXTRA_CA_CERTS", "/etc/shop/ca.pem") in env
    assert len(dict(env)) == len(env)


def test_every_volume_that_is_mounted_exists_and_every_one_is_mounted() -> None:
    for options in ({}, {"keys_secret": "keys", "ca_secret": "ca"}, {"rules": "kubernetes:"}):
        value = document(injected(case("pod"), **options).text)
        mounted = {m["name"] for c in containers_of(value).values() for m in c["volumeMounts"]}
        declared = {volume["name"] for volume in value["spec"]["volumes"]}
        assert mounted == declared
        assert declared <= sidecar.VOLUMES


def test_a_variable_that_the_container_sets_itself_is_kept_with_a_warning() -> None:
    injection = injected(case("deployment"))
    (warning,) = injection.warnings
    assert warning == (
        "document 1, line 2: Deployment/shop: container 'web' sets NODE_EXTRA_CA_CERTS itself: it"
        " has to trust the certificate in /pointsman/trust on its own account"
    )
    assert injected(injection.text).warnings == injection.warnings


@pytest.mark.parametrize(
    ("given", "grace", "drain"), [("", 90, 80), ("120", 120, 110), ("30", 30, 20), ("5", 5, 1)]
)
def test_the_grace_period_is_set_only_where_the_pod_has_none(
    given: str, grace: int, drain: int
) -> None:
    injection = injected(pod(f"terminationGracePeriodSeconds: {given}"))
    value = document(injection.text)
    assert value["spec"]["terminationGracePeriodSeconds"] == grace
    assert f"llm_drain_timeout={drain}s" in containers_of(value)["pointsman"]["args"]
    assert bool(injection.warnings) == (grace < 90)
    # The pod's own is recognized as such the next time, and so is ours.
    again = document(injected(injection.text, grace_period=200).text)
    assert again["spec"]["terminationGracePeriodSeconds"] == (grace if given else 200)


def test_what_the_user_sets_takes_the_place_of_ours() -> None:
    value = document(injected(case("pod"), set=["llm_health=[::]:15021", "llm_unknown=deny"]).text)
    arguments = containers_of(value)["pointsman"]["args"]
    settings = [arguments[i + 1] for i, each in enumerate(arguments) if each == "--set"]
    assert settings[-2:] == ["llm_health=[::]:15021", "llm_unknown=deny"]
    assert len({setting.partition("=")[0] for setting in settings}) == len(settings)


def test_an_older_injection_is_replaced() -> None:
    old = document(injected(case("pod"), keys_secret="keys").text)
    old["metadata"]["annotations"][STATUS] = '{"version": "0.0.1", "gracePeriod": "set"}'
    old["spec"]["terminationGracePeriodSeconds"] = 45
    for each in old["spec"]["initContainers"]:
        each["image"] = "pointsman:0.0.1"
    new = document(injected(yaml.safe_dump(old, sort_keys=False)).text)
    assert new == document(injected(case("pod")).text)


def test_an_older_injection_that_had_its_files_elsewhere_is_replaced() -> None:
    text = injected(case("deployment")).text
    older = text.replace("/pointsman/trust", "/var/run/pointsman/trust")
    assert older != text
    assert injected(older).text == text


@pytest.mark.parametrize("path", ["/var/run", "/run", "/pointsman-data", "/pointsman/trusted"])
def test_a_mount_beside_our_files_is_the_users(path: str) -> None:
    """Of those read-only, which node agents have at /var/run, none may be above ours."""
    assert injected(container(f"volumeMounts: [{{name: x, mountPath: {path}}}]")).injected
    assert not sidecar.TRUST.startswith(f"{path}/")


@pytest.mark.parametrize("status", ["", "{", "[]", "1.0"])
def test_a_status_that_is_no_json_is_still_one(status: str) -> None:
    text = injected(case("pod")).text
    value = document(text)
    value["metadata"]["annotations"][STATUS] = status
    again = injected(yaml.safe_dump(value, sort_keys=False)).text
    assert [each["name"] for each in document(again)["spec"]["initContainers"]] == list(
        sidecar.CONTAINERS
    )


# --- what is left alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["disabled", '"false"'])
def test_an_annotation_switches_it_off(value: str) -> None:
    text = pod(annotations=f"{SWITCH}: {value}")
    injection = injected(text)
    assert injection.text == text
    assert not injection.injected
    assert not injection.warnings
    assert SWITCH in injection.notes[0]


def test_the_pods_annotation_wins_over_the_objects() -> None:
    text = case("annotations").replace("inject: enabled", "inject: disabled")
    assert injected(text).text == text
    text = case("annotations").replace("workers:", "inject: disabled\n    pointsman.io/workers:")
    assert injected(text).injected


def test_disabling_does_not_take_the_sidecar_out() -> None:
    text = injected(case("pod")).text.replace(
        "    pointsman.io", f"    {SWITCH}: disabled\n    pointsman.io"
    )
    injection = injected(text)
    assert injection.text == text
    assert "with the sidecar it has" in injection.notes[0]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("hostNetwork: true", "the network of its node"),
        ("os: {name: windows}", "it runs on windows"),
        ("nodeSelector: {kubernetes.io/os: windows}", "it runs on windows"),
    ],
)
def test_pods_that_can_not_have_it_are_left_alone_with_a_warning(spec: str, reason: str) -> None:
    injection = injected(pod(spec))
    assert injection.text == pod(spec)
    assert not injection.injected
    (warning,) = injection.warnings
    assert warning.startswith("document 1, line 1: Pod/shell: not injected: ")
    assert reason in warning


@pytest.mark.parametrize(
    ("version", "kind", "place"),
    [
        ("argoproj.io/v1alpha1", "Rollout", "spec: {template: "),
        ("serving.knative.dev/v1", "Service", "spec: {template: "),
        ("extensions/v1beta1", "Deployment", "spec: {template: "),
        ("v1", "ReplicationController", "spec: {template: "),
        ("v1", "PodTemplate", "{template: "),
    ],
)
def test_pods_in_other_kinds_are_told(version: str, kind: str, place: str) -> None:
    inner = f"{place}{{spec: {{containers: [{{name: a, image: a}}]}}}}}}"
    body = inner.removeprefix("{").removesuffix("}") if place.startswith("{") else inner
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n{body}\n"
    injection = injected(text)
    assert injection.text == text
    (warning,) = injection.warnings
    assert warning.startswith(f"document 1, line 1: {kind}/x: not injected: it has pods")


ELSEWHERE = {
    "ScaledJob": "jobTargetRef: {template: {spec: {containers: [{name: a, image: a}]}}}",
    "JobSet": (
        "replicatedJobs: [{name: a, template: {spec: {template: {spec:"
        " {containers: [{name: a, image: a}]}}}}}]"
    ),
    "CronWorkflow": "workflowSpec: {templates: [{name: b}, {name: a, container: {image: a}}]}",
    "Workflow": "templates: [{name: a, containerSet: {containers: [{name: a, image: a}]}}]",
    "WorkflowTemplate": "templates: [{name: a, script: {image: a, source: b}}]",
    "Task": "steps: [{name: a, image: a}]",
    "ManifestWork": (
        "workload: {manifests: [{apiVersion: apps/v1, kind: Deployment, spec:"
        " {template: {spec: {containers: [{name: a, image: a}]}}}}]}"
    ),
}


def elsewhere(kind: str, annotations: str = "") -> str:
    metadata = f"{{name: x, annotations: {{{annotations}}}}}"
    spec = f"{{{ELSEWHERE[kind]}}}"
    return f"apiVersion: example.com/v1\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n"


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_pods_are_told_wherever_their_kind_has_them(kind: str) -> None:
    injection = injected(elsewhere(kind))
    assert injection.text == elsewhere(kind)
    (warning,) = injection.warnings
    assert warning.startswith(f"document 1, line 1: {kind}/x: not injected: it has pods")


def test_pods_in_other_kinds_are_not_told_where_that_is_switched_off() -> None:
    text = elsewhere("ScaledJob", f"{SWITCH}: disabled")
    injection = injected(text)
    assert injection.text == text
    assert not injection.warnings
    assert injection.notes == [
        f"document 1, line 1: ScaledJob/x: left as it is ({SWITCH}: disabled)"
    ]
    with pytest.raises(ManifestError, match="ScaledJob/x: annotation"):
        injected(elsewhere("ScaledJob", f"{SWITCH}: maybe"))


def test_pods_below_everything_that_anyone_writes_are_not_looked_for() -> None:
    inner = '{"containers": [{"image": "a"}]}'
    deep = f"{'[' * 200}{inner}{']' * 200}"
    text = f'{{"apiVersion": "example.com/v1", "kind": "Deep", "spec": {deep}}}'
    assert not injected(text).warnings


@pytest.mark.parametrize(
    "spec",
    [
        "hostNetwork: false",
        "os: {name: linux}",
        "hostNetwork: 'true'",
        "securityContext: {runAsUser: 1000, runAsGroup: 0, fsGroup: 2000, supplementalGroups: [3]}",
        "securityContext: {supplementalGroups: }",
    ],
)
def test_others_are_injected(spec: str) -> None:
    assert injected(pod(spec)).injected


def test_capabilities_that_lead_nowhere_are_not_told() -> None:
    text = container("securityContext: {capabilities: {add: [CHOWN, CAP_NET_BIND_SERVICE]}}")
    assert not injected(text).warnings
    text = container("securityContext: {capabilities: {drop: [ALL, NET_RAW]}}")
    assert not injected(text).warnings


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "---\n---\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\n",
        "apiVersion: example.com/v1\nkind: Pod\n",
        "apiVersion: v1\nkind: List\nitems: []\n",
        "apiVersion: v1\nkind: List\n",
        "apiVersion: apps/v1\nkind: ControllerRevision\ndata: {spec: {template: {}}}\n",
        "apiVersion: v1\nkind: ConfigMap\ndata: {containers: a, container: b, image: c}\n",
        "apiVersion: example.com/v1\nkind: A\nspec: {containers: [a, {name: b}], image: c}\n",
        (
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec:"
            " {properties: {container: {type: object, properties: {image: {type: string}}},"
            " containers: {type: array, items: {properties: {image: {type: string}}}}}}\n"
        ),
    ],
)
def test_what_is_no_workload_is_passed_on(text: str) -> None:
    injection = injected(text)
    assert injection.text == text
    assert not injection.injected
    assert not injection.warnings


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", "document 1, line 1: without apiVersion and kind this is no manifest"),
        ("- a\n", "document 1, line 1: a manifest is a mapping"),
        (
            "apiVersion: v1\nkind: List\nitems: [{kind: Pod}]\n",
            "line 1, item 1: without apiVersion",
        ),
        (
            "# x\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
            "document 1, line 3: Deployment/a: there is no spec.template.spec",
        ),
        (
            "apiVersion: batch/v1\nkind: CronJob\nmetadata: {generateName: a-}\n",
            "CronJob/a-: there is no spec.jobTemplate.spec.template.spec",
        ),
        ("apiVersion: v1\nkind: Pod\nspec: {containers: []}\n", "Pod: the pod has no containers"),
        ("apiVersion: v1\nkind: Pod\nspec: [1]\n", "Pod: spec must be a mapping"),
        (pod("volumes: {a: b}"), "Pod/shell: volumes must be a list"),
        (container("env: {A: b}"), "env must be a list"),
        (pod("volumes: [{name: pointsman-state}]"), "volumes has a 'pointsman-state' that was not"),
        (pod("initContainers: [{name: pointsman}]"), "initContainers has a 'pointsman' that was"),
        (
            pod().replace("name: shell,", "name: pointsman,"),
            "containers has a 'pointsman' that was not put there by this command",
        ),
        (pod("securityContext: {runAsUser: 1337}"), "the pod has runAsUser: 1337"),
        (pod("securityContext: {runAsUser: 0x539}"), "the pod has runAsUser: 1337"),
        (
            container("securityContext: {runAsGroup: 1337}"),
            "container 'shell' has runAsGroup: 1337, the proxy's own group",
        ),
        (pod("securityContext: {runAsGroup: 1337}"), "the pod has runAsGroup: 1337"),
        (pod("securityContext: {fsGroup: 1337}"), "the pod has fsGroup: 1337"),
        (pod("securityContext: {fsGroup: 02471}"), "the pod has fsGroup: 1337"),
        (
            pod("securityContext: {supplementalGroups: [2000, 1337]}"),
            "the pod has supplementalGroups: 1337, the proxy's own group",
        ),
        (
            pod("initContainers: [{name: first, securityContext: {runAsUser: 1337}}]"),
            "container 'first' has runAsUser: 1337",
        ),
        (
            container("ports: [{containerPort: 15021}]"),
            "container 'shell' listens on port 15021, which the sidecar needs",
        ),
        (
            container("volumeMounts: [{name: x, mountPath: /pointsman/trust/}]"),
            "container 'shell' mounts something of its own at /pointsman/trust/, which is at,",
        ),
        *(
            (container(f"volumeMounts: [{{name: x, mountPath: {path}}}]"), f"of its own at {path},")
            for path in (
                *("/", "/pointsman", "//pointsman/trust", "/pointsman/./trust/x", "pointsman"),
                "/var/../pointsman",
            )
        ),
        (pod(annotations=f"{SWITCH}: maybe"), f"annotation {SWITCH} is enabled or disabled"),
        (
            pod(annotations="pointsman.io/exclude-port: '1'"),
            'annotation pointsman.io/exclude-port is unknown; did you mean "exclude-ports"?',
        ),
        (
            pod(annotations="pointsman.io/exclude-ports: ssh"),
            "annotation pointsman.io/exclude-ports: 'ssh' is not a port",
        ),
        (
            pod(annotations="pointsman.io/exclude-ports: 90-80"),
            "'90-80' is not a port, nor a range",
        ),
        (
            pod(annotations="pointsman.io/exclude-cidrs: 10.0.0.1/8"),
            "pointsman.io/exclude-cidrs: '10.0.0.1/8' is not a range of addresses",
        ),
        (pod(annotations="pointsman.io/workers: many"), "annotation pointsman.io/workers: "),
        (pod(annotations="pointsman.io/set: x"), "pointsman.io/set: 'x' is not name=value"),
        (pod(annotations="pointsman.io/image: a b"), "'a b' is not the name of an image"),
        (pod(annotations="pointsman.io/memory-limit: 1GB"), "'1GB' is not a quantity"),
        (pod(annotations="pointsman.io/rules: /etc"), "'/etc' is not kubernetes: or"),
        (pod(annotations="pointsman.io/include-ports: ','"), "include-ports: it names no port"),
        (pod(annotations="pointsman.io/cpu-request: '2'"), "cpu-request: 2 is more than cpu-limit"),
    ],
)
def test_what_can_not_be_injected_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as raised:
        injected(text)
    assert message in str(raised.value)


@pytest.mark.parametrize("volume", sorted(sidecar.VOLUMES))
def test_a_claim_with_the_name_of_a_volume_of_ours_is_refused(volume: str) -> None:
    """Kubernetes takes a claim in place of the pod's volume, injected before or not."""
    for text in (case("statefulset"), injected(case("statefulset")).text):
        value = document(text)
        value["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] = volume
        with pytest.raises(
            ManifestError, match=rf"StatefulSet/index: volumeClaimTemplates has a '{volume}', .*"
        ):
            injected(yaml.safe_dump(value))


@pytest.mark.parametrize("volume", sorted(sidecar.VOLUMES))
def test_no_application_mounts_a_volume_of_ours(volume: str) -> None:
    """That of the state has the authority's key, and that of the keys has the providers'."""
    mounts = f"volumeMounts: [{{name: {volume}, mountPath: /stolen}}]"
    with pytest.raises(ManifestError, match=f"'shell' mounts '{volume}', a volume of the sidecar"):
        injected(container(mounts))


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (pod("shareProcessNamespace: true"), "shareProcessNamespace lets its containers see"),
        (pod("hostPID: true"), "hostPID lets its containers see"),
        (container("securityContext: {privileged: true}"), "is privileged and can undo"),
        (
            container("securityContext: {capabilities: {add: [NET_ADMIN, CHOWN]}}"),
            "container 'shell' has NET_ADMIN: it can undo the redirection,",
        ),
        (
            container("securityContext: {capabilities: {add: [net_raw, CAP_BPF, cap_setuid]}}"),
            "container 'shell' has BPF, NET_RAW, SETUID: it can undo the redirection,",
        ),
        *(
            (container(f"securityContext: {{capabilities: {{add: [{written}]}}}}"), f" has {name}:")
            for name, written in (
                ("ALL", "all"),
                ("NET_ADMIN", "CAP_NET_ADMIN"),
                ("SETGID", '"SETGID"'),
                ("SYS_ADMIN", "SYS_ADMIN"),
                ("SYS_MODULE", "Sys_Module"),
                ("SYS_PTRACE", "cap_sys_ptrace"),
            )
        ),
        (
            pod("automountServiceAccountToken: false", "pointsman.io/rules: 'kubernetes:'"),
            "automountServiceAccountToken is off",
        ),
    ],
)
def test_what_may_not_be_as_wanted_is_told(text: str, warning: str) -> None:
    injection = injected(text)
    assert injection.injected
    (told,) = injection.warnings
    assert told.startswith("document 1, line 1: Pod/shell: ")
    assert warning in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"set": ["mode=regular"]}, "mode can't be set"),
        ({"set": ["confdir=/x"]}, "confdir can't be set"),
        ({"set": ["listen_port=9"]}, "use proxy-port"),
        ({"set": ["llm_rules=/x"]}, "use rules-configmap"),
        ({"set": ["llm_admin=off"]}, "llm_admin can't be set"),
        ({"set": ["llm_health=off"]}, "the pod's probes ask for port 15021"),
        ({"set": ["llm_drain_timeout=500s"]}, "it follows grace-period"),
        ({"set": ["llm_unknwon=deny"]}, 'did you mean "llm_unknown"'),
        ({"proxy_port": 15020}, "use another"),
        ({"proxy_port": 15021}, "use another"),
        ({"set": ["llm_health=127.0.0.1:15021"]}, "at the pod's own address"),
        ({"set": ["llm_health=unix:/x:15021"]}, "at the pod's own address"),
        ({"set": ["llm_health=:15022"]}, "ask for port 15021"),
        ({"exclude_ports": "80,443"}, "nothing would be redirected"),
        ({"exclude_ports": "80-443"}, "nothing would be redirected"),
        ({"exclude_ports": "1-100,101-65535"}, "nothing would be redirected"),
        ({"include_ports": "90-95", "exclude_ports": "80-100"}, "nothing would be redirected"),
        ({"rules": "kubernetes:a.b"}, "'kubernetes:a.b' is not kubernetes: or kubernetes:NAMESPA"),
        ({"rules": f"kubernetes:{'a' * 64}"}, "is not kubernetes: or kubernetes:NAMESPACE"),
        ({"cpu_request": "2"}, "cpu-request: 2 is more than cpu-limit, 1; raise that one too"),
        ({"cpu_request": "1001m", "cpu_limit": "1"}, "cpu-request: 1001m is more than cpu-limit"),
        ({"memory_request": "1Gi"}, "memory-request: 1Gi is more than memory-limit, 512Mi"),
        ({"memory_request": "600M", "memory_limit": "512Mi"}, "memory-request: 600M is more"),
        ({"memory_request": "128m"}, "memory-request: 128m is a part of a byte; write such as"),
        ({"memory_limit": "500m"}, "can't start"),
        ({"memory_limit": "1Mi"}, "can't start"),
        ({"memory_limit": "100000k"}, "can't start"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        Settings.of({"image": "pointsman:1", **options})


@pytest.mark.parametrize(
    "options",
    [
        {"cpu_request": "2", "workers": 2},
        {"cpu_request": "1", "cpu_limit": "1000m"},
        {"memory_request": "512Mi", "memory_limit": "0.5Gi"},
        {"memory_request": "0.5Gi"},
        {"include_ports": "80,8000-8010", "exclude_ports": "80,8000-8009"},
        {"set": ["llm_health=0.0.0.0:15021"]},
        {"rules": "kubernetes:shop-1"},
    ],
)
def test_what_can_work_is_taken(options: dict[str, Any]) -> None:
    assert Settings.of({"image": "pointsman:1", **options})


def test_every_option_of_the_addon_can_be_set_or_is_said_elsewhere() -> None:
    class Loader:
        names: ClassVar[set[str]] = set()

        def add_option(self, name: str, *_: Any) -> None:
            self.names.add(name)

    loader: Any = Loader()
    declare(loader)
    assert loader.names == LLM_OPTIONS | {name for name in _TAKEN if name.startswith("llm_")}


def test_a_list_of_one_kind_is_opened_too() -> None:
    inner = yaml.safe_load(case("deployment"))
    text = yaml.safe_dump({"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [inner]})
    assert len(injected(text).injected) == 1


def test_a_variable_that_leads_beside_our_files_stays_the_users() -> None:
    own_pod = yaml.safe_load(case("pod"))
    own = {"name": "SSL_CERT_FILE", "value": "/pointsman/trust/mine.pem"}
    own_pod["spec"]["containers"][0]["env"] = [own]
    once = injected(yaml.safe_dump(own_pod)).text
    assert injected(once).text == once
    assert "trust/mine.pem" in once


def test_a_port_of_another_protocol_does_not_clash() -> None:
    listening = yaml.safe_load(case("pod"))
    ports = [{"containerPort": 15021, "protocol": "UDP"}]
    listening["spec"]["containers"][0]["ports"] = ports
    assert injected(yaml.safe_dump(listening)).injected
