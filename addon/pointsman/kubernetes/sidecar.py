"""What is put into a pod: three containers, their volumes, and what applications get of them.

1. `pointsman-ca` makes the certificate authority, or takes it from a Secret, and writes what
   applications are to trust.
2. `pointsman-redirect` sends the pod's connections to the proxy. It alone has privileges.
3. `pointsman`, the proxy, is a native sidecar (an init container with `restartPolicy: Always`): it
   is ready before the application's first container starts, and is stopped after its last.

The private key is in a volume that only 1 and 3 mount.
"""

from typing import Any

from pointsman.config.credentials import KEY_FOLDER
from pointsman.kubernetes.settings import PROXY_PORT, Settings

UID = 1337
HEALTH_PORT = 15021
ADMIN_PORT = 15020

CA, REDIRECT, PROXY = "pointsman-ca", "pointsman-redirect", "pointsman"
CONTAINERS = (CA, REDIRECT, PROXY)

_STATE = "/var/lib/pointsman"
_RULES = "/etc/pointsman/rules"
_KEYS = str(KEY_FOLDER)
_CA_SECRET = "/etc/pointsman/ca"  # noqa: S105 (a directory)
_POD_INFO = "/etc/pointsman/podinfo"
_REDIRECT_SCRIPT = "/opt/pointsman/scripts/redirect"

# At the root, where nothing else mounts. Below another mount of a container ours may have no place:
# node agents have /var/run, read-only, and it is a link in many images.
TRUST = "/pointsman/trust"
TRUST_VOLUME = "pointsman-trust"
VOLUMES = frozenset(
    {
        TRUST_VOLUME,
        "pointsman-state",
        "pointsman-tmp",
        "pointsman-podinfo",
        "pointsman-rules",
        "pointsman-keys",
        "pointsman-ca-secret",
    }
)


def trust_variables(folder: str) -> dict[str, str]:
    """Return the environment of an application that has what it is to trust in a folder."""
    bundle = f"{folder}/ca-bundle.pem"
    # Node.js adds to its own roots; the others take the file in place of theirs.
    return {
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "CURL_CA_BUNDLE": bundle,
        "NODE_EXTRA_CA_CERTS": f"{folder}/pointsman-ca.pem",
        "GIT_SSL_CAINFO": bundle,
    }


TRUST_VARIABLES = trust_variables(TRUST)

# What the proxy may take of the grace period for itself: it is told to stop when the applications
# have ended, and has to be done before the pod is killed.
_LEFT_TO_STOP = 10
_READ_BY_ALL = 0o444


def containers(settings: Settings, *, workload: str | None, grace: int) -> list[dict[str, Any]]:
    """Return the containers, in the order in which they are to start.

    Args:
        settings: of the pod.
        workload: the name by which logs and metrics know it; None: the pod's.
        grace: its terminationGracePeriodSeconds.
    """
    return [_ca(settings), _redirect(settings), _proxy(settings, workload, grace)]


