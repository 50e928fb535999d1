"""Manifests in, manifests with the sidecar out.

What is looked at: the pod template of a workload, in documents and in `kind: List`. What is there
from an earlier injection is taken out first, so that injecting twice is injecting once, and a newer
version takes an older one's place. The annotation `pointsman.io/status` tells that there was one.
"""

import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

from pointsman.kubernetes import sidecar
from pointsman.kubernetes.manifests import (
    Document,
    ManifestError,
    Value,
    at,
    is_null,
    mapping,
    mappings_at,
    number_at,
    read,
    sequence,
    text_at,
    true_at,
    write,
)
from pointsman.kubernetes.settings import STATUS, SWITCH, Settings, SettingsError

_POD_IN_TEMPLATE = ("spec", "template")
_POD: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "Pod"): (),
    ("apps", "Deployment"): _POD_IN_TEMPLATE,
    ("apps", "StatefulSet"): _POD_IN_TEMPLATE,
    ("apps", "DaemonSet"): _POD_IN_TEMPLATE,
    ("apps", "ReplicaSet"): _POD_IN_TEMPLATE,
    ("batch", "Job"): _POD_IN_TEMPLATE,
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
}
# What containers are called in other kinds: by everyone, by Tekton; a single one, by Argo.
_CONTAINER_LISTS = ("containers", "steps")
_ONE_CONTAINER = ("container", "script")
_DEEPEST = 40
_SWITCHED = {"enabled": True, "true": True, "disabled": False, "false": False}
_GRACE = "terminationGracePeriodSeconds"
_GRACE_BY_DEFAULT = 30
# With these a container can undo the redirection, send past it (a packet socket, NET_RAW, meets no
# rule), become the proxy's user or group, or look into the proxy.
_POWERS = {
    *("ALL", "BPF", "NET_ADMIN", "NET_RAW", "SETGID", "SETUID"),
    *("SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE"),
}


@dataclass(slots=True)
class Injection:
    """What became of a text.

    Attributes:
        text: the manifests.
        injected: the labels of the workloads that have the sidecar.
        notes: what someone should know about those that were left alone on purpose.
        warnings: what may not be as wanted.
    """

    text: str
    injected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def inject(text: str, settings: Settings, *, version: str) -> Injection:
    """Return the manifests of a text with the sidecar in each pod.

    Args:
        text: YAML documents or JSON.
        settings: of pods without annotations of their own.
        version: of Pointsman, for the status annotation.

    Raises:
        ManifestError: something can't be read or injected: which document, why, and the mend.
    """
    documents = read(text)
    injection = Injection(text)
    for document in documents:
        if document.value is not None:
            _inject_document(document, settings, version, injection)
    injection.text = write(text, documents)
    return injection


def _inject_document(
    document: Document, settings: Settings, version: str, injection: Injection
) -> None:
    where = f"document {document.number}, line {document.line}"
    for place, resource in _resources(document.value, where):
        workload = _Workload(place, resource)
        try:
            if workload.path is None:
                _pass_on(workload, injection)
            else:
                document.changed |= _inject_workload(workload, settings, version, injection)
        except (ManifestError, SettingsError) as error:
            raise ManifestError(f"{workload}: {error}") from None


def _resources(value: Value, where: str) -> list[tuple[str, dict[str, Value]]]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: a manifest is a mapping with apiVersion and kind")
    missing = [name for name in ("apiVersion", "kind") if text_at(value, name) is None]
    if missing:
        raise ManifestError(f"{where}: without {' and '.join(missing)} this is no manifest")
    items = at(value, "items")
    # A DeploymentList is one too, wherever it comes from.
    if not ((text_at(value, "kind") or "").endswith("List") and isinstance(items, list)):
        return [(where, value)]
    return [
        found
        for index, item in enumerate(items)
        for found in _resources(item, f"{where}, item {index + 1}")
    ]


