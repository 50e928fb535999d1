"""The admin endpoint of this process: which options open it, and what it tells of a proxy.

It never answers for what it can't know: whatever it shows is looked at when it is asked for.
"""

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from mitmproxy import ctx, exceptions
from mitmproxy.addons.proxyserver import Proxyserver

import pointsman
from pointsman.admin.server import Server, serve
from pointsman.admin.shown import fingerprint, show_key, show_table
from pointsman.admin.source import Readiness
from pointsman.config.faults import Fault, Kind
from pointsman.config.resources import authority
from pointsman.config.table import Target
from pointsman.proxy import tuning
from pointsman.proxy.draining import Drain
from pointsman.proxy.router import Router
from pointsman.proxy.watching import Watching
from pointsman.routing.planning import best, endpoint_states
from pointsman.sidecar.handover import admin_port
from pointsman.telemetry import metrics
from pointsman.telemetry.live import Cursor

logger = logging.getLogger(__name__)

OPTIONS = ("llm_admin", "llm_health")
_OFF = "off"
_CERTIFICATE = "mitmproxy-ca-cert.pem"
# Of mitmproxy's own options those that tell how traffic comes here and goes on.
_SHOWN = (
    "mode",
    "listen_host",
    "listen_port",
    "confdir",
    "connection_strategy",
    "tcp_timeout",
    "http2",
    "ssl_insecure",
    "ssl_verify_upstream_trusted_ca",
)
_WARNINGS: dict[Kind, str] = {
    "refused": "a change of the rules was refused: see /config",
    "outdated": "the rules may be out of date: see /config",
}
_VERSION_DIGITS = 16


