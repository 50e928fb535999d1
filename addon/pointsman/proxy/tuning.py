"""What Pointsman changes about the mitmproxy that it runs in, and why each is safe."""

import asyncio
import gc
import inspect
import io
import logging
import re
import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from mitmproxy import flow, http, optmanager
from mitmproxy.addonmanager import AddonManager, safecall
from mitmproxy.connection import Client, Connection
from mitmproxy.exceptions import AddonHalt
from mitmproxy.hooks import Hook
from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.tools.dump import DumpMaster

type _Listener = Callable[..., Any]

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
    if not is_set(options, name):
        options.update(**{name: value})


def is_set(options: Options, name: str) -> bool:
    """Tell whether someone has set an option, be it to its default."""
    value = options._options[name].value  # noqa: SLF001 (no public way to ask)
    return value is not optmanager.unset


def show_comments(options: Options) -> None:
    """Show mitmweb's column of comments, where the decision stands, unless the user chose columns.

    No other program has the option.
    """
    if "web_columns" in options:
        set_default(options, "web_columns", [*options.web_columns, "comment"])


def remove_idle_addons(master: DumpMaster) -> None:
    """Remove the default addons whose feature is off."""
    for name, needed in _NEEDED.items():
        addon = master.addons.get(name)
        if addon is not None and not needed(master.options):
            master.addons.remove(addon)


def flows_are_seen(master: DumpMaster, own: object) -> bool:
    """Tell whether anything looks at what stands on flows: a feature in use, an addon beside ours.

    `own` is our addon; those whose feature is off have been removed.
    """
    scripts = master.addons.get("scriptloader").addons
    return (
        any(master.addons.get(name) for name in _NEEDED)
        or any(getattr(script.ns, "addons", None) != [own] for script in scripts)
        or not all(type(addon).__module__.startswith("mitmproxy.") for addon in master.addons.chain)
    )


class _Dispatch:
    """Gives each hook to those that listen to it, in their order.

    mitmproxy asks every addon for every hook; this asks once, and again when addons come or go.
    Scripts do too: each is registered anew when it is loaded again.
    """

    def __init__(self, manager: AddonManager) -> None:
        self._manager = manager
        self._chain: list[object] = []
        self._registered: dict[str, object] = {}
        self._listeners: dict[str, list[list[_Listener]]] = {}

    async def __call__(self, event: Hook) -> None:
        """Trigger an event, as `AddonManager.trigger_event` does."""
        manager = self._manager
        if self._chain != manager.chain or self._registered != manager.lookup:
            self._chain, self._registered = list(manager.chain), dict(manager.lookup)
            self._listeners.clear()
        listeners = self._listeners.get(event.name)
        if listeners is None:
            listeners = self._listeners[event.name] = list(self._find(event))
        if not listeners:
            return
        arguments = event.args()
        for together in listeners:
            try:
                with safecall():
                    for listener in together:
                        result = listener(*arguments)
                        if result is not None and inspect.isawaitable(result):
                            await result
            except AddonHalt:
                return

    def _find(self, event: Hook) -> Iterator[list[_Listener]]:
        """Yield what listens in each addon: in itself, and in those that it holds."""
        for addon in self._chain:
            with safecall():
                hooks = self._manager._iter_hooks(addon, event)  # noqa: SLF001 (no public way)
                if found := [listener for _, listener in hooks]:
                    yield found


def slim_down(master: DumpMaster) -> None:
    """Leave out work that no one sees; together it halves mitmdump's CPU for each request."""
    remove_idle_addons(master)
    master.addons.trigger_event = _Dispatch(master.addons)  # type: ignore[method-assign]
    # mitmproxy's type check of every message it makes, which `python -O` leaves out as well.
    http.MessageData.__post_init__ = lambda _: None  # type: ignore[method-assign]


def end_killed_at_once() -> None:
    """Let a flow that is killed while it is held end: mitmproxy leaves its client waiting."""
    kill: Callable[[flow.Flow], None] = flow.Flow.kill

    @wraps(kill)
    def kill_and_wake(self: flow.Flow) -> None:
        kill(self)
        if self._resume_event is not None:
            self._resume_event.set()

    if not hasattr(kill, "__wrapped__"):
        flow.Flow.kill = kill_and_wake  # type: ignore[method-assign]


# mitmproxy opens at most five connections to one address for each client connection. An HTTP/2
# client with more streams than that would wait for minutes behind long answers.
_PARALLEL_CONNECTIONS = 100