class _Workload:
    """A resource, and where its pod stands in it. `path` is None when it has none."""

    def __init__(self, place: str, resource: dict[str, Value]) -> None:
        self.place = place
        self.resource = resource
        self.kind = text_at(resource, "kind") or ""
        self.name = text_at(resource, "metadata", "name")
        group = (text_at(resource, "apiVersion") or "").rpartition("/")[0]
        self.path = _POD.get((group, self.kind))

    def __str__(self) -> str:
        name = self.name or text_at(self.resource, "metadata", "generateName")
        return f"{self.place}: {self.kind}{f'/{name}' if name else ''}"

    def read(self, *path: str | int) -> Value:
        """Return what stands at a path in the pod, or None."""
        return at(self.resource, *(self.path or ()), *path)

    def annotations(self) -> dict[str, str]:
        """Return the annotations; the pod's win over the object's."""
        found: dict[str, str] = {}
        for where in (at(self.resource, "metadata"), self.read("metadata")):
            named = at(where, "annotations")
            for name in named if isinstance(named, dict) else ():
                if (text := text_at(named, name)) is not None:
                    found[str(name)] = text
        return found

    def pod(self) -> dict[str, Value]:
        """Return the pod, to be changed. Raises ManifestError."""
        pod = self.resource
        for part in self.path or ():
            pod = mapping(pod, part)
        return pod


def _inject_workload(
    workload: _Workload, settings: Settings, version: str, injection: Injection
) -> bool:
    annotations = workload.annotations()
    before = annotations.get(STATUS)
    if not _wanted(annotations):
        note = f"{workload}: left as it is ({SWITCH}: {annotations[SWITCH]})"
        injection.notes.append(f"{note}, with the sidecar it has" if before else note)
        return False
    if reason := _unfit(workload):
        injection.warnings.append(f"{workload}: not injected: {reason}")
        return False
    if workload.read("spec") is None:
        raise ManifestError(f"there is no {'.'.join([*(workload.path or ()), 'spec'])}")
    settings = settings.overridden(annotations)
    pod = workload.pod()
    spec = mapping(pod, "spec")
    if before is not None:
        injection.warnings += [f"{workload}: {lost}" for lost in _lost(before, settings)]
        _take_out(spec, before)
    _check_claims(workload)
    _check(spec, settings)
    injection.warnings += [f"{workload}: {warning}" for warning in _warnings(spec, settings)]
    grace, ours = _grace(spec, settings)
    if grace < settings.grace_period:
        injection.warnings.append(
            f"{workload}: {_GRACE}: {grace} is kept; answers that stream for longer are cut off"
        )
    _put_in(spec, settings, workload.name, grace)
    status = {
        "version": version,
        "gracePeriod": "set" if ours else "kept",
        "options": settings.given,
    }
    mapping(mapping(pod, "metadata"), "annotations")[STATUS] = json.dumps(status)
    injection.injected.append(str(workload))
    return True


def _wanted(annotations: dict[str, str]) -> bool:
    switch = annotations.get(SWITCH, "enabled")
    if switch not in _SWITCHED:
        raise ManifestError(f"annotation {SWITCH} is enabled or disabled, not {switch!r}")
    return _SWITCHED[switch]


def _unfit(workload: _Workload) -> str | None:
    """Say why a pod can't have the sidecar, or None."""
    spec = workload.read("spec")
    if true_at(spec, "hostNetwork"):
        return (
            "it uses the network of its node (hostNetwork), whose traffic would be redirected;"
            f" annotate it with {SWITCH}: disabled"
        )
    system = text_at(spec, "os", "name") or text_at(spec, "nodeSelector", "kubernetes.io/os")
    if system not in {None, "linux"}:
        return f"it runs on {system}"
    return None


def _take_out(spec: dict[str, Value], status: str) -> None:
    """Remove an earlier injection; lists that become empty stay, so that the next fills them."""
    _drop(spec, "initContainers", sidecar.CONTAINERS)
    _drop(spec, "volumes", sidecar.VOLUMES)
    for container in _applications(spec):
        ours = sidecar.trust_variables(_trusted_in(container))
        _drop(container, "volumeMounts", {sidecar.TRUST_VOLUME})
        if isinstance(env := container.get("env"), list):
            container["env"] = [entry for entry in env if not _is_one_of(ours, entry)]
    if _grace_was_ours(status) and _GRACE in spec:
        spec[_GRACE] = None


def _grace_was_ours(status: str) -> bool:
    return _known(status).get("gracePeriod") == "set"


def _lost(status: str, settings: Settings) -> list[str]:
    """Tell which options of an earlier injection are lost, as they were not given again."""
    before, lost = _known(status).get("options"), []
    for name, value in before.items() if isinstance(before, dict) else ():
        if name == "image":  # it always has one; another tag is an upgrade
            kept = _repository(str(value)) == _repository(settings.image)
        else:
            kept = name in settings.given
        if not kept:
            told = ",".join(map(str, value)) if isinstance(value, list) else value
            lost.append(
                f"the sidecar that it has was injected with --{name} {told}, which is not given now"
                " and is lost; give it again"
            )
    return lost


