"""What the stream layer leans on inside mitmproxy, none of which is a public interface.

When one of these fails after an upgrade, read `proxy/layers.py`, `proxy/streams.py` and
`proxy/connections.py` against the new source before anything else.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import h11
import pytest
from h2.connection import H2Connection
from h11._readers import ContentLengthReader
from mitmproxy import options, optmanager
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons import clientplayback, default_addons
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver, Servers
from mitmproxy.addons.script import Script, ScriptLoader
from mitmproxy.addons.termlog import TermLogHandler
from mitmproxy.connection import Server
from mitmproxy.master import Master
from mitmproxy.proxy import layer, mode_servers, server, tunnel
from mitmproxy.proxy.layers import TCPLayer, tls
from mitmproxy.proxy.layers import http as http_layer
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream, _events, _upstream_proxy
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection, Http2Server
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from pointsman.proxy import attempts, http2, tuning
from pointsman.proxy.attempts import AttemptingStream
from pointsman.proxy.streams import Stream


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (HttpLayer.__init__, ["self", "context", "mode"]),
        (HttpLayer.make_stream, ["self", "stream_id"]),
        (HttpLayer.get_connection, ["self", "event", "reuse"]),
        (HttpLayer.event_to_child, ["self", "child", "event"]),
        (HttpStream.__init__, ["self", "context", "stream_id"]),
        (HttpStream.state_wait_for_request_headers, ["self", "event"]),
        (HttpStream.state_consume_request_body, ["self", "event"]),
        (HttpStream.state_wait_for_response_headers, ["self", "event"]),
        (HttpStream.state_stream_response_body, ["self", "event"]),
        (HttpStream.start_request_stream, ["self"]),
        (HttpStream.start_response_stream, ["self"]),
        (HttpStream.send_response, ["self", "already_streamed"]),
        (HttpStream.check_body_size, ["self", "request"]),
        (HttpStream.check_invalid, ["self", "request"]),
        (HttpStream.check_killed, ["self", "emit_error_hook"]),
        (HttpStream.handle_connect_regular, ["self"]),
        (HttpStream.handle_connect_finish, ["self"]),
        (HttpStream.handle_protocol_error, ["self", "event"]),
        (_upstream_proxy.HttpUpstreamProxy.make, ["ctx", "send_connect"]),
        (tls.ServerTLSLayer.__init__, ["self", "context", "conn"]),
        (NextLayer.next_layer, ["self", "nextlayer"]),
        (clientplayback.ReplayHandler.__init__, ["self", "flow", "options"]),
        (clientplayback.MockServer.__init__, ["self", "flow", "context"]),
        (NextLayer._get_client_hello, ["context", "data_client"]),
        (tls.ServerTLSLayer.start_handshake, ["self"]),
        (tls.ServerTLSLayer.start_tls, ["self"]),
        (tls.ServerTLSLayer.receive_handshake_data, ["self", "data"]),
        (tls.ServerTLSLayer.on_handshake_error, ["self", "err"]),
        (tls.ServerTLSLayer._handshake_finished, ["self", "err"]),
    ],
)
def test_what_is_overridden_or_called_keeps_its_parameters(
    function: Callable[..., Any], expected: list[str]
) -> None:
    assert parameters(function) == expected


def test_every_state_of_the_stream_that_is_overridden_exists_in_the_original() -> None:
    states = {**vars(AttemptingStream), **vars(Stream)}
    own = {name for name in states if name.startswith("state_")}
    assert own - set(dir(HttpStream)) == {
        "state_between_attempts",
        "state_drain",
        "state_hold_refusal",
        "state_open",
        "state_shape",
    }


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (_events.RequestHeaders, ["stream_id", "request", "end_stream", "replay_flow"]),
        (_events.ResponseHeaders, ["stream_id", "response", "end_stream"]),
        (http_layer.GetHttpConnection, ["address", "tls", "via", "transport_protocol"]),
        (http_layer.GetHttpConnectionCompleted, ["command", "reply"]),
        (http_layer.SendHttp, ["event", "connection"]),
        (http_layer.DropStream, ["stream_id"]),
    ],
)
def test_events_and_commands_keep_their_fields(event: Any, fields: list[str]) -> None:
    names = [field.name for field in dataclasses.fields(event) if field.name != "blocking"]
    assert names == fields


@pytest.mark.parametrize("event", [_events.RequestData, _events.ResponseData])
def test_data_events_take_stream_and_data(event: type) -> None:
    assert parameters(event.__init__) == ["self", "stream_id", "data"]  # type: ignore[misc]


@pytest.mark.parametrize("event", [_events.RequestProtocolError, _events.ResponseProtocolError])
def test_errors_take_stream_message_and_code(event: type) -> None:
    assert parameters(event.__init__) == ["self", "stream_id", "message", "code"]  # type: ignore[misc]


def test_the_headers_hook_comes_after_the_host_is_known_and_before_the_body_is_asked_for() -> None:
    source = inspect.getsource(HttpStream.state_wait_for_request_headers)
    transparent = source.index("mode is HTTPMode.transparent")
    hook = source.index("yield HttpRequestHeadersHook(self.flow)")
    decision = source.index("if self.flow.request.stream")
    assert transparent < hook < decision


def test_the_layer_keeps_connections_and_streams_where_ours_looks() -> None:
    source = inspect.getsource(HttpLayer.__init__)
    for attribute in ("waiting_for_establishment", "streams", "command_sources", "connections"):
        assert f"self.{attribute} = " in source
    for attribute in ("request_body_buf", "response_body_buf", "client_state", "server_state"):
        assert f"self.{attribute} = " in inspect.getsource(HttpStream.__init__)


def test_a_stream_that_is_paused_queues_its_events_where_check_killed_looks() -> None:
    assert "_paused_event_queue" in inspect.getsource(HttpStream.check_killed)


def test_layer_stacks_chain_by_child_layer() -> None:
    assert "child_layer" in inspect.getsource(tunnel.LayerStack)


def test_a_server_connection_may_be_subclassed_and_carry_our_settings() -> None:
    class Own(Server):
        settings: str

    connection = Own(address=("127.0.0.1", 1))
    connection.settings = "x"
    assert connection.get_state()


def test_connections_are_found_by_their_client_and_count_their_servers() -> None:
    assert "self.connections[connection_id] = handler" in inspect.getsource(
        Proxyserver.register_connection
    )
    assert "self.max_conns" in inspect.getsource(server.ConnectionHandler.__init__)
    assert "self.max_conns[" in inspect.getsource(server.ConnectionHandler.open_connection)


def test_the_socket_of_a_client_is_found_when_its_connection_is_told_to_be_over() -> None:
    assert "self.transports" in inspect.getsource(server.ConnectionHandler.__init__)
    assert {field.name for field in dataclasses.fields(server.ConnectionIO)} >= {"writer"}
    source = inspect.getsource(server.ConnectionHandler.handle_client)
    assert source.index("asyncio.wait([handler])") < source.index("ClientDisconnectedHook")


def test_a_worker_can_put_its_sockets_in_the_place_of_mitmproxys() -> None:
    assert parameters(mode_servers.AsyncioServerInstance.listen) == ["self", "host", "port"]
    source = inspect.getsource(mode_servers.AsyncioServerInstance._start)
    assert "self._servers = await self.listen(host, port)" in source
    assert "s.close()" in inspect.getsource(mode_servers.AsyncioServerInstance._stop)
    # Before this hook nothing may be accepted; after it come the errors of the start.
    source = inspect.getsource(Master.run)
    assert source.index("ps.setup_servers()") < source.index("await self.running()")
    assert source.index("await self.running()") < source.index("ec.finish()")


def test_a_worker_can_put_its_format_in_the_place_of_the_logs() -> None:
    assert "self.format(record)" in inspect.getsource(TermLogHandler.emit)
    assert "self._termlog_addon = termlog.TermLog()" in inspect.getsource(Master.__init__)


def test_an_option_that_the_user_has_not_set_is_told_from_one_that_was() -> None:
    opts = options.Options()
    assert opts._options["flow_detail" if "flow_detail" in opts else "mode"].value is (
        optmanager.unset
    )


def test_every_addon_that_is_removed_when_idle_is_a_default_addon() -> None:
    names = {getattr(addon, "name", type(addon).__name__.lower()) for addon in default_addons()}
    assert set(tuning._NEEDED) - names == {"dumper"}  # mitmdump adds that one itself


def test_a_script_is_registered_whenever_it_is_loaded() -> None:
    source = inspect.getsource(Script.loadscript)
    assert source.index("addons.remove(self.ns)") < source.index("addons.register(ns)")
    source = inspect.getsource(ScriptLoader.configure)
    assert "addons.remove(a)" in source
    assert "addons.register(s)" in source
    assert parameters(AddonManager._iter_hooks) == ["self", "addon", "event"]


def test_the_messages_that_quote_the_wire_are_the_ones_that_are_redacted() -> None:
    source = inspect.getsource(http_layer._http1)
    for message in (
        "Client closed connection before completing request headers",
        "unexpected server response",
        "Unexpected data from server",
        "Cannot parse HTTP response",
        "HTTP/1 protocol error",
    ):
        assert message in source
        assert tuning._QUOTING.search(f"1.2.3.4:5: {message}: b'sk-secret'")


def test_a_provider_that_goes_away_is_told_in_the_words_that_ours_knows() -> None:
    source = inspect.getsource(http_layer._http1) + inspect.getsource(http_layer._http2)
    for words in attempts._CLOSED:
        assert f'"{words}' in source, words
    assert "stream reset by" in source
    reader = ContentLengthReader(2)
    with pytest.raises(h11.RemoteProtocolError) as broken:
        reader.read_eof()
    assert f"HTTP/1 protocol error: {broken.value}".startswith(attempts._BROKEN)
    assert 'f"HTTP/1 protocol error: {e}"' in source


def test_trailers_are_put_where_mitmproxys_http1_ends_a_message() -> None:
    http1 = http_layer._http1
    for function in (http1.Http1Server.send, http1.Http1Client.send):
        assert parameters(function) == ["self", "event"]
        assert 'SendData(self.conn, b"0\\r\\n\\r\\n")' in inspect.getsource(function)
    reading = inspect.getsource(http1.Http1Connection.read_body)
    assert "self.body_reader(self.buf)" in reading
    assert "self.body_reader.read_eof()" in reading
    assert reading.index("if h11_event.headers") < reading.index("self.ReceiveEndOfMessage")
    assert "connections.setdefault(self.context.client" in inspect.getsource(
        HttpLayer._handle_event
    )
    for maker in (HttpLayer, http_layer.HttpClient):
        assert "Http1Client(" in inspect.getsource(maker._handle_event)
    event = h11.EndOfMessage(headers=[("X-Sum", "1")])
    assert event.headers.raw_items() == [(b"X-Sum", b"1")]


def test_raw_bytes_are_relayed_where_ours_watches_them() -> None:
    assert parameters(TCPLayer.__init__) == ["self", "context", "ignore"]
    assert parameters(TCPLayer.relay_messages) == ["self", "event"]
    assert parameters(TCPLayer.done) == ["self", "_"]
    source = inspect.getsource(TCPLayer.start)
    assert "self._handle_event = self.relay_messages" in source
    assert "self._handle_event = self.done" in source
    assert "TcpEndHook(self.flow)" in inspect.getsource(TCPLayer.relay_messages)


def test_a_drain_finds_listeners_connections_and_what_moved_last() -> None:
    assert parameters(Servers.update) == ["self", "modes"]
    assert "self.last_activity = " in inspect.getsource(server.TimeoutWatchdog)
    fields = {field.name for field in dataclasses.fields(server.ConnectionIO)}
    assert {"handler", "reader", "writer"} <= fields
    assert "register_activity" in inspect.getsource(server.ConnectionHandler.server_event)
    assert "should_exit" in inspect.getsource(Master.shutdown)


def test_an_http2_client_can_be_told_that_the_connection_ends() -> None:
    connection = BufferedH2Connection(Http2Server.h2_conf)
    assert connection.open_inbound_streams == 0
    assert connection.highest_inbound_stream_id == 0
    assert "self.h2_conn = " in inspect.getsource(Http2Connection.__init__)


def test_http2_gives_room_back_after_what_came_has_been_passed_on() -> None:
    assert parameters(BufferedH2Connection.acknowledge_received_data) == [
        "self",
        "acknowledged_size",
        "stream_id",
    ]
    source = inspect.getsource(Http2Connection.handle_h2_event)
    assert source.index("self.ReceiveData(") < source.index("self.h2_conn.acknowledge_received")
    made = BufferedH2Connection(Http2Server.h2_conf)
    assert made.stream_buffers == {}
    assert made.local_settings.initial_window_size > http2.WINDOW


def test_http2_hears_of_a_peer_that_leaves_where_ours_listens() -> None:
    assert parameters(BufferedH2Connection._receive_goaway_frame) == ["self", "frame"]
    assert "GoAwayFrame: self._receive_goaway_frame" in inspect.getsource(H2Connection.__init__)
    assert parameters(Http2Connection.close_connection) == ["self", "msg"]
    assert "self.streams.clear()" in inspect.getsource(Http2Connection.close_connection)


def test_http2_streams_get_ids_of_their_own_where_ours_forgets_them() -> None:
    source = inspect.getsource(Http2Client._handle_event)
    for name in ("our_stream_id", "their_stream_id", "stream_queue"):
        assert f"self.{name}" in source
    assert "self.their_stream_id[cmd.event.stream_id]" in source
    assert "in self._handle_event2(event)" in source


def test_http1_heads_are_collected_where_ours_bounds_them() -> None:
    http1 = http_layer._http1
    assert "self.buf += event.data" in inspect.getsource(http1.Http1Connection._handle_event)
    for end in (http1.Http1Server, http1.Http1Client):
        assert "self.buf.maybe_extract_lines()" in inspect.getsource(end.read_headers)
    assert "state = start" in inspect.getsource(http1.Http1Connection)
    assert parameters(http1.make_error_response) == ["status_code", "message"]


def test_a_connection_is_read_from_where_ours_can_hold_it() -> None:
    source = inspect.getsource(server.ConnectionHandler.handle_connection)
    assert source.index("self.transports[connection].reader") < source.index("reader.read(65535)")
    opening = inspect.getsource(server.ConnectionHandler.open_connection)
    assert opening.index("ServerConnectedHook") < opening.index("self.handle_connection(")


def test_a_layer_that_waits_is_told_by_what_it_keeps() -> None:
    assert "self._paused = None" in inspect.getsource(layer.Layer.__init__)
    source = inspect.getsource(tunnel.TunnelLayer._handle_event)
    assert source.rstrip().endswith("yield from self.event_to_child(event)")  # events of ours, too
