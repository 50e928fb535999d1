"""The admin endpoint: an HTTP server beside the proxy, on the same event loop.

It is for the people and programs of this machine. What it keeps to:
- GET changes nothing; what changes something is a POST that no other site's page can send.
- A browser that was led here by a name of its attacker's (DNS rebinding) is refused: the Host must
  be an address, `localhost` or the name that the server was given.
- The page shows what clients sent. Nothing but its own files can run in it (`assets`).
- No client can hold more than a bounded share: bodies, heads, idle time and connections have a
  limit. The newest connection takes the place of the oldest: a probe gets through when someone else
  holds all of them.
"""

import asyncio
import errno
import logging
import re
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any, cast, override
from urllib.parse import urlsplit

import msgspec
from tornado import iostream, web
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

from pointsman.admin.assets import PAGE_POLICY, Asset, assets
from pointsman.admin.feed import Feed, Viewer
from pointsman.admin.source import Source
from pointsman.telemetry.live import read_cursor

logger = logging.getLogger(__name__)

# The text format of Prometheus.
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ADDRESS = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]/\s]*)):(?P<port>\d{1,5})\Z")
_HIGHEST_PORT = 65535
_MAX_CONNECTIONS = 100
_MAX_BODY = 4 * 1024
_MAX_HEAD = 16 * 1024
_IDLE_SECONDS = 60.0
_BODY_SECONDS = 5.0
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server:
    """A running endpoint.

    Attributes:
        address: where it listens, with the real port: `127.0.0.1:15020`, `unix:/path`.
        health_only: whether it tells of health and metrics alone.
    """

    def __init__(
        self, server: HTTPServer, bound: "_Bound", feed: Feed, *, health_only: bool
    ) -> None:
        self.address = bound.address
        self.health_only = health_only
        self._feed = feed
        self._server = server
        self._bound = bound

    def stop(self) -> None:
        """Stop listening; a second call changes nothing."""
        self._server.stop()
        self._feed.stop()
        self._bound.remove_file()

    async def close(self) -> None:
        """Stop listening and close every connection; a second call changes nothing."""
        self.stop()
        await self._server.close_all_connections()


def serve(source: Source, address: str, *, health_only: bool = False) -> Server:
    """Listen on an address, in the running event loop.

    Args:
        source: what is shown.
        address: `host:port`, `[::1]:port`, `:port` (every interface) or `unix:/path`; with port 0
            the system chooses one.
        health_only: serve `/healthz`, `/readyz` and `/metrics` alone, by whatever name: for probes
            that come from outside.

    Raises:
        ValueError: the address is none of these.
        OSError: nothing can listen there; `strerror` tells why and how to mend it.
    """
    bound = _bind(address)
    feed = Feed(source)
    application = web.Application(
        _routes(source, feed, health_only=health_only),
        default_handler_class=_NotFound,
        default_handler_args={"source": source},
        log_function=lambda _: None,
        compress_response=False,
        hosts=None if health_only else bound.names,
    )
    server = _BoundedServer(
        application,
        max_header_size=_MAX_HEAD,
        max_body_size=_MAX_BODY,
        max_buffer_size=_MAX_HEAD + _MAX_BODY,
        idle_connection_timeout=_IDLE_SECONDS,
        body_timeout=_BODY_SECONDS,
    )
    server.add_sockets([bound.socket])
    return Server(server, bound, feed, health_only=health_only)


# --- where it listens -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bound:
    """A listening socket. `names` are what a Host may be; None: anything."""

    socket: socket.socket
    address: str
    names: frozenset[str] | None
    file: Path | None = None
    inode: int = 0

    def remove_file(self) -> None:
        """Remove the socket's file, unless another process has put its own there."""
        try:
            if self.file is not None and self.file.lstat().st_ino == self.inode:
                self.file.unlink()
        except OSError:
            pass  # it is gone, or in a folder that is read-only by now


def _bind(address: str) -> _Bound:
    if address.startswith("unix:"):
        return _bind_unix(Path(address.removeprefix("unix:")))
    match = _ADDRESS.match(address.strip())
    if match is None or int(match["port"]) > _HIGHEST_PORT:
        raise ValueError(
            f"{address!r} is no address to listen on; write host:port, such as 127.0.0.1:15020,"
            " [::1]:port or unix:/path"
        )
    host, port = match["six"] or match["host"], int(match["port"])
    try:
        family, where = _resolve(host, port)
        every = where[0] == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(where, family=family, dualstack_ipv6=every)
    except OSError as error:
        raise _explained(address, error) from None
    listening.setblocking(False)
    found, chosen = listening.getsockname()[:2]
    shown = f"[{found}]" if family == socket.AF_INET6 else found
    return _Bound(listening, f"{shown}:{chosen}", frozenset({"localhost", host.lower()} - {""}))


