"""Does a connection from here arrive at the proxy's port? What `scripts/redirect check` runs.

It connects to an address that no one has. Only redirect rules can make that succeed, and the other
end of the connection is then a socket of this network namespace: one of ours, if no proxy runs, or
the proxy's, which the kernel's list of sockets shows. Ours also tells the original destination.

Standard library only, and no other module of the package: an init container runs it.
"""

import argparse
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 5.0
NOBODY = 65534

# From the kernel's headers; the socket module has no names for them.
SO_ORIGINAL_DST = 80
SOL_IPV6 = 41

_NO_ROUTE = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

Address = tuple[str, int]  # no `type`: any Python 3.8 or newer can run this


class ProbeError(Exception):
    """Connections are not redirected as they should be. The message says why, and what mends it."""


class NoRouteError(Exception):
    """Nothing can leave towards a probe's address, so nothing is learnt."""


@dataclass(frozen=True)
class Excluded:
    """Whose connections the rules leave alone."""

    uids: frozenset[int]
    gids: frozenset[int]


@dataclass(frozen=True)
class Arrival:
    """A connection that arrived: in words, and whether it was the proxy who got it, or we."""

    words: str
    at_proxy: bool


@dataclass(frozen=True)
class Family:
    """What differs between IPv4 and IPv6."""

    name: str
    number: socket.AddressFamily
    loopback: str
    sockets: Path


IPV4 = Family("IPv4", socket.AF_INET, "127.0.0.1", Path("/proc/self/net/tcp"))
IPV6 = Family("IPv6", socket.AF_INET6, "::1", Path("/proc/self/net/tcp6"))


def family_of(address: str) -> Family:
    """Tell the family of a numeric address."""
    return IPV6 if ":" in address else IPV4


def original_destination(redirected: socket.socket) -> Address:
    """Return the address that a redirected connection was made to.

    Raises:
        OSError: it was not redirected.
    """
    if redirected.family == socket.AF_INET6:
        found = redirected.getsockopt(SOL_IPV6, SO_ORIGINAL_DST, 28)
        port, address = struct.unpack_from("!2xH4x16s", found)
    else:
        found = redirected.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        port, address = struct.unpack_from("!2xH4s", found)
    return socket.inet_ntop(redirected.family, address), port


def local_port_of(peer: Address, sockets: str) -> int | None:
    """Find the socket whose far end is `peer`, and return its own port.

    Args:
        peer: a numeric address and port.
        sockets: the text of `/proc/net/tcp` or `/proc/net/tcp6`.
    """
    wanted = _as_in_proc(peer)
    for line in sockets.splitlines()[1:]:
        local, remote = line.split()[1:3]
        if remote == wanted:  # in any state: it may not have heard yet that it is established
            return int(local.rpartition(":")[2], 16)
    return None


def _as_in_proc(address: Address) -> str:
    """Write an address as the kernel's list does: words of four bytes in the machine's order."""
    host, port = address
    packed = socket.inet_pton(family_of(host).number, host)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


@contextmanager
def as_redirected_user(excluded: Excluded) -> Iterator[None]:
    """Be a user whom the rules do not leave alone: a socket belongs to whom it is made by.

    Raises:
        ProbeError: this user is left alone and may not become another.
    """
    uid, gid = os.geteuid(), os.getegid()
    other_uid = _first_free(uid, excluded.uids)
    other_gid = _first_free(gid, excluded.gids)
    try:
        os.setegid(other_gid)
        os.seteuid(other_uid)
    except PermissionError:
        raise ProbeError(
            f"user {uid}, group {gid} is never redirected: run the check as another user"
        ) from None
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)


def _first_free(current: int, excluded: frozenset[int]) -> int:
    if current not in excluded:
        return current
    return next(number for number in range(NOBODY, 0, -1) if number not in excluded)