def allow_parallel_calls(master: Master, client: Client) -> None:
    """Let one client connection have as many calls under way as HTTP/2 lets it begin."""
    handler = master.addons.get("proxyserver").connections.get(client.id)
    if handler is not None:
        handler.max_conns = defaultdict(lambda: asyncio.Semaphore(_PARALLEL_CONNECTIONS))


# mitmproxy closes what has been idle for ten minutes: WebSockets, long polls, pooled connections,
# of hosts that are not ours too. Without the proxy no one would; streams of ours have their own
# limit. 0 would close at once, and None is no number.
NEVER_SECONDS = 10 * 365 * 24 * 3600
# What finds those whose far end is gone without a word, and keeps NATs from forgetting the rest.
_KEEPALIVE_TIMES = (("TCP_KEEPIDLE", 300), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5))


def keep_alive(master: Master, client: Client, connection: Connection) -> None:
    """Let the kernel probe a connection that is idle, on either side of the proxy."""
    handler = master.addons.get("proxyserver").connections.get(client.id)
    found = handler.transports.get(connection) if handler is not None else None
    get = getattr(found.writer if found is not None else None, "get_extra_info", None)
    plain = get("socket") if get is not None else None
    if plain is None or connection.transport_protocol != "tcp":
        return
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE_TIMES:
        if (option := getattr(socket, name, None)) is not None:  # not every system has them
            plain.setsockopt(socket.IPPROTO_TCP, option, value)


def close_for_good(master: Master, client: Client) -> None:
    """Close the socket of a client's connection that is over, if mitmproxy has not.

    A layer that closes the connection while more of the client's bytes wait to be read cancels the
    task that would close the socket, at a place where that task does not expect it: the client
    would wait for as long as Python does not collect its garbage.
    """
    handler = master.addons.get("proxyserver").connections.get(client.id)
    left = handler.transports.get(client) if handler is not None else None
    if left is not None and left.writer is not None and not left.writer.is_closing():
        left.writer.close()


def write_log_lines_at_once() -> None:
    """Write each line when it is logged: into a pipe Python would collect 8 kB of them first.

    A container's log is a pipe, and the line that tells of a bad reload must not wait in it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def spare_what_is_loaded() -> None:
    """Take what the process has loaded out of Python's search for garbage: it will never be any.

    Each full search looks at all of it, during which no request moves: a tenth of a second.
    """
    gc.collect()
    gc.freeze()


def keep_loaded(master: Master, addon: object) -> None:
    """Stop mitmproxy from loading our script again when its file changes.

    While a script is loaded anew, or when it no longer loads after an upgrade, everything would
    pass unrouted; and connections that are open would keep an addon that is gone.
    """
    loader = master.addons.get("scriptloader")
    for script in getattr(loader, "addons", ()):
        if addon in getattr(script.ns, "addons", ()) and script.reloadtask:
            script.reloadtask.cancel()


# These messages of mitmproxy quote what was on the wire: keys, prompts, answers.
_QUOTING = re.compile(
    r"(Client closed connection before completing request headers"
    r"|unexpected server response|Unexpected data from server"
    r"|Cannot parse HTTP response|HTTP/1 protocol error"
    r"|Bad HTTP request line|Bad HTTP response line|Invalid header line).*",
    re.DOTALL,
)


# With proxy_debug each layer tells of every event and command, the bytes included: as literals, in
# a request's target, and in the headers and data of HTTP/2.
_DEBUG = re.compile(r"(?:>>|<<|>!|!>|\[h2\]|Send headers) ")
_WIRE = re.compile(r"""\b(?:b['"]|Request\(|headers:|data:).*""", re.DOTALL)


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.DEBUG and _DEBUG.search(message := record.getMessage()):
            record.msg, record.args = _WIRE.sub("(the bytes are not logged)", message), ()
        if isinstance(record.msg, str) and _QUOTING.search(record.msg):
            record.msg = _QUOTING.sub(r"\1 (the bytes are not logged)", record.msg)
        return True


_redaction = _Redaction()


def redact_proxy_log() -> None:
    """Keep wire bytes out of mitmproxy's own log; a second call changes nothing."""
    for name in ("mitmproxy.proxy.server", "mitmproxy.proxy.layers.http._http_h2"):
        logging.getLogger(name).addFilter(_redaction)
