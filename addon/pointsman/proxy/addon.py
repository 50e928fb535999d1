"""The addon: options, the few hooks that the stream layer leaves to do, and the life of the rules.

Requests to LLM hosts are not handled in hooks: a hook that raises lets mitmproxy forward the
client's original request. The stream layer decides; the hooks here put it in place.
"""

import asyncio
import logging
import os
from pathlib import Path

from mitmproxy import ctx, exceptions, http, tcp, tls
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.next_layer import NextLayer as NextLayerAddon
from mitmproxy.connection import Client, Server
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer
from mitmproxy.tools.dump import DumpMaster

from pointsman.config.faults import Fault
from pointsman.config.labels import parse_labels
from pointsman.config.loading import Instance, Loaded, LoadError
from pointsman.config.problems import did_you_mean
from pointsman.kubernetes.api import MissingClientError, require_client
from pointsman.kubernetes.backends import BACKENDS_SECONDS, ClusterBackends
from pointsman.kubernetes.rules import own_namespace
from pointsman.proxy import contentviews, tuning
from pointsman.proxy.commands import Commands
from pointsman.proxy.connections import ConnectTimeouts
from pointsman.proxy.draining import Drain
from pointsman.proxy.egress import guarded_hosts, refuse_raw, refuse_tls
from pointsman.proxy.endpoint import Endpoint, refuse_change
from pointsman.proxy.exporting import Exporting
from pointsman.proxy.http1 import carry_trailers
from pointsman.proxy.keeping import KeepFlows
from pointsman.proxy.layers import Layer
from pointsman.proxy.measuring import Measuring
from pointsman.proxy.options import (
    allowed_keys,
    body_memory,
    declare,
    drain_timeout,
    parse_size,
    workload_name,
)
from pointsman.proxy.own_keys import OwnKeys
from pointsman.proxy.passthrough import await_more, leave_encrypted, names_of, reconsider
from pointsman.proxy.raw import watch_raw
from pointsman.proxy.redirected import Redirected
from pointsman.proxy.relayed import Relayed
from pointsman.proxy.replays import carry_replays
from pointsman.proxy.router import Router
from pointsman.proxy.rules import CLUSTER, Rules, rules_of
from pointsman.proxy.upstream_tls import OPTIONS as TLS_OPTIONS
from pointsman.proxy.upstream_tls import trust_of
from pointsman.telemetry.access_log import AccessLog
from pointsman.telemetry.amounts import several
from pointsman.telemetry.cost import load_prices

logger = logging.getLogger(__name__)

_RULES_OPTIONS = {
    "llm_gateways",
    "llm_key_dirs",
    "llm_key_variables",
    "llm_kubernetes",
    "llm_labels",
    "llm_rules",
    "llm_status",
}


