"""The demo in transparent mode: a pod and the world outside, each in a network namespace.

The client in the pod is plain curl without any proxy setting, under a user id of its own. What it
sends to ports 80 and 443 is redirected to mitmdump by the rules that a sidecar's set-up makes. No
other network of the machine is touched, and the namespaces are gone afterwards.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pointsman import locations
from pointsman.demo.authority import Authority
from pointsman.demo.play_clients import CurlClient
from pointsman.demo.play_processes import Journal, StageError
from pointsman.demo.play_rules import Examples, RuleSet, RulesFolder
from pointsman.demo.play_stage import (
    ADDED,
    DASHSCOPE,
    KEYS,
    MOONSHOT,
    Stage,
    make_keys,
    mitmproxy_certificate,
    providers,
    proxy,
    public_copy,
    shown,
    workshop,
)

PROXY_PORT = 15001
CLIENT_UID = 1000
COMMAND_SECONDS = 10
# What each program comes with on Debian and what is made of it.
TOOLS = {"ip": "iproute2", "iptables": "iptables", "curl": "curl", "setpriv": "util-linux"}

POD_ADDRESS = "192.0.2.1"
OUTSIDE_ADDRESS = "192.0.2.2"
NOBODYS_ADDRESS = "192.0.2.80"
HOSTS = {
    "localhost": "127.0.0.1",
    DASHSCOPE: OUTSIDE_ADDRESS,
    MOONSHOT: OUTSIDE_ADDRESS,
    "demo-llm-server": NOBODYS_ADDRESS,
}
_NAMESPACE_FILES = Path("/etc/netns")


class CannotPlayError(StageError):
    """This machine or this user can't play in namespaces."""


@dataclass(frozen=True)
class Network:
    """Two namespaces, as prefixes of commands that are to run in them."""

    pod: Sequence[str]
    outside: Sequence[str]


@contextmanager
def transparent_stage(first: RuleSet, examples: Examples) -> Iterator[Stage]:
    """Set up a pod with redirect rules, and the providers outside of it.

    Raises:
        CannotPlayError: that takes root on Linux, and a few programs.
        StageError: something does not start.
    """
    require_tools()
    with ExitStack() as stack:
        network = stack.enter_context(_network(f"pointsman-{os.getpid()}"))
        directory = stack.enter_context(workshop())
        authority = Authority(directory / "authority")
        keys = make_keys()
        called, _ = stack.enter_context(
            providers(authority, keys, listen=(OUTSIDE_ADDRESS, 443), prefix=network.outside)
        )
        patch = {"tls": {"caFile": str(authority.certificate)}}
        rules = RulesFolder(directory / "rules", examples, patch)
        rules.put(first)
        log = Journal(directory / "access.jsonl")
        stack.callback(log.close)
        options = ["--mode", f"transparent@{PROXY_PORT}"]
        process, _ = stack.enter_context(
            proxy(directory, keys, rules, options=options, prefix=network.pod)
        )
        user = ("--reuid", str(CLIENT_UID), "--regid", str(CLIENT_UID), "--clear-groups")
        client = CurlClient(
            [*network.pod, "setpriv", *user],
            public_copy(directory, mitmproxy_certificate(directory)),
        )
        script = shown(locations.addon_script())
        yield Stage(
            notes=[
                ("pod", f"namespace {network.pod[-1]}: mitmdump -s {script} {' '.join(options)}"),
                ("", "iptables redirects ports 80 and 443 to it, for every user but root"),
                ("", f"demo-llm-server is {NOBODYS_ADDRESS}, where no one listens"),
                ("outside", f"namespace {network.outside[-1]}: https://{DASHSCOPE} and"),
                ("", f"https://{MOONSHOT}; {KEYS}"),
                ("client", f"curl in the pod as user {CLIENT_UID}: no proxy setting, no key"),
                ("rules", f"rules/examples; {ADDED} spec.tls.caFile is added"),
            ],
            keys=keys,
            client=client,
            providers=called,
            proxy=process,
            rules=rules,
            log=log,
        )


def require_tools() -> None:
    """Check that namespaces can be made here.

    Raises:
        CannotPlayError: the message says what is missing.
    """
    if sys.platform != "linux":
        raise CannotPlayError("--transparent needs Linux: it plays in network namespaces")
    if os.geteuid() != 0:
        raise CannotPlayError(
            "--transparent needs root: it makes two network namespaces and iptables rules in them"
            " (the demo without it needs neither)"
        )
    packages = sorted({TOOLS[tool] for tool in TOOLS if not _find(tool)})
    if packages:
        raise CannotPlayError(
            f"--transparent needs more programs: apt-get install {' '.join(packages)}"
        )


def _find(tool: str) -> str | None:
    # iptables and ip are not on every root's path.
    return shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _run(*command: str) -> None:
    program = _find(command[0]) or command[0]
    try:
        done = subprocess.run(  # noqa: S603 (our own command)
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotPlayError(f"{' '.join(command)}: {error}") from None
    if done.returncode:
        raise CannotPlayError(
            f"a network namespace can't be set up here: {' '.join(command)}: {done.stderr.strip()}"
        )


def _try(*command: str) -> None:
    """Run a command that cleans up; what is not there need not go."""
    try:
        _run(*command)
    except CannotPlayError:
        return


@contextmanager
def _network(name: str) -> Iterator[Network]:
    pod, outside = f"{name}-pod", f"{name}-outside"
    with ExitStack() as stack:
        for namespace in (pod, outside):
            # What cleans up comes first: nothing stays, wherever this is interrupted.
            stack.callback(_try, "ip", "netns", "del", namespace)
            _run("ip", "netns", "add", namespace)
            stack.enter_context(_hosts_file(namespace, HOSTS))
        _run(*f"ip link add up0 netns {pod} type veth peer name up0 netns {outside}".split())
        for namespace, address in ((pod, POD_ADDRESS), (outside, OUTSIDE_ADDRESS)):
            _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "up0")
            for device in ("lo", "up0"):
                _run("ip", "-n", namespace, "link", "set", device, "up")
        prefix = [_find("ip") or "ip", "netns", "exec"]
        redirect = (
            "iptables -w 5 -t nat -A OUTPUT -p tcp -m multiport --dports 80,443"
            f" -m owner ! --uid-owner 0 -j REDIRECT --to-ports {PROXY_PORT}"
        )
        _run(*prefix, pod, _find("iptables") or "iptables", *redirect.split()[1:])
        yield Network(pod=[*prefix, pod], outside=[*prefix, outside])


@contextmanager
def _hosts_file(namespace: str, hosts: Mapping[str, str]) -> Iterator[None]:
    """Give a namespace its own names: `ip netns exec` puts the file in the place of /etc/hosts."""
    ours = not _NAMESPACE_FILES.exists()
    directory = _NAMESPACE_FILES / namespace
    lines = [f"{address} {name}\n" for name, address in hosts.items()]
    try:
        try:
            directory.mkdir(parents=True)
            (directory / "hosts").write_text("".join(lines), encoding="ascii")
        except OSError as error:
            raise CannotPlayError(f"{directory} can't be written: {error.strerror}") from None
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if ours and _NAMESPACE_FILES.exists() and not any(_NAMESPACE_FILES.iterdir()):
            _NAMESPACE_FILES.rmdir()
