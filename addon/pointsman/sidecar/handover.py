"""What a supervisor hands to a worker: listening sockets, and a line between the two.

They are inherited file descriptors, named by environment variables. The line is a socket pair: the
worker writes one byte when it serves, and sees the line end when the supervisor is gone.

A worker also learns the port of the admin endpoint, which no one may reach through it, how many
workers there are, which share what the machine has, and where they keep a copy of the live rules.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

_LISTENING = "POINTSMAN_LISTENING_FDS"
_LINE = "POINTSMAN_SUPERVISOR_FD"
ADMIN_PORT = "POINTSMAN_SUPERVISOR_ADMIN_PORT"
WORKERS = "POINTSMAN_WORKERS"
KEPT_RULES = "POINTSMAN_KEPT_RULES"

READY = b"\1"


def environment(listening: Sequence[socket.socket], line: socket.socket) -> dict[str, str]:
    """Return the variables that name these sockets to a worker that inherits them."""
    return {
        _LISTENING: ",".join(str(each.fileno()) for each in listening),
        _LINE: str(line.fileno()),
    }


def take(variables: Mapping[str, str] = os.environ) -> tuple[list[socket.socket], socket.socket]:
    """Return the listening sockets and the line; called once, in the worker.

    Raises:
        LookupError: no supervisor has started this process.
    """
    try:
        listening = [int(number) for number in variables[_LISTENING].split(",")]
        line = int(variables[_LINE])
    except (KeyError, ValueError):
        raise LookupError(
            "a worker is started by its supervisor; run `pointsman run --sidecar`"
        ) from None
    for number in (*listening, line):
        os.set_inheritable(number, False)
    return [socket.socket(fileno=number) for number in listening], socket.socket(fileno=line)


def admin_port(variables: Mapping[str, str] = os.environ) -> int | None:
    """Return the port of the supervisor's admin endpoint; None: there is none."""
    port = variables.get(ADMIN_PORT, "")
    return int(port) if port.isdecimal() else None


def workers(variables: Mapping[str, str] = os.environ) -> int:
    """Return how many processes share what the machine has: 1 where there is no supervisor."""
    count = variables.get(WORKERS, "")
    return int(count) if count.isdecimal() else 1


def kept_rules(variables: Mapping[str, str] = os.environ) -> Path | None:
    """Return where the copy of the live rules is; None: no supervisor has started this process."""
    path = variables.get(KEPT_RULES)
    return Path(path) if path else None