class Pointsman:
    """The mitmproxy addon."""

    name = "pointsman"

    def __init__(self) -> None:
        self.router = Router()
        self.drain = Drain(self.router)
        self._measuring = Measuring(self.router)
        self._exporting = Exporting(self.router)
        self.endpoint = Endpoint(self.router, self.drain, self._faults)
        self._access_log: AccessLog | None = None
        self._running = False
        self._connect_timeouts = ConnectTimeouts()
        self._watcher: asyncio.Task[None] | None = None
        self._rules: Rules | None = None
        self._backends = ClusterBackends(self._backends_changed)
        self._keep_flows = KeepFlows()
        self._redirected = Redirected()
        self._relayed = Relayed()

    # --- options and life -------------------------------------------------------------------------

    def load(self, loader: Loader) -> None:
        """Declare the options."""
        declare(loader)
        tuning.set_default(ctx.options, "connection_strategy", "lazy")
        tuning.set_default(ctx.options, "tcp_timeout", tuning.NEVER_SECONDS)
        tuning.write_log_lines_at_once()
        contentviews.register()
        self._mend_layer_choice()
        carry_replays(self.router)
        carry_trailers()
        commands = Commands(self.router, self.endpoint.live_now, self._load_rules)
        ctx.master.commands.collect_commands(commands)
        self._take_options()

    def _take_options(self) -> None:
        """Apply what `--set` says of our options now, as mitmproxy does next: but tell of a fault.

        A value that is no bool, or an option that is set twice, makes mitmproxy drop this addon
        without a word and pass everything through unrouted.
        """
        try:
            ctx.options.process_deferred()
        except exceptions.OptionsError as error:
            logger.error("%s", error)  # noqa: TRY400 (see configure)
            raise

    def _refuse_unknown_options(self) -> None:
        """Tell of options that no one knows: mitmproxy ignores a misspelt `--set` in silence."""
        known = [name for name in ctx.options.keys() if name.startswith("llm_")]  # noqa: SIM118
        for name in ctx.options.deferred:
            if name.startswith("llm"):
                meant = did_you_mean(name, known)
                logger.error("unknown option %s%s", name, meant)

    def configure(self, updated: set[str]) -> None:
        """Take over changed options.

        Raises:
            OptionsError: a value can't be used.
        """
        try:
            self._configure(updated)
        except exceptions.OptionsError as error:
            if self._running:
                raise
            # An error record during start-up makes mitmproxy exit with 1; raised, it would come
            # with a traceback.
            logger.error("%s", error)  # noqa: TRY400 (the message is for the options' author)

    def _configure(self, updated: set[str]) -> None:
        if "llm_body_limit" in updated:
            self.router.body_limit = parse_size("llm_body_limit", ctx.options.llm_body_limit)
        if "llm_body_memory" in updated:
            self.router.bodies.most = body_memory(ctx.options.llm_body_memory)
        if "llm_observe" in updated:
            self.router.observe = ctx.options.llm_observe
        if updated & TLS_OPTIONS:
            self.router.mirrors.trust = trust_of(ctx.options)
        if self._running:
            refuse_change(updated)
        if "llm_drain_timeout" in updated:
            self.drain.timeout = drain_timeout(ctx.options.llm_drain_timeout)
        self._configure_telemetry(updated)
        if updated & {"llm_passthrough", "llm_unknown"}:
            self.router.guard(**guarded_hosts(ctx.options.llm_passthrough, ctx.options.llm_unknown))
        if updated & _RULES_OPTIONS:
            self._load_rules()
        if "connection_strategy" in updated and ctx.options.connection_strategy != "lazy":
            logger.warning(
                "connection_strategy=%s breaks routing: mitmproxy then connects to the address that"
                " the client dialled before Pointsman can choose a provider, and hosts that only"
                " rules know do not answer; remove the setting or use lazy",
                ctx.options.connection_strategy,
            )

    def _configure_telemetry(self, updated: set[str]) -> None:
        if "llm_keep_flows" in updated:
            self._keep_flows.bound(ctx.options.llm_keep_flows)
        if "llm_access_log" in updated:
            self._open_access_log(ctx.options.llm_access_log)
        if "llm_metrics" in updated:
            self._measuring.switch(on=ctx.options.llm_metrics)
        if "llm_otel" in updated:
            self._exporting.switch(on=ctx.options.llm_otel)

    def running(self) -> None:
        """Begin to watch the rules; slim mitmproxy down where no one can see it."""
        self._running = True
        self._refuse_unknown_options()
        tuning.keep_loaded(ctx.master, self)
        self.router.keep_bodies = not isinstance(ctx.master, DumpMaster) or bool(
            ctx.options.save_stream_file or ctx.options.hardump
        )
        if isinstance(ctx.master, DumpMaster):
            # What is saved is looked at later.
            self.router.keep_ways |= bool(ctx.options.save_stream_file)
            tuning.slim_down(ctx.master)
            self.router.shows = tuning.flows_are_seen(ctx.master, self)
        else:
            tuning.end_killed_at_once()
            self.router.own_keys = OwnKeys()
            self.endpoint.collect()  # for llm.usage
            self.router.keep_ways = True
            self._keep_flows.attach(ctx.master)
            tuning.show_comments(ctx.options)
        tuning.redact_proxy_log()
        load_prices()
        self.drain.listen_to_signals()
        self._measuring.running()
        self.endpoint.open()
        self._watch()
        tuning.spare_what_is_loaded()

    def done(self) -> None:
        """Close what is open; each request under way still gets its log line."""
        if self._watcher:
            self._watcher.cancel()
            self._watcher = None
        self._backends.stop()
        self._relayed.stop()
        self.endpoint.stop()
        self.router.stop(self.drain.why())
        self._exporting.close()
        self._measuring.close()
        if self._access_log:
            self._access_log.close()

    def _open_access_log(self, destination: str) -> None:
        if destination == "-" and type(ctx.master).__name__ == "ConsoleMaster":
            destination = "off"  # there, standard output is the screen
        try:
            opened = AccessLog(destination)
        except OSError as error:
            raise exceptions.OptionsError(
                f"llm_access_log: {destination} can't be opened for writing ({error.strerror})"
            ) from None
        if self._access_log:
            self._access_log.close()
        self._access_log = opened
        self.router.sinks.put("access log", opened.emit)
        if destination == "-" and isinstance(ctx.master, DumpMaster):
            # Lines for people and lines for machines do not share a stream.
            tuning.set_default(ctx.options, "flow_detail", 0)

    def _load_rules(self) -> None:
        options = ctx.options
        try:
            labels = parse_labels(options.llm_labels)
        except (OSError, ValueError) as error:
            raise exceptions.OptionsError(f"llm_labels: {error}") from None
        cluster = options.llm_rules.startswith(CLUSTER)
        backends = self._backends if cluster or options.llm_kubernetes else None
        instance = Instance(
            labels=labels,
            gateways=frozenset(options.llm_gateways),
            namespace=own_namespace(),
            backends=backends,
            allowed=allowed_keys(options.llm_key_dirs, options.llm_key_variables),
        )
        try:
            if backends is not None:
                require_client()
            rules = rules_of(
                options.llm_rules,
                instance,
                backends=backends,
                confdir=Path(options.confdir).expanduser(),
                writes_status=options.llm_status,
            )
            if not (cluster and self._running):  # then they go live when they are known
                loaded = rules.load()
        except (LoadError, MissingClientError, ValueError) as error:
            raise exceptions.OptionsError(str(error)) from None
        self._rules = rules
        self.router.workload = workload_name(labels)
        self.router.namespace = os.environ.get("POD_NAMESPACE")
        if not (cluster and self._running):
            if backends is not None and not self._running:
                backends.read_once(loaded.table, BACKENDS_SECONDS)
            self._go_live(loaded)
        if self._running:
            self._watch()

    def _go_live(self, loaded: Loaded) -> None:
        self.router.go_live(loaded.table)
        self._measuring.rules_live()
        self.endpoint.rules_live(str(self._rules))
        self._backends.keep(loaded.table)
        if self._running:
            self._relayed.rules_live(ctx.master, self.router.table)
        for warning in loaded.warnings:
            logger.warning("%s", warning)
        upstream = any(mode.startswith("upstream:") for mode in ctx.options.mode)
        if upstream and any(rule.mirror for _, rule in loaded.table.rules()):
            logger.warning(
                "with mode upstream: nothing is mirrored: no copy may go past that proxy"
            )
        skipped = f"; skipped: {', '.join(loaded.skipped)}" if loaded.skipped else ""
        logger.info(
            "rules live from %s: %s, %s%s",
            self._rules,
            several(len(loaded.providers), "provider"),
            several(len(loaded.routes), "route"),
            skipped,
        )
        if any(fault.kind == "refused" for fault in self._faults()):
            self._measuring.rules_refused()

    def _faults(self) -> tuple[Fault, ...]:
        return (*(self._rules.faults if self._rules else ()), *self._backends.faults)

    def _watch(self) -> None:
        if self._watcher:
            self._watcher.cancel()
        self._watcher = asyncio.get_running_loop().create_task(self._follow())
        self._watcher.add_done_callback(_tell_why)

    async def _follow(self) -> None:
        await self._backends.prepare(self.router.table)
        if self._rules:
            await self._rules.watch(self._take_over, self._measuring.rules_refused)

    async def _take_over(self, loaded: Loaded) -> None:
        await self._backends.prepare(loaded.table)
        self._go_live(loaded)

    def _backends_changed(self) -> None:
        self.router.endpoints_changed()
        if self._rules:
            self._rules.look_again()

    # --- connections ------------------------------------------------------------------------------

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Let mitmproxy choose the layer, then put ours in the place of its HTTP layer."""
        if nextlayer.layer is None:
            # mitmproxy's own addon for this comes after us.
            chooser: NextLayerAddon = ctx.master.addons.get("nextlayer")
            chooser.next_layer(nextlayer)
        if nextlayer.layer is not None:
            nextlayer.layer = self._with_our_http_layer(nextlayer.layer)

    def _mend_layer_choice(self) -> None:
        """Put our judgement around mitmproxy's choice; what it defers is asked again later."""
        chooser: NextLayerAddon | None = ctx.master.addons.get("nextlayer")
        if chooser is None:
            return
        choose = chooser._next_layer  # noqa: SLF001 (there is no other place; see test_internals)

        def judge(context: Context, client_data: bytes, server_data: bytes) -> layer.Layer | None:
            await_more(context, client_data, server_data)
            if refusing := refuse_tls(self.router, context, client_data):
                return refusing
            chosen = choose(context, client_data, server_data)
            chosen = reconsider(self.router.table, context, client_data, chosen)
            chosen = refuse_raw(self.router, context, chosen)
            return watch_raw(self.router, context, client_data, chosen)

        chooser._next_layer = judge  # type: ignore[method-assign,assignment] # noqa: SLF001

    def _with_our_http_layer(self, top: layer.Layer) -> layer.Layer:
        if type(top) is HttpLayer:
            top.context.layers.remove(top)
            return Layer(top.context, top.mode, self.router)
        child = getattr(top, "child_layer", None)
        if child is not None:
            top.child_layer = self._with_our_http_layer(child)  # type: ignore[attr-defined]
        return top

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Decrypt only what is ours."""
        if leave_encrypted(self.router.table, data):
            data.ignore_connection = True
            self._relayed.note(data.context.client, names_of(data))

    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Bound how long the connection takes, and let none lead to our own endpoint."""
        data.server.error = data.server.error or self.endpoint.refuse(data.server.address)
        self._connect_timeouts.begin(data.server)

    def server_connected(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Without TLS, the connection can be used now."""
        tuning.keep_alive(ctx.master, data.client, data.server)
        self.router.reading.attach(ctx.master, data.client, data.server)
        if not data.server.tls:
            self._connect_timeouts.end(data.server)

    def tls_established_server(self, data: tls.TlsData) -> None:
        """With TLS, it can be used now."""
        if isinstance(data.conn, Server):
            self._connect_timeouts.end(data.conn)

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        """It has failed."""
        self._connect_timeouts.end(data.server)

    def server_disconnected(self, data: server_hooks.ServerConnectionHookData) -> None:
        """It has failed during TLS, or is over."""
        self.router.reading.forget(data.server)
        self._connect_timeouts.end(data.server)

    def client_connected(self, client: Client) -> None:
        """Refuse what was not redirected; lift mitmproxy's limit of five upstream connections."""
        self._redirected.judge(ctx.master, client)
        tuning.allow_parallel_calls(ctx.master, client)
        tuning.keep_alive(ctx.master, client, client)
        self.router.reading.attach(ctx.master, client, client)

    def client_disconnected(self, client: Client) -> None:
        """Close exchanges that ended without a word."""
        self.router.client_gone(client.id)
        self._relayed.forget(client)
        self.router.reading.forget(client)
        tuning.close_for_good(ctx.master, client)

    # --- what is kept -----------------------------------------------------------------------------
    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """Keep no history that no one can see."""
        if isinstance(ctx.master, DumpMaster) and flow.websocket:
            del flow.websocket.messages[:-1]

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        """Keep no history that no one can see."""
        if isinstance(ctx.master, DumpMaster):
            del flow.messages[:-1]


def _tell_why(watcher: asyncio.Task[None]) -> None:
    """Tell of a watch that has ended by itself: from then on, changes would be missed unseen."""
    if not watcher.cancelled() and (error := watcher.exception()):
        logger.error("the rules are no longer watched; restart the proxy", exc_info=error)