def _resolve(host: str, port: int) -> tuple[int, tuple[str, int]]:
    """Return the family and the address; without a host that of every interface."""
    if not host:
        if socket.has_dualstack_ipv6():
            return socket.AF_INET6, ("::", port)
        return socket.AF_INET, ("0.0.0.0", port)  # noqa: S104 (asked for)
    # A name that has addresses of both kinds gets its IPv4 one, as `localhost` is meant.
    family, *_, where = min(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    return family, (str(where[0]), port)


def _explained(address: str, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    if isinstance(error, socket.gaierror):
        reason, mend = f"its name is not known ({reason})", "write an IP address"
    elif error.errno == errno.EADDRINUSE:
        reason, mend = "it is in use", "choose another port, or end the process that has it"
    elif error.errno == errno.EACCES:
        mend = "choose a port from 1024 on"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason, mend = "it is no address of this machine", "write 127.0.0.1 or one that it has"
    else:
        mend = "choose another address"
    return OSError(error.errno, f"{address} can't be listened on: {reason}; {mend}")


def _bind_unix(path: Path) -> _Bound:
    try:
        _refuse_taken(path)
        listening = bind_unix_socket(str(path), mode=0o600)
        inode = path.lstat().st_ino
    except OSError as error:
        raise OSError(
            error.errno,
            f"unix:{path} can't be listened on: {error.strerror or error}; give the path of a new"
            " file in a folder that the proxy's user may write to",
        ) from None
    return _Bound(listening, f"unix:{path}", None, path, inode)


def _refuse_taken(path: Path) -> None:
    """A socket that no one listens on any more may be replaced, and nothing else."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _without_what_clients_sent(record: logging.LogRecord) -> bool:
    """Leave out of tornado's own log what it quotes of a request, in its words or a traceback."""
    if isinstance(record.msg, str) and record.msg.startswith("Malformed HTTP message"):
        sender = record.args[0] if isinstance(record.args, tuple) and record.args else "?"
        record.msg, record.args = "malformed HTTP message from %s", (sender,)
    if record.exc_info and record.exc_info[0]:
        record.msg = f"{record.msg} ({record.exc_info[0].__name__})"
        record.exc_info = record.exc_text = None
    return True


logging.getLogger("tornado.general").addFilter(_without_what_clients_sent)


class _BoundedServer(HTTPServer):
    """tornado's server with a bound on connections."""

    @override
    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self._streams: dict[int, iostream.IOStream] = {}

    @override
    def handle_stream(self, stream: iostream.IOStream, address: tuple[Any, ...]) -> None:
        # In the order in which they came; those that have ended are left out.
        self._streams = {key: old for key, old in self._streams.items() if not old.closed()}
        if len(self._streams) >= _MAX_CONNECTIONS:
            self._streams.pop(next(iter(self._streams))).close()
        self._streams[id(stream)] = stream
        super().handle_stream(stream, address)


# --- what it answers ------------------------------------------------------------------------------


def _routes(
    source: Source, feed: Feed, *, health_only: bool
) -> Sequence[tuple[str, type["Handler"], Any]]:
    given = {"source": source}
    health = [
        (r"/healthz", _Health, given),
        (r"/readyz", _Ready, given),
        (r"/metrics", _Metrics, given),
    ]
    if health_only:
        return health
    return [
        *health,
        (r"/config", _Config, given),
        (r"/drain", _Drain, given),
        (r"/api/live", _Live, given),
        (r"/api/events", _Events, {**given, "feed": feed}),
        *((re.escape(path), _Asset, {**given, "asset": asset}) for path, asset in assets().items()),
    ]


class Handler(web.RequestHandler):
    """What all answers share: who may ask, the headers, how a fault is told."""

    source: Source

    @override
    def initialize(self, source: Source) -> None:
        self.source = source

    @override
    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    @override
    def compute_etag(self) -> None:
        """Name no version: nothing is stored."""

    @override
    def prepare(self) -> None:
        hosts: frozenset[str] | None = self.settings["hosts"]
        if hosts is not None and not _is_local(self.request.host, hosts):
            raise web.HTTPError(
                403, reason="Wrong host: ask by IP address, localhost or the configured name"
            )
        if self.request.method not in ("GET", "HEAD") and not self._from_here():
            raise web.HTTPError(403, reason="Requests of other sites are refused")

    def _from_here(self) -> bool:
        """Tell whether it is no browser that asks, or one that shows a page of ours."""
        headers = self.request.headers
        origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "none")
        own = origin is None or _authority(origin) == self.request.host.lower()
        return own and site in ("same-origin", "none")

    def write_json(self, answer: dict[str, Any], status: int = 200) -> None:
        """Answer with JSON as people read it. The rules of a cluster may be megabytes of it."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.format(msgspec.json.encode(answer), indent=2) + b"\n")

    @override
    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:  # noqa: PLR2004 (RFC 9110, 15.5.6)
            known = ("GET", "HEAD", "POST")
            methods = [name for name in known if name.lower() in vars(type(self))]
            self.set_header("Allow", ", ".join(methods))
        self.write_json({"error": self._reason}, status_code)

    @override
    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Tell of our own faults in one line, without their message, which may quote anything."""
        if isinstance(value, web.HTTPError) or typ is None:
            return
        last = extract_tb(tb)[-1] if tb else None
        where = f" in {Path(last.filename).name}:{last.lineno}" if last else ""
        path = self.request.path[:100].encode("unicode_escape").decode()
        logger.error(
            "the admin endpoint failed at %s %s: %s%s",
            self.request.method,
            path,
            typ.__name__,
            where,
        )


class _NotFound(Handler):
    @override
    def prepare(self) -> None:
        super().prepare()
        raise web.HTTPError(404)


class _Health(Handler):
    def get(self) -> None:
        """The loop lives: it has come to this."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("ok\n")

    head = get  # tornado leaves the body out


class _Ready(Handler):
    async def get(self) -> None:
        """Whether traffic may come; `?exclude=keys` though keys are missing."""
        excluded = self.get_query_arguments("exclude")
        if set(excluded) - {"keys"}:
            raise web.HTTPError(400, reason="exclude is keys")
        found = await self.source.readiness(keys=not excluded)
        answer = {
            "ready": found.ready,
            "reasons": list(found.reasons),
            "warnings": list(found.warnings),
            "under_way": found.under_way,
        }
        self.write_json(answer, 200 if found.ready else 503)

    head = get


class _Config(Handler):
    async def get(self) -> None:
        """The live table."""
        self.write_json(await self.source.config())

    head = get


class _Drain(Handler):
    async def post(self) -> None:
        """Begin to drain; `?soft=true` goes on accepting."""
        soft = self.get_query_argument("soft", "false").lower()
        if soft not in ("true", "false"):
            raise web.HTTPError(400, reason="soft is true or false")
        await self.source.drain(soft=soft == "true")
        self.write_json({"draining": True, "soft": soft == "true"}, 202)


class _Metrics(Handler):
    async def get(self) -> None:
        """What Prometheus scrapes."""
        page = await self.source.metrics()
        self.set_header("Content-Type", METRICS_TYPE)
        self.finish(page)

    head = get


class _Live(Handler):
    async def get(self) -> None:
        """What the page shows; `?after=` leaves out the exchanges of an earlier cursor."""
        try:
            after = read_cursor(self.get_query_argument("after", ""))
        except ValueError:
            raise web.HTTPError(400, reason="after is no cursor") from None
        found = await self.source.live(after or None)
        # Of hundreds of rows that the supervisor asks for each second.
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(found))


class _Events(Handler):
    """The live part of the page, as server-sent events (`feed`)."""

    @override
    def initialize(self, source: Source, feed: Feed) -> None:  # type: ignore[override]
        super().initialize(source)
        self._feed = feed
        self._viewer: Viewer | None = None

    @override
    def prepare(self) -> None:
        super().prepare()
        if not self._from_here():
            # It could not read them, but would take the place of one who can.
            raise web.HTTPError(403, reason="Requests of other sites are refused")

    async def get(self) -> None:
        """Send each event until one side ends it."""
        self._viewer = viewer = self._feed.join(self._cut)
        if viewer is None:
            self.set_header("Retry-After", "10")
            self.write_json({"error": "Too many viewers: close another page"}, 503)
            return
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        try:
            async for frame in viewer.frames():
                self.write(frame)
                await self.flush()
        except iostream.StreamClosedError:
            pass
        except asyncio.CancelledError:
            pass  # The process ends. Tornado would log what it takes for a fault.
        finally:
            self._feed.leave(viewer)

    def _cut(self) -> None:
        cast("HTTP1Connection", self.request.connection).stream.close()

    @override
    def on_connection_close(self) -> None:
        if self._viewer is not None:
            self._feed.leave(self._viewer)


class _Asset(Handler):
    """A file of the page."""

    @override
    def initialize(self, source: Source, asset: Asset) -> None:  # type: ignore[override]
        super().initialize(source)
        self._asset = asset

    def get(self) -> None:
        """The file, unless the browser has this very one."""
        self.set_header("Content-Security-Policy", PAGE_POLICY)
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Etag", self._asset.etag)
        if self.check_etag_header():
            self.set_status(304)
            return
        self.set_header("Content-Type", self._asset.type)
        self.finish(self._asset.content)

    def head(self) -> None:
        """The same without the file."""
        self.get()


def _authority(origin: str) -> str | None:
    """Return the host and port of an Origin; None where it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_local(host: str, names: frozenset[str]) -> bool:
    """Tell whether a Host is an address or one of these names; the port does not matter."""
    name = host.strip().lower()
    if name.startswith("["):
        name, _, port = name[1:].partition("]")
        if not re.fullmatch(r"(?::\d{0,5})?", port):
            return False
    else:
        name = name.rpartition(":")[0] or name
    try:
        ip_address(name)
    except ValueError:
        return name.removesuffix(".") in names
    return True