def _repository(image: str) -> str:
    """Return an image's name without its tag and digest."""
    path, slash, last = image.partition("@")[0].rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}"


def _known(status: str) -> dict[str, Any]:
    try:
        known = json.loads(status)
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _pass_on(workload: _Workload, injection: Injection) -> None:
    """Warn of pods in what this command does not know: they would go past the proxy."""
    if not _has_container(workload.resource, _DEEPEST):
        return
    annotations = workload.annotations()
    if not _wanted(annotations):
        injection.notes.append(f"{workload}: left as it is ({SWITCH}: {annotations[SWITCH]})")
        return
    known = ", ".join(kind for _, kind in _POD)
    injection.warnings.append(
        f"{workload}: not injected: it has pods, and its kind is none of {known}; they go past the"
        f" proxy; if they may, annotate it with {SWITCH}: disabled"
    )


def _has_container(value: Value, depth: int) -> bool:
    """Tell whether there is a container in a value, at whatever place."""
    if depth == 0 or not isinstance(value, dict | list):
        return False
    if isinstance(value, list):
        return any(_has_container(item, depth - 1) for item in value)
    found = [each for name in _CONTAINER_LISTS for each in mappings_at(value, name)]
    found += [each for name in _ONE_CONTAINER if isinstance(each := value.get(name), dict)]
    return any(text_at(each, "image") is not None for each in found) or any(
        _has_container(child, depth - 1) for child in value.values()
    )


def _drop(parent: dict[str, Value], name: str, names: Any) -> None:
    if isinstance(items := parent.get(name), list):
        parent[name] = [item for item in items if text_at(item, "name") not in names]


def _trusted_in(container: dict[str, Value]) -> str:
    """Return where an earlier injection has the trusted files; other versions had another place."""
    for mount in mappings_at(container, "volumeMounts"):
        if text_at(mount, "name") == sidecar.TRUST_VOLUME:
            return text_at(mount, "mountPath") or sidecar.TRUST
    return sidecar.TRUST


def _is_one_of(variables: dict[str, str], entry: Value) -> bool:
    name, value = text_at(entry, "name"), text_at(entry, "value")
    return value is not None and variables.get(name or "") == value


def _applications(spec: dict[str, Value]) -> list[dict[str, Value]]:
    """Return every container whose traffic is redirected and that has to trust the proxy."""
    return mappings_at(spec, "initContainers") + mappings_at(spec, "containers")


def _check_claims(workload: _Workload) -> None:
    """Raise ManifestError for a claim of a StatefulSet that would take the place of our volume."""
    for claim in mappings_at(workload.resource, "spec", "volumeClaimTemplates"):
        if (clash := text_at(claim, "metadata", "name")) in sidecar.VOLUMES:
            raise ManifestError(
                f"volumeClaimTemplates has a {clash!r}, which would take the place of the sidecar's"
                " volume of that name; rename it"
            )


def _check(spec: dict[str, Value], settings: Settings) -> None:
    """Raise ManifestError for a pod in which the sidecar would not work, or could be bypassed."""
    if not mappings_at(spec, "containers"):
        raise ManifestError("the pod has no containers")
    for name, taken in (
        ("initContainers", sidecar.CONTAINERS),
        ("containers", sidecar.CONTAINERS),
        ("volumes", sidecar.VOLUMES),
    ):
        for item in mappings_at(spec, name):
            if (clash := text_at(item, "name")) in taken:
                raise ManifestError(
                    f"{name} has a {clash!r} that was not put there by this command (there is no"
                    f" annotation {STATUS}); rename it"
                )
    _check_user(spec, "the pod")
    ports = {sidecar.ADMIN_PORT, sidecar.HEALTH_PORT, settings.proxy_port}
    for container in _applications(spec):
        called = f"container {text_at(container, 'name')!r}"
        _check_user(container, called)
        for port in _tcp_ports(container):
            if (number := number_at(port, "containerPort")) in ports:
                raise ManifestError(
                    f"{called} listens on port {number}, which the sidecar needs; change the"
                    " container's, or --proxy-port if it is the proxy's"
                )
        for mount in mappings_at(container, "volumeMounts"):
            _check_mount(mount, called)


