"""The sockets that the sidecar listens on: opened once, and kept while workers come and go.

A connection that arrives while no worker accepts waits in the kernel's queue.
"""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

# REDIRECT sends what was made on this machine to these.
_LOOPBACK = ("127.0.0.1", "::1")
_EVERY = ("0.0.0.0", "::")  # noqa: S104 (asked for with `--listen all`)
EVERY = "all"

QUEUE = 1024

# What the absence of IPv6 looks like.
_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_MENDS = {
    errno.EADDRINUSE: "end the process that has it, or choose another --port",
    errno.EACCES: "choose a --port from 1024 on",
    errno.EADDRNOTAVAIL: "give --listen an address of this machine",
}


def open_sockets(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen on one port of each address, or on loopback where none is given.

    Where IPv6 is absent, `::1` and `all` do without it. Port 0 lets the system choose.

    Raises:
        OSError: `strerror` tells where nothing can listen, why, and the mend.
    """
    wanted = [(address, False) for address in hosts if address != EVERY]
    groups = [_EVERY] if EVERY in hosts else [] if hosts else [_LOOPBACK]
    wanted += [(address, ":" in address) for group in groups for address in group]
    with ExitStack() as stack:
        opened: list[socket.socket] = []
        for address, may_be_absent in wanted:
            try:
                listening = _open(address, port)
            except OSError as error:
                if may_be_absent and error.errno in _ABSENT:
                    continue
                raise _explained(address, port, error) from None
            opened.append(stack.enter_context(listening))
            port = listening.getsockname()[1]
        stack.pop_all()
        return opened


def describe(listening: Sequence[socket.socket]) -> list[str]:
    """Return their addresses, as `127.0.0.1:15001` and `[::1]:15001`."""
    found = []
    for each in listening:
        host, port = each.getsockname()[:2]
        found.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return found


def _open(address: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )
    family, *_, where = found[0]
    return socket.create_server(where[:2], family=family, backlog=QUEUE)


def _explained(address: str, port: int, error: OSError) -> OSError:
    if isinstance(error, socket.gaierror):
        return OSError(errno.EINVAL, f"--listen: {address!r} is no IP address; write one, or all")
    reason = os.strerror(error.errno or 0)
    mend = _MENDS.get(error.errno or 0, "choose another --listen or --port")
    return OSError(error.errno, f"{address} port {port} can't be listened on: {reason}; {mend}")
