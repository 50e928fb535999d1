"""A pod and the world outside, each in a network namespace, joined by a cable.

The pod has its own names (`/etc/netns/<name>/hosts`). Applications run in it as `APP`, the proxy as
`PROXY`, as in a cluster; what `scripts/redirect` loads is what leads one to the other.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import pytest

from tests.e2e.harness import DEADLINE, REPOSITORY

REDIRECT = REPOSITORY / "scripts" / "redirect"
APP, PROXY = 1000, 1337
PROXY_PORT = 15001
CLONE_NEWNET = 0x40000000

type FamilyName = Literal["ipv4", "ipv6"]


@dataclass(frozen=True)
class Place:
    """An address of each family."""

    ipv4: str
    ipv6: str

    def of(self, family: FamilyName) -> str:
        return self.ipv4 if family == "ipv4" else self.ipv6

    def both(self) -> tuple[str, str]:
        return self.ipv4, self.ipv6


def place(number: int) -> Place:
    """Return the addresses of one host on the cable."""
    return Place(f"10.79.0.{number}", f"fd79::{number}")


POD, OUTSIDE = place(1), place(2)
# Each leads to the far end of the cable; a test puts its servers there.
SITES = [place(number) for number in range(3, 8)]
NOWHERE = place(77)
METADATA = Place("169.254.169.254", "fd00:ec2::254")

_NETNS = Path("/etc/netns")
_numbers = count(1)


def run(*command: str, within: float = DEADLINE) -> str:
    """Run a command; return its standard output.

    Raises:
        OSError: it fails; the message has its standard error.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=within, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}{done.stdout.strip()}")
    return done.stdout


def as_user(uid: int, gid: int | None = None, *, reads_all: bool = False) -> Sequence[str]:
    """Return the prefix that makes a command another user's.

    With `reads_all` it may read what it has no right to: the interpreter may lie in root's home.
    """
    user = ("setpriv", f"--reuid={uid}", f"--regid={uid if gid is None else gid}")
    reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return (*user, "--clear-groups", *(reading if reads_all else ()), "--")


@dataclass(frozen=True)
class Namespaces:
    """The names of the two."""

    pod: str
    outside: str

    @property
    def in_pod(self) -> Sequence[str]:
        """The prefix that runs a command in the pod."""
        return ("ip", "netns", "exec", self.pod)

    def call(self, *names: str, at: Place, family: FamilyName | None = None) -> None:
        """Give the pod names for a place, beside those that it has; of one family or of both."""
        addresses = at.both() if family is None else (at.of(family),)
        with (_NETNS / self.pod / "hosts").open("a", encoding="utf-8") as hosts:
            hosts.writelines(f"{address} {' '.join(names)}\n" for address in addresses)

    def forget_names(self) -> None:
        """Take the pod's names away, but for its own."""
        names = "127.0.0.1 localhost\n::1 localhost\n"
        (_NETNS / self.pod / "hosts").write_text(names, encoding="utf-8")

    def switch_ipv6_off(self) -> None:
        """Take every IPv6 address away from the pod, loopback's too."""
        switch = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
        run(*self.in_pod, "sh", "-c", f"echo 1 >{switch}")

    def redirect(
        self, *arguments: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run scripts/redirect in the pod, as its init container does."""
        return subprocess.run(
            [*self.in_pod, *prefix, str(REDIRECT), *arguments],
            env={**os.environ, "PYTHON": sys.executable, **(env or {})},
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
            check=False,
        )

    def apply(self, *options: str) -> None:
        """Load redirect rules."""
        done = self.redirect("apply", *options)
        assert done.returncode == 0, done.stderr

    def curl(self, *arguments: str, uid: int = APP, gid: int | None = None) -> str:
        """Run curl as the application does: its own user, no proxy settings.

        Raises:
            OSError: it fails.
        """
        return run(
            *self.in_pod,
            *as_user(uid, gid),
            *("env", "-i", f"PATH={os.environ['PATH']}", "curl", "--disable", "--silent"),
            *("--show-error", "--max-time", "15", *arguments),
        )


def _build(stack: ExitStack, names: Namespaces) -> None:
    def leave() -> None:
        shutil.rmtree(_NETNS / names.pod)
        with contextlib.suppress(OSError):  # others have their files there
            _NETNS.rmdir()

    (_NETNS / names.pod).mkdir(parents=True)
    stack.callback(leave)
    names.forget_names()
    for name in (names.pod, names.outside):
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    ends = ("type", "veth", "peer", "name", "cable", "netns", names.outside)
    run("ip", "-n", names.pod, "link", "add", "cable", *ends)
    there = [OUTSIDE, *SITES]
    for name, places in ((names.pod, [POD]), (names.outside, there)):
        for found in places:
            run("ip", "-n", name, "address", "add", f"{found.ipv4}/24", "dev", "cable")
            run("ip", "-n", name, "address", "add", f"{found.ipv6}/64", "dev", "cable", "nodad")
        run("ip", "-n", name, "link", "set", "cable", "up")
    for address in METADATA.both():
        run("ip", "-n", names.outside, "address", "add", address, "dev", "lo")
    for address in OUTSIDE.both():
        run("ip", "-n", names.pod, "route", "add", "default", "via", address)


@contextmanager
def network() -> Iterator[Namespaces]:
    """Make a pod and its outside; skip where that can't be."""
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    tools = ("ip", "iptables", "ip6tables", "nft", "setpriv", "curl")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    prefix = f"pointsman-{os.getpid()}-{next(_numbers)}"
    names = Namespaces(f"{prefix}-pod", f"{prefix}-outside")
    with ExitStack() as stack:
        try:
            _build(stack, names)
        except OSError as error:
            pytest.skip(f"network namespaces can't be used here: {error}")
        yield names


def in_namespace[T](name: str, action: Callable[[], T]) -> T:
    """Do something in a namespace, in a thread of its own: what it starts stays there."""
    results: list[T] = []
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            with Path("/run/netns", name).open("rb") as namespace:
                os.setns(namespace.fileno(), CLONE_NEWNET)
            results.append(action())
        except BaseException as failure:  # noqa: BLE001 (raised again in the test's thread)
            failures.append(failure)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(DEADLINE)
    if failures:
        raise failures[0]
    assert results, "not done in time"
    return results[0]