def volumes(settings: Settings) -> list[dict[str, Any]]:
    """Return the volumes that they need."""
    made: list[dict[str, Any]] = [
        # In memory: the private key never lies on a disk of the node.
        {"name": "pointsman-state", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {"name": TRUST_VOLUME, "emptyDir": {"sizeLimit": "16Mi"}},
        {"name": "pointsman-tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        {
            "name": "pointsman-podinfo",
            "downwardAPI": {
                "items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
            },
        },
    ]
    if settings.rules is None:
        made.append({"name": "pointsman-rules", "configMap": {"name": settings.rules_configmap}})
    if settings.keys_secret:
        # Optional: key files that are not there make their providers unavailable, not the pod.
        made.append(_secret("pointsman-keys", settings.keys_secret, optional=True))
    if settings.ca_secret:
        made.append(_secret("pointsman-ca-secret", settings.ca_secret, optional=False))
    return made


def _secret(volume: str, name: str, *, optional: bool) -> dict[str, Any]:
    # Kubernetes makes the files root's, and the proxy is not root; no other container mounts them.
    source: dict[str, Any] = {"secretName": name, "defaultMode": _READ_BY_ALL}
    return {"name": volume, "secret": source | ({"optional": True} if optional else {})}


def trust_mount() -> dict[str, Any]:
    """Return the volume mount of an application container."""
    return {"name": TRUST_VOLUME, "mountPath": TRUST, "readOnly": True}


def _ca(settings: Settings) -> dict[str, Any]:
    init = f"pointsman ca init --dir {_STATE}"
    mounts = [_mount("pointsman-state", _STATE), _mount(TRUST_VOLUME, TRUST), _TMP]
    if settings.ca_secret:
        init += f" --secret {_CA_SECRET}"
        mounts.append(_mount("pointsman-ca-secret", _CA_SECRET, read_only=True))
    return {
        "name": CA,
        "image": settings.image,
        "command": [
            "sh",
            "-c",
            f"{init} && exec pointsman ca bundle --dir {_STATE} --out {TRUST}",
        ],
        "securityContext": _UNPRIVILEGED,
        "resources": _SMALL,
        "volumeMounts": mounts,
    }


def _redirect(settings: Settings) -> dict[str, Any]:
    # By its user alone: a program that is setgid has a volume's group, which a pod may choose.
    arguments = ["apply", "-p", str(settings.proxy_port), "-u", str(UID), "-g", "none"]
    for flag, items in (
        ("-q", settings.include_ports),
        ("-o", settings.exclude_ports),
        ("-i", settings.include_cidrs),
        ("-x", settings.exclude_cidrs),
    ):
        if items:
            arguments += [flag, ",".join(items)]
    return {
        "name": REDIRECT,
        "image": settings.image,
        "command": [_REDIRECT_SCRIPT],
        "args": arguments,
        # iptables wants a lock file, and the root file system is read-only.
        "env": [{"name": "XTABLES_LOCKFILE", "value": "/tmp/xtables.lock"}],  # noqa: S108
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": _SMALL,
        "volumeMounts": [_TMP],
    }


def _proxy(settings: Settings, workload: str | None, grace: int) -> dict[str, Any]:
    mounts = [
        _mount("pointsman-state", _STATE),
        _TMP,
        _mount("pointsman-podinfo", _POD_INFO, read_only=True),
    ]
    if settings.rules is None:
        mounts.append(_mount("pointsman-rules", _RULES, read_only=True))
    container: dict[str, Any] = {
        "name": PROXY,
        "image": settings.image,
        "restartPolicy": "Always",
        "args": _arguments(settings, grace),
        "env": [
            _field("POD_NAME", "metadata.name"),
            _field("POD_NAMESPACE", "metadata.namespace"),
            {"name": "WORKLOAD_NAME", "value": workload}
            if workload
            else _field("WORKLOAD_NAME", "metadata.name"),
        ],
    }
    if settings.keys_secret:
        container["envFrom"] = [{"secretRef": {"name": settings.keys_secret, "optional": True}}]
        mounts.append(_mount("pointsman-keys", _KEYS, read_only=True))
    return container | {
        "ports": [{"name": "pointsman-http", "containerPort": HEALTH_PORT}],
        # The application waits for this one: a key that is missing must not keep it from starting.
        "startupProbe": _probe("/readyz?exclude=keys", period=1, failures=120),
        "readinessProbe": _probe("/readyz", period=5, failures=3),
        "livenessProbe": _probe("/healthz", period=10, failures=6),
        # Run when the pod's termination begins, while the application still finishes its work.
        "lifecycle": {"preStop": {"exec": {"command": ["pointsman", "drain", "--soft"]}}},
        "securityContext": _UNPRIVILEGED,
        "resources": {
            "requests": {"cpu": settings.cpu_request, "memory": settings.memory_request},
            "limits": {
                "cpu": settings.cpu_at_most,
                "memory": settings.memory_limit,
            },
        },
        "volumeMounts": mounts,
    }


def _arguments(settings: Settings, grace: int) -> list[str]:
    options = {
        "llm_admin": f"127.0.0.1:{ADMIN_PORT}",
        "llm_health": f":{HEALTH_PORT}",  # IPv4 and IPv6
        "llm_labels": f"{_POD_INFO}/labels",
        "llm_drain_timeout": f"{max(grace - _LEFT_TO_STOP, 1)}s",
    }
    if settings.passthrough_hosts:
        options["llm_passthrough"] = ",".join(settings.passthrough_hosts)
    # mitmproxy refuses an option that is given twice: the user's takes the place of ours.
    own = {setting.partition("=")[0] for setting in settings.set}
    given = [f"{name}={value}" for name, value in options.items() if name not in own]
    arguments = ["run", "--sidecar", "--rules", settings.rules or _RULES]
    if settings.workers > 1:
        arguments += ["--workers", str(settings.workers)]
    if settings.proxy_port != PROXY_PORT:
        arguments += ["--port", str(settings.proxy_port)]
    for setting in [*given, *settings.set]:
        arguments += ["--set", setting]
    return arguments


def _mount(volume: str, path: str, *, read_only: bool = False) -> dict[str, Any]:
    mount: dict[str, Any] = {"name": volume, "mountPath": path}
    return mount | ({"readOnly": True} if read_only else {})


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": HEALTH_PORT},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


_TMP = _mount("pointsman-tmp", "/tmp")  # noqa: S108
_UNPRIVILEGED: dict[str, Any] = {
    "runAsUser": UID,
    "runAsGroup": UID,
    "runAsNonRoot": True,
    "privileged": False,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
_SMALL: dict[str, Any] = {
    "requests": {"cpu": "10m", "memory": "64Mi"},
    "limits": {"cpu": "1", "memory": "256Mi"},
}
