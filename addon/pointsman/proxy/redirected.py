"""Which connections of the transparent mode were redirected here, and which came by themselves.

Whoever connects to the proxy's own port names no far end: the connection's original destination is
the proxy. To serve it would lend the keys to whoever reaches that port, and for hosts that are not
ours the proxy would connect to itself without end. Who the client is does not matter: a gateway
serves others, which were redirected to it.
"""

import logging
import socket
import time
from ipaddress import IPv6Address, ip_address

from mitmproxy.connection import Address, Client
from mitmproxy.master import Master
from mitmproxy.proxy import mode_specs

logger = logging.getLogger(__name__)

# Anyone who reaches the port can cause a line of the log.
_TELL_EVERY_SECONDS = 60.0


class Redirected:
    """Refuses what was not redirected."""

    def __init__(self) -> None:
        self._told = float("-inf")

    def judge(self, master: Master, client: Client) -> None:
        """Make mitmproxy close a new connection that no rule has redirected."""
        if not isinstance(client.proxy_mode, mode_specs.TransparentMode):
            return
        # A hook that raises is passed over: whatever happens here, the connection is closed.
        client.error = "The connection was not redirected."
        # `client.sockname` is the original destination by now; the socket has its own address.
        handler = master.addons.get("proxyserver").connections.get(client.id)
        writer = handler.transports[client].writer if handler is not None else None
        here = writer.get_extra_info("sockname") if writer is not None else None
        if here is None or leads_here(client.sockname, here):
            self._tell(client)
        else:
            client.error = None

    def _tell(self, client: Client) -> None:
        now = time.monotonic()
        if now - self._told < _TELL_EVERY_SECONDS:
            return
        self._told = now
        logger.warning(
            "closed a connection from %s to the proxy's own port %d: in transparent mode only"
            " redirected connections are served; let clients dial the real hosts, or use mode"
            " regular where they are configured with a proxy (told once in %d s)",
            client.peername[0],
            client.sockname[1],
            int(_TELL_EVERY_SECONDS),
        )


def leads_here(destination: Address, here: Address) -> bool:
    """Tell whether a destination is the proxy's own port, at any address of this machine.

    Redirect rules lead what this machine's processes send to its own addresses to the loopback, so
    that the two need not be the same.
    """
    if destination[1] != here[1]:
        return False
    there = _plain(destination[0])
    return there == _plain(here[0]) or _is_own(there)


def _plain(address: str) -> str:
    found = ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or found)


def _is_own(address: str) -> bool:
    """Tell whether this machine has an address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
