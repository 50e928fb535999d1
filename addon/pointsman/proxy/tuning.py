"""What Pointsman changes about the mitmproxy that it runs in, and why each is safe."""

import asyncio
import io
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from mitmproxy import optmanager
from mitmproxy.connection import Client
from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.tools.dump import DumpMaster

# Default addons that walk along with every hook of every flow, and when each has something to do.
# Half of mitmdump's CPU is this walk. In a UI options change at any time, so nothing is removed.
_NEEDED: dict[str, Callable[[Options], Any]] = {
    "anticache": lambda o: o.anticache,
    "anticomp": lambda o: o.anticomp,
    "blocklist": lambda o: o.block_list,
    "stickyauth": lambda o: o.stickyauth,
    "stickycookie": lambda o: o.stickycookie,
    "mapremote": lambda o: o.map_remote,
    "maplocal": lambda o: o.map_local,
    "modifybody": lambda o: o.modify_body,
    "modifyheaders": lambda o: o.modify_headers,
    "serverplayback": lambda o: o.server_replay,
    "proxyauth": lambda o: o.proxyauth,
    "upstreamauth": lambda o: o.upstream_auth,
    "savehar": lambda o: o.hardump,
    "save": lambda o: o.save_stream_file,
    "dumper": lambda o: o.flow_detail,
    "onboarding": lambda o: o.onboarding and o.showhost,
}


def set_default(options: Options, name: str, value: Any) -> None:
    """Set an option unless the user has."""
    if options._options[name].value is optmanager.unset:  # noqa: SLF001 (no public way to ask)
        options.update(**{name: value})


def remove_idle_addons(master: DumpMaster) -> None:
    """Remove the default addons whose feature is off."""
    for name, needed in _NEEDED.items():
        addon = master.addons.get(name)
        if addon is not None and not needed(master.options):
            master.addons.remove(addon)


# mitmproxy opens at most five connections to one address for each client connection. An HTTP/2
# client with more streams than that would wait for minutes behind long answers.
_PARALLEL_CONNECTIONS = 100


def allow_parallel_calls(master: Master, client: Client) -> None:
    """Let one client connection have as many calls under way as HTTP/2 lets it begin."""
    handler = master.addons.get("proxyserver").connections.get(client.id)
    if handler is not None:
        handler.max_conns = defaultdict(lambda: asyncio.Semaphore(_PARALLEL_CONNECTIONS))


def write_log_lines_at_once() -> None:
    """Write each line when it is logged: into a pipe Python would collect 8 kB of them first.

    A container's log is a pipe, and the line that tells of a bad reload must not wait in it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


# These messages of mitmproxy quote what was on the wire: keys, prompts, answers.
_QUOTING = re.compile(
    r"(Client closed connection before completing request headers"
    r"|unexpected server response|Unexpected data from server"
    r"|Cannot parse HTTP response|HTTP/1 protocol error"
    r"|Bad HTTP request line|Bad HTTP response line|Invalid header line"
    r"|invalid content-length header|Invalid HTTP header).*",
    re.DOTALL,
)


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str) and _QUOTING.search(record.msg):
            record.msg = _QUOTING.sub(r"\1 (the bytes are not logged)", record.msg)
        return True


_redaction = _Redaction()


def redact_proxy_log() -> None:
    """Keep wire bytes out of mitmproxy's own log; a second call changes nothing."""
    logging.getLogger("mitmproxy.proxy.server").addFilter(_redaction)
