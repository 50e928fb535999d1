"""A pod's containers from its manifest, as a kubelet starts them, but without images.

Each has a root file system of its own, which is read-only where the manifest says so, the pod's
network, the volumes that it mounts, its user, and no capabilities but those it is given. What an
image would hold is taken from this machine: the programs, and Pointsman as in deploy/Dockerfile.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import REPOSITORY
from tests.e2e.namespaces import Namespaces

# What programs need of a root file system; Python may lie in root's home.
_FROM_HERE = ("bin", "sbin", "lib", "lib64", "usr", "root", "dev", "proc")
_ETC = ("alternatives", "group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd", "ssl")
_IMAGE = {
    "/opt/pointsman/venv": Path(sys.prefix),
    "/opt/pointsman/addon": REPOSITORY / "addon",
    "/opt/pointsman/scripts": REPOSITORY / "scripts",
}
_ENVIRONMENT = {
    "PATH": "/opt/pointsman/bin:/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": "/opt/pointsman/addon",
    "PYTHONOPTIMIZE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_START = """\
root=$1 read_only=$2 binds=$3
shift 3
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir etc
for name in $FROM_HERE; do
    if [ -h "/$name" ]; then
        cp -P "/$name" "$name"
    elif [ -d "/$name" ]; then
        mkdir "$name"
        mount --rbind "/$name" "$name"
    fi
done
for name in $ETC; do
    if [ -e "/etc/$name" ]; then cp -a "/etc/$name" "etc/$name"; fi
done
mkdir -p opt/pointsman/bin
printf '%s\\n' '#!/bin/sh' \\
    "exec /opt/pointsman/venv/bin/python -c 'from pointsman.cli import main; main()' \\"\\$@\\"" \\
    >opt/pointsman/bin/pointsman
chmod 755 opt/pointsman/bin/pointsman
printf '%s' "$binds" | while IFS='|' read -r source target mode; do
    mkdir -p ".$target"
    mount --bind "$source" ".$target"
    if [ "$mode" = ro ]; then mount -o remount,bind,ro ".$target"; fi
done
if [ "$read_only" = true ]; then mount -o remount,ro "$root"; fi
exec chroot "$root" "$@"
"""


@dataclass
class Kubelet:
    """Runs the containers of one pod.

    Attributes:
        names: the namespaces whose pod it is.
        pod: the manifest.
        folder: where the volumes and root file systems are, readable by all.
        objects: the files of ConfigMaps and Secrets, by the object's name.
    """

    names: Namespaces
    pod: Mapping[str, Any]
    folder: Path
    objects: Mapping[str, Mapping[str, str]]

    def __post_init__(self) -> None:
        for volume in self.pod["spec"]["volumes"]:
            path = self._volume(volume["name"])
            path.mkdir()
            match volume:
                case {"emptyDir": _}:
                    path.chmod(0o777)
                case {"configMap": {"name": name}}:
                    self._write(path, self.objects[name], 0o644)
                case {"secret": {"secretName": name, "defaultMode": mode}}:
                    self._write(path, self.objects[name], mode)
                case {"downwardAPI": {"items": [{"path": name}]}}:
                    labels = self.pod["metadata"]["labels"]
                    lines = [f'{key}="{value}"\n' for key, value in labels.items()]
                    self._write(path, {name: "".join(lines)}, 0o644)
                case _:
                    raise AssertionError(volume)

    def container(self, name: str) -> Mapping[str, Any]:
        spec = self.pod["spec"]
        found: Mapping[str, Any]
        (found,) = [c for c in spec["initContainers"] + spec["containers"] if c["name"] == name]
        return found

    def start(self, name: str, *command: str) -> "subprocess.Popen[str]":
        """Start a container, or another command in one like it."""
        container = self.container(name)
        entry = container.get("command", ["pointsman"]) + container.get("args", [])
        return subprocess.Popen(
            [*self._prefix(container), *(command or entry)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "FROM_HERE": " ".join(_FROM_HERE),
                "ETC": " ".join(_ETC),
            },
        )

    def run(self, name: str, *command: str, within: float = 60) -> tuple[int, str, str]:
        """Run it to its end; return its exit status, standard output and standard error."""
        process = self.start(name, *command)
        try:
            output, errors = process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            raise AssertionError(f"{name} has not ended: {output}{errors}") from None
        return process.returncode, output, errors

    def _prefix(self, container: Mapping[str, Any]) -> Sequence[str]:
        root = self.folder / "root"
        root.mkdir(exist_ok=True)
        binds = [f"{source}|{target}|ro" for target, source in _IMAGE.items()]
        for mount in container["volumeMounts"]:
            mode = "ro" if mount.get("readOnly") else "rw"
            binds.append(f"{self._volume(mount['name'])}|{mount['mountPath']}|{mode}")
        context = container["securityContext"]
        read_only = "true" if context.get("readOnlyRootFilesystem") else "false"
        lines = "".join(f"{bind}\n" for bind in binds)
        return (
            *self.names.in_pod,
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-euc", _START, "start", str(root), read_only, lines),
            *_user(context),
            *("env", "-i", *self._environment(container)),
        )

    def _environment(self, container: Mapping[str, Any]) -> list[str]:
        found = dict(_ENVIRONMENT)
        for source in container.get("envFrom", []):
            found |= self.objects[source["secretRef"]["name"]]
        for entry in container.get("env", []):
            value = entry.get("value")
            if value is None:
                path = entry["valueFrom"]["fieldRef"]["fieldPath"]
                value = self.pod["metadata"][path.removeprefix("metadata.")]
            found[entry["name"]] = value
        return [f"{name}={value}" for name, value in found.items()]

    def _volume(self, name: str) -> Path:
        return self.folder / f"volume-{name}"

    def _write(self, path: Path, files: Mapping[str, str], mode: int) -> None:
        for name, content in files.items():
            (path / name).write_text(content)
            (path / name).chmod(mode)
        path.chmod(0o755)


def _user(context: Mapping[str, Any]) -> Sequence[str]:
    uid, gid = context["runAsUser"], context.get("runAsGroup", context["runAsUser"])
    capabilities = context.get("capabilities", {})
    given = [name.lower() for name in capabilities.get("add", [])]
    options = [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    if not context.get("allowPrivilegeEscalation", True):
        options.append("--no-new-privs")
    if uid != 0:
        # The interpreter may lie in root's home. In an image it does not.
        given.append("dac_read_search")
        options += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    if "ALL" in capabilities.get("drop", []):
        options.append(f"--bounding-set=-all{''.join(f',+{name}' for name in given)}")
    return ("setpriv", *options)