class Endpoint:
    """The listeners of one process, and their source (`admin.source.Source`).

    `faults` tells why what is live may not be what the rules say.
    """

    def __init__(
        self, router: Router, drain: Drain, faults: Callable[[], Sequence[Fault]] = lambda: ()
    ) -> None:
        self._router = router
        self._faults = faults
        self._drain = drain
        self._watching = Watching(router)
        self._servers: list[Server] = []
        self._rules: str | None = None
        self._live_since: str | None = None

    # --- its life ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen where the options say; what is wrong with them is an error record."""
        for name in OPTIONS:
            if (address := getattr(ctx.options, name)) != _OFF:
                self._open(name, address)

    def _open(self, name: str, address: str) -> None:
        try:
            server = serve(self, address, health_only=name == "llm_health")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            if tuning.is_set(ctx.options, name):
                logger.error("%s: %s", name, why)  # noqa: TRY400 (for the options' author)
            else:
                logger.warning(
                    "there is no admin endpoint: %s; set llm_admin to another address, or to off",
                    why,
                )
            return
        self._servers.append(server)
        if not server.health_only:
            self._watching.begin()
        logger.info("%s endpoint at %s", name.removeprefix("llm_"), server.address)

    def stop(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.stop()
        self._watching.end()

    def refuse(self, address: tuple[str, int] | None) -> str | None:
        """Return why the proxy must not connect to an address: it is the admin endpoint's own.

        Whoever may only use the proxy must not reach through it what listens on the loopback. A
        name may lead anywhere by the time that it is looked up, so on that port it is refused too.
        """
        if address is None:
            return None
        own = any(_same_port(server, address[1]) for server in self._servers)
        if not own and address[1] != admin_port():
            return None
        try:
            found = ipaddress.ip_address(address[0].partition("%")[0])
        except ValueError:
            return "The proxy does not connect to the port of its admin endpoint by a name."
        mapped = getattr(found, "ipv4_mapped", None) or found
        if mapped.is_loopback or mapped.is_unspecified:
            return "The proxy does not connect to its own admin endpoint."
        return None

    def collect(self) -> None:
        """Collect exchanges from now on, whether or not an endpoint shows them."""
        self._watching.begin()

    def live_now(self) -> dict[str, Any]:
        """Return what has been collected."""
        return self._watching.snapshot()

    # --- the rules --------------------------------------------------------------------------------

    def rules_live(self, where: str) -> None:
        """Note that rules have gone live."""
        self._rules, self._live_since = where, _time(time.time())
        self._watching.rules_live()

    # --- what it tells ----------------------------------------------------------------------------

    async def readiness(self, *, keys: bool = True) -> Readiness:
        """Tell whether traffic can be served; without `keys`, though keys are missing."""
        table = self._router.table
        reasons = ["draining"] if self._router.draining else list(self._listeners())
        if self._live_since is None:
            reasons.append("no rules are loaded")
        if not (Path(ctx.options.confdir).expanduser() / _CERTIFICATE).exists():  # noqa: ASYNC240
            reasons.append("the CA's certificate is not exported")
        warnings: list[str] = []
        if self._live_since is not None and not (table.exact or table.wildcards):
            warnings.append("no rules: nothing is routed")
        if not self._router.observe:
            missing, others = self._router.keys.look(table)
            (reasons if keys else warnings).extend(missing)
            warnings += others
        kinds = {fault.kind for fault in self._faults()}
        warnings += [warning for kind, warning in _WARNINGS.items() if kind in kinds]
        return Readiness(tuple(reasons), self._router.under_way, tuple(warnings))

    def _listeners(self) -> Iterable[str]:
        proxyserver: Proxyserver = ctx.master.addons.get("proxyserver")
        servers = list(proxyserver.servers)
        if not servers:
            yield "no listener"
        for server in servers:
            if not server.is_running:
                yield f"the listener of mode {server.mode.full_spec} is not up"

    async def config(self) -> dict[str, Any]:
        """Return the live table and how it came about."""
        table, faults = self._router.table, self._faults()
        return {
            "version": pointsman.__version__,
            "rules": self._rules,
            "liveSince": self._live_since,
            "fingerprint": await asyncio.to_thread(fingerprint, table),
            "refused": _told(faults, "refused"),
            "outdated": _told(faults, "outdated"),
            "options": _options(),
            "routes": show_table(table, self._now_of),
        }

    def _now_of(self, target: Target) -> dict[str, Any]:
        key = show_key(target.config.credential if target.config else None)
        states = endpoint_states(target, self._router.health, time.monotonic())
        found = {"state": "no key" if "keyProblem" in key else best(s for _, s in states), **key}
        if target.endpoints is None:
            return found
        if not states:
            return {**found, "state": "no endpoint"}
        shown = [
            {"address": authority(*one.address), "state": state}
            for one, state in states
            if one.address
        ]
        return {**found, "endpoints": shown}

    async def metrics(self) -> bytes:
        """Return the metrics of this process."""
        return await asyncio.to_thread(metrics.render)

    async def live(self, after: Cursor | None = None) -> dict[str, Any]:
        """Return the snapshot for the page."""
        faults = sha256(repr(self._faults()).encode()).hexdigest()[:_VERSION_DIGITS]
        version = f"{self._live_since}, faults {faults}"
        return {**self._watching.snapshot(after), "config_versions": [version]}

    async def drain(self, *, soft: bool = False) -> None:
        """Begin to drain."""
        if soft:
            self._drain.soften()
        else:
            self._drain.begin()


def refuse_change(updated: set[str]) -> None:
    """Refuse to open other listeners while the proxy runs.

    Raises:
        OptionsError: such an option has changed.
    """
    for name in OPTIONS:
        if name in updated:
            raise exceptions.OptionsError(f"{name} is read at the start; restart with another")


def _options() -> dict[str, Any]:
    names = sorted(name for name in ctx.options.keys() if name.startswith("llm_"))  # noqa: SIM118
    every = [*names, *(name for name in _SHOWN if name in ctx.options)]
    return {name: getattr(ctx.options, name) for name in every}


def _same_port(server: Server, port: int) -> bool:
    return not server.health_only and server.address.rpartition(":")[2] == str(port)


def _told(faults: Iterable[Fault], kind: Kind) -> dict[str, Any] | None:
    """Return the faults of a kind, and since when there are some."""
    found = [fault for fault in faults if fault.kind == kind]
    if not found:
        return None
    since = min(fault.since for fault in found)
    return {"since": _time(since), "problems": [fault.text for fault in found]}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