def listen(family: Family, ports: Sequence[int], stack: ExitStack) -> list[socket.socket]:
    """Listen in the proxy's place, where rules lead; return nothing if the proxy does.

    Raises:
        ProbeError: some of the proxy's ports are listened on and some are not, or none may be.
        NoRouteError: this family is switched off.
    """
    listeners, taken = [], []
    for port in ports:
        listener = stack.enter_context(socket.socket(family.number))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((family.loopback, port))
            listener.listen()
        except OSError as error:
            if error.errno in _NO_ROUTE:
                raise NoRouteError(f"there is no {family.name} here") from None
            if error.errno != errno.EADDRINUSE:
                raise ProbeError(f"can't listen on port {port}: {error.strerror}") from None
            taken.append(port)
        else:
            listener.settimeout(TIMEOUT_SECONDS)
            listeners.append(listener)
    if listeners and taken:
        free = sorted(set(ports) - set(taken))
        raise ProbeError(
            f"{family.name}: nobody listens on port {', '.join(map(str, free))}, so connections"
            " that are led there are refused; start the missing workers or narrow the range"
        )
    return listeners


def has_route(target: Address) -> bool:
    """Tell whether a connection to an address could leave; nothing is sent."""
    try:
        with socket.socket(family_of(target[0]).number, socket.SOCK_DGRAM) as untold:
            untold.connect(target)
    except OSError:
        return False
    return True


def probe(target: Address, ports: Sequence[int], excluded: Excluded) -> Arrival:
    """Connect to a target; return how the connection arrived.

    Raises:
        ProbeError: not at the proxy, or not with its original destination.
        NoRouteError: nothing can leave towards this target.
    """
    family = family_of(target[0])
    name = _shown(target)
    with ExitStack() as stack:
        try:
            listeners = listen(family, ports, stack)
        except NoRouteError:
            if has_route(target):
                raise ProbeError(
                    f"{family.name}: connections can leave, and redirected ones are led to"
                    f" {family.loopback}, which is not there, so they are refused; switch it on"
                    " (ip link set lo up; for IPv6: sysctl net.ipv6.conf.lo.disable_ipv6=0)"
                ) from None
            raise
        with as_redirected_user(excluded):
            client = stack.enter_context(socket.socket(family.number))
        client.settimeout(TIMEOUT_SECONDS)
        try:
            client.connect(target)
        except OSError as error:
            if error.errno in _NO_ROUTE:
                raise NoRouteError(f"no route to {name}") from None
            why = "no answer" if isinstance(error, TimeoutError) else error.strerror
            raise ProbeError(
                f"a connection to {name} did not arrive at the proxy ({why}): no rules are"
                " loaded for it (see `redirect apply`, with the same options)"
            ) from None
        here: Address = client.getsockname()[:2]
        port = local_port_of(here, family.sockets.read_text("ascii"))
        if port not in ports:
            raise ProbeError(
                f"a connection to {name} arrived, but at"
                f" {'another host' if port is None else f'port {port}'} and not at the proxy's port"
            )
        if not listeners:
            return Arrival(f"{name} arrived at port {port}, where the proxy listens", at_proxy=True)
        arrived = next(listener for listener in listeners if listener.getsockname()[1] == port)
        accepted = stack.enter_context(arrived.accept()[0])
        found = original_destination(accepted)
        if found != target:
            raise ProbeError(f"{name} arrived at port {port} as {_shown(found)}")
        words = f"{name} arrived at port {port} with its original destination"
        return Arrival(words, at_proxy=False)


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ports(text: str) -> Sequence[int]:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe each address; return an exit status."""
    parser = argparse.ArgumentParser(prog="redirect check", description=__doc__)
    parser.add_argument("--proxy-ports", type=_ports, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--excluded-uids", type=int, nargs="*", default=[])
    parser.add_argument("--excluded-gids", type=int, nargs="*", default=[])
    parser.add_argument("--probes", nargs="+", required=True)
    options = parser.parse_args(arguments)
    excluded = Excluded(frozenset(options.excluded_uids), frozenset(options.excluded_gids))
    arrivals: list[Arrival] = []
    failures: list[str] = []
    for address in options.probes:
        try:
            arrivals.append(probe((address, options.port), options.proxy_ports, excluded))
        except NoRouteError as error:
            print(f"not checked: {error}")  # noqa: T201 (a program's output)
        except ProbeError as error:
            failures.append(str(error))
    if len({arrival.at_proxy for arrival in arrivals}) > 1:
        failures.append(
            "the proxy listens for one of IPv4 and IPv6 alone: connections of the other are"
            " refused; let it listen on 127.0.0.1 and on ::1"
        )
    if not arrivals and not failures:
        failures.append("nothing could be checked; name an address by --probe")
    for arrival in arrivals:
        print(f"ok: {arrival.words}")  # noqa: T201
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