def _check_mount(mount: dict[str, Value], called: str) -> None:
    path = text_at(mount, "mountPath") or ""
    if _meets_ours(path):
        raise ManifestError(
            f"{called} mounts something of its own at {path}, which is at, above or below"
            f" {sidecar.TRUST}, where the certificates to trust are; mount it elsewhere"
        )
    if (volume := text_at(mount, "name")) in sidecar.VOLUMES:
        raise ManifestError(
            f"{called} mounts {volume!r}, a volume of the sidecar, at {path}; only the sidecar may"
            " have what is in it"
        )


def _meets_ours(path: str) -> bool:
    """Tell whether of a mount and ours one would hide the other, or keep it from being mounted."""
    ours = PurePosixPath(sidecar.TRUST)
    # A path without a slash counts from the root in Kubernetes.
    theirs = PurePosixPath(normpath(f"/{path.lstrip('/')}"))
    return bool(path) and (ours.is_relative_to(theirs) or theirs.is_relative_to(ours))


def _tcp_ports(container: dict[str, Value]) -> list[dict[str, Value]]:
    ports = mappings_at(container, "ports")
    return [port for port in ports if text_at(port, "protocol") in {None, "TCP"}]


def _check_user(parent: dict[str, Value], called: str) -> None:
    context = at(parent, "securityContext")
    if number_at(context, "runAsUser") == sidecar.UID:
        raise ManifestError(
            f"{called} has runAsUser: {sidecar.UID}, by which the proxy's own traffic is known:"
            " its traffic would bypass the proxy; give it another"
        )
    further = at(context, "supplementalGroups")
    places: list[tuple[str | int, ...]] = [("runAsGroup",), ("fsGroup",)]
    if isinstance(further, list):
        places += [("supplementalGroups", index) for index in range(len(further))]
    for place in places:
        if number_at(context, *place) == sidecar.UID:
            raise ManifestError(
                f"{called} has {place[0]}: {sidecar.UID}, the proxy's own group, which a"
                " redirection may leave alone; give it another"
            )


def _warnings(spec: dict[str, Value], settings: Settings) -> list[str]:
    warnings = [
        f"{name} lets its containers see the proxy's process: one with the capability SYS_PTRACE"
        " can read the provider keys"
        for name in ("shareProcessNamespace", "hostPID")
        if true_at(spec, name)
    ]
    for container in _applications(spec):
        called = f"container {text_at(container, 'name')!r}"
        if true_at(container, "securityContext", "privileged"):
            warnings.append(f"{called} is privileged and can undo the redirection")
        elif powers := sorted(_POWERS & _added(container)):
            warnings.append(
                f"{called} has {', '.join(powers)}: it can undo the redirection, go past it or pass"
                " for the proxy"
            )
        warnings += [
            f"{called} sets {name} itself: it has to trust the certificate in {sidecar.TRUST} on"
            " its own account"
            for entry in mappings_at(container, "env")
            if (name := text_at(entry, "name")) in sidecar.TRUST_VARIABLES
        ]
    token = at(spec, "automountServiceAccountToken")
    if settings.rules and token is not None and not true_at(token):
        warnings.append(
            f"automountServiceAccountToken is off, and rules from {settings.rules} need the token"
        )
    return warnings


def _added(container: dict[str, Value]) -> set[str]:
    """Return the capabilities that it adds, by their plain names: runtimes take several forms."""
    added = at(container, "securityContext", "capabilities", "add")
    written = map(text_at, added) if isinstance(added, list) else ()
    return {name.upper().removeprefix("CAP_") for name in written if name}


def _grace(spec: dict[str, Value], settings: Settings) -> tuple[int, bool]:
    """Return the grace period in seconds, and whether it is ours to set."""
    if is_null(spec.get(_GRACE)):
        return settings.grace_period, True
    given = number_at(spec, _GRACE)
    return _GRACE_BY_DEFAULT if given is None else given, False


def _put_in(spec: dict[str, Value], settings: Settings, name: str | None, grace: int) -> None:
    for container in _applications(spec):
        sequence(container, "volumeMounts").append(sidecar.trust_mount())
        env = sequence(container, "env")
        own = {text_at(entry, "name") for entry in env}
        for variable, path in sidecar.TRUST_VARIABLES.items():
            if variable not in own:
                env.append({"name": variable, "value": path})
    sequence(spec, "initContainers")[:0] = sidecar.containers(settings, workload=name, grace=grace)
    sequence(spec, "volumes").extend(sidecar.volumes(settings))
    if is_null(spec.get(_GRACE)):
        spec[_GRACE] = grace
