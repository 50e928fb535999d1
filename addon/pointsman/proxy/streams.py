"""The stream: carries out a request's plan upstream, inside the one client request.

mitmproxy's `HttpStream` is sans-io: it asks for a connection, sends, and waits. This subclass
decides the request itself, so that no failing hook can let the client's original request through.
A stream whose host is not ours behaves as mitmproxy's own and is passed on unread.

These are not public interfaces of mitmproxy; `tests/proxy/test_internals.py` fails when the parts
leaned on here change shape.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import TCPLayer
from mitmproxy.proxy.layers.http import DropStream, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
)

from pointsman.errors import (
    BodyTooLargeError,
    InternalError,
    RequestError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamResetError,
)
from pointsman.proxy.connections import GetProviderConnection
from pointsman.proxy.routed import Call, RoutedRequest
from pointsman.proxy.router import Router

logger = logging.getLogger(__name__)

_WEB_PORTS = frozenset({80, 443, 8080, 8443})
_UNPROCESSABLE = frozenset({400, 422})
_MAX_REFUSAL = 64 * 1024
# What mitmproxy says when a provider goes away, over HTTP/1 and HTTP/2; it has no code for it.
_CLOSED = ("closed connection", "connection closed", "stream reset")


class Stream(HttpStream):
    """One request and its answer. `ours` is set where the host is ours."""

    def __init__(self, context: Context, stream_id: int, router: Router) -> None:
        super().__init__(context, stream_id)
        self.router = router
        self.ours: RoutedRequest | None = None
        self._too_large = False
        self._answering = False  # the client has the answer's head
        self._held: ResponseHeaders | None = None

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            yield from super()._handle_event(event)
        except Exception:
            if self.ours is None:
                raise
            logger.exception("a routed request failed inside Pointsman")
            yield from self._fail_closed(self.ours)

    # --- the request ------------------------------------------------------------------------------

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        """Find out whose request it is, before any hook sees it."""
        yield from _before(
            super().state_wait_for_request_headers(event), HttpRequestHeadersHook, self._claim
        )
        if self.ours and self._too_large and self.client_state == self.state_consume_request_body:
            yield from self._over_the_limit(self.ours)

    def _claim(self) -> None:
        request = self.flow.request
        host = self._client_host()
        route = self.router.table.lookup(host)
        if route is None:
            request.stream = True
            return
        request.stream = False
        self.ours = RoutedRequest(self.router, self.flow, route, host)
        length = request.headers.get("content-length", "")
        self._too_large = length.isdecimal() and int(length) > self.router.body_limit
        if self._too_large and not self.ours.decide_unread():
            request.headers.pop("expect", None)  # mitmproxy would answer: 100, continue

    def _client_host(self) -> str:
        request = self.flow.request
        if self.mode is not HTTPMode.transparent:
            return request.host  # absolute-form: it takes precedence (RFC 9112, 3.2.2)
        return request.pretty_host if request.host_header else self.context.client.sni or ""

    def handle_connect_regular(self) -> layer.CommandGenerator[None]:
        """Open a tunnel. Beside the web's ports the server may have to speak first (SMTP, MySQL).

        So for a host that is not ours the bytes are relayed at once; elsewhere the client's first
        bytes, with their server name, decide.
        """
        assert self.context.server.address
        host, port = self.context.server.address
        if port not in _WEB_PORTS and self.router.table.lookup(host) is None:
            self.child_layer = TCPLayer(self.context, ignore=True)
            yield from self.handle_connect_finish()  # type: ignore[no-untyped-call]
        else:
            yield from super().handle_connect_regular()  # type: ignore[no-untyped-call]

    def check_body_size(self, request: bool) -> layer.CommandGenerator[bool]:  # noqa: FBT001
        """Leave requests of ours to our own limit; their answers are always streamed."""
        if self.ours is not None:
            return False
        return (yield from super().check_body_size(request))

    def start_request_stream(self) -> layer.CommandGenerator[None]:
        """Stream a request that is not ours."""
        if self.flow.response:
            # Some addon answers itself; mitmproxy can't do that while it streams.
            self.flow.request.stream = False
            self.client_state = self.state_consume_request_body
            return
        yield from super().start_request_stream()

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Take in the body, up to the limit, then call the provider."""
        if self.ours is None:
            yield from super().state_consume_request_body(event)
        elif isinstance(event, RequestData):
            self.request_body_buf += event.data
            if len(self.request_body_buf) > self.router.body_limit:
                yield from self._over_the_limit(self.ours)
        elif isinstance(event, RequestTrailers):
            self.flow.request.trailers = event.trailers
        else:
            yield from self._request_complete(self.ours)

    def _over_the_limit(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        """Pass a body on as it comes where no one has to read it; refuse it elsewhere."""
        if not ours.decide_unread():
            limit = self.router.body_limit
            error = BodyTooLargeError(f"The request body is larger than {limit} bytes.")
            yield from self._refuse_early(ours, error)
            return
        call = ours.begin_call()
        if isinstance(call, RequestError):
            yield from self._refuse_early(ours, call)
            return
        self.flow.request.stream = True
        connection, failure = yield self._connection_for(call)
        if failure:
            call.attempt.end(time.perf_counter(), error=failure)
            yield from self._refuse_early(ours, _connect_failure(failure))
            return
        if (yield from self.check_killed(True)):
            return
        self.context.server = self.flow.server_conn = connection
        head = RequestHeaders(self.stream_id, self._wire_request(ours, call), end_stream=False)
        yield SendHttp(head, connection)
        self.client_state = self.state_stream_request_body
        kept = bytes(self.request_body_buf)
        self.request_body_buf.clear()
        if kept:
            yield from self.state_stream_request_body(RequestData(self.stream_id, kept))

    def state_stream_request_body(
        self, event: RequestData | RequestEndOfMessage
    ) -> layer.CommandGenerator[None]:
        """Pass a body on as it comes."""
        if self.ours and isinstance(event, RequestData):
            self.ours.exchange.request_bytes += len(event.data)
        yield from super().state_stream_request_body(event)

    def _refuse_early(
        self, ours: RoutedRequest, error: RequestError
    ) -> layer.CommandGenerator[None]:
        """Answer without waiting for the rest of the body, which is discarded."""
        self.request_body_buf.clear()
        ours.refuse(error)
        assert self.flow.response
        self.flow.response.headers["connection"] = "close"
        yield from self._send_local_response()
        if self.client_state != self.state_errored:
            self.client_state = self.server_state = self.state_errored
            yield from self._end_response()

    def _request_complete(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        self.flow.request.timestamp_end = time.time()
        self.flow.request.data.content = bytes(self.request_body_buf)
        self.request_body_buf.clear()
        self.client_state = self.state_done
        refusal = ours.decide()
        yield HttpRequestHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        if self.flow.response is None and refusal is not None:
            ours.refuse(refusal)
        if self.flow.response is not None:
            yield from self._send_local_response()
        else:
            yield from self._call(ours)

    # --- upstream ---------------------------------------------------------------------------------

    def _call(self, ours: RoutedRequest, *, fresh: bool = False) -> layer.CommandGenerator[None]:
        """Make one attempt on the decision's target."""
        call = ours.begin_call()
        if isinstance(call, RequestError):
            ours.refuse(call)
            yield from self._send_local_response()
            return
        connection, failure = yield self._connection_for(call, fresh=fresh)
        if failure:
            yield from self._upstream_failed(ours, _connect_failure(failure), failure)
            return
        # The client may have gone while we connected: then nothing is sent and nothing billed.
        if (yield from self.check_killed(True)):
            return
        self.context.server = self.flow.server_conn = connection
        self.server_state = self.state_wait_for_response_headers
        yield from self._send_request(ours, call)

    def _connection_for(self, call: Call, *, fresh: bool = False) -> GetProviderConnection:
        outgoing = call.outgoing
        return GetProviderConnection(
            outgoing.address,
            outgoing.scheme == "https",
            self.flow.server_conn.via,
            "tcp",
            sni=outgoing.tls.sni or outgoing.host,
            settings=outgoing.tls,
            fresh=fresh,
        )

    def _wire_request(self, ours: RoutedRequest, call: Call) -> http.Request:
        absolute = (
            self.mode is HTTPMode.upstream
            and call.outgoing.scheme == "http"
            and self.context.server.via is not None
        )
        return ours.wire_request(call.outgoing, absolute=absolute)

    def _send_request(self, ours: RoutedRequest, call: Call) -> layer.CommandGenerator[None]:
        server, body = self.context.server, call.outgoing.body
        request = self._wire_request(ours, call)
        trailers = request.trailers
        head_only = not (body or trailers)
        yield SendHttp(RequestHeaders(self.stream_id, request, head_only), server)
        if body:
            yield SendHttp(RequestData(self.stream_id, body), server)
        if trailers:
            yield SendHttp(RequestTrailers(self.stream_id, trailers), server)
        yield SendHttp(RequestEndOfMessage(self.stream_id), server)

    def _upstream_failed(
        self, ours: RoutedRequest, error: UpstreamError, reason: str
    ) -> layer.CommandGenerator[None]:
        """Answer for a provider that did not; the log gets the reason, the client a summary."""
        if ours.call:
            ours.call.attempt.end(time.perf_counter(), error=reason)
        ours.refuse(error)
        yield from self._send_local_response()

    # --- the answer -------------------------------------------------------------------------------

    def state_wait_for_response_headers(
        self, event: ResponseHeaders
    ) -> layer.CommandGenerator[None]:
        """Begin the answer; one that may be about an addition of ours is held back."""
        if self.ours is None:
            event.response.stream = True
            yield from super().state_wait_for_response_headers(event)
        elif self._may_refuse_usage(self.ours, event):
            self._held = event
            self.server_state = self.state_hold_refusal
        else:
            yield from self._begin_answer(self.ours, event)

    def _begin_answer(
        self, ours: RoutedRequest, event: ResponseHeaders
    ) -> layer.CommandGenerator[None]:
        # A copy: mitmproxy still reads the original to manage the provider's connection.
        response = event.response.copy()
        ours.begin_answer(response)
        yield from super().state_wait_for_response_headers(
            ResponseHeaders(self.stream_id, response, event.end_stream)
        )

    def start_response_stream(self) -> layer.CommandGenerator[None]:
        """Send the answer's head."""
        if self.ours is None:
            yield from super().start_response_stream()
            return
        assert self.flow.response
        self._answering = True
        head = ResponseHeaders(self.stream_id, self.flow.response, end_stream=False)
        yield SendHttp(head, self.context.client)
        self.server_state = self.state_stream_response_body

    def send_response(
        self,
        already_streamed: bool = False,  # noqa: FBT001, FBT002 (mitmproxy's signature)
    ) -> layer.CommandGenerator[None]:
        """End the answer: the exchange is closed before the last hook, which shows it."""
        if self.ours is not None:
            assert self.flow.response
            if already_streamed and self.router.keep_bodies:
                self.flow.response.data.content = bytes(self.ours.kept)
            self._answering = True
            self.ours.close(source="response")
        yield from super().send_response(already_streamed)

    # --- a provider that refuses to be asked for usage --------------------------------------------

    def _may_refuse_usage(self, ours: RoutedRequest, event: ResponseHeaders) -> bool:
        return (
            ours.call is not None
            and ours.call.outgoing.asked_usage
            and self._held is None
            and event.response.status_code in _UNPROCESSABLE
            and not event.end_stream
        )

    def state_hold_refusal(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Keep a refusal back until it is known whether it is about what we have added."""
        ours = self.ours
        assert ours
        if isinstance(event, ResponseData):
            self.response_body_buf += event.data
            if len(self.response_body_buf) > _MAX_REFUSAL:
                yield from self._release_refusal(ours)
        elif isinstance(event, ResponseEndOfMessage):
            suspected, named = ours.suspects_usage(bytes(self.response_body_buf))
            if suspected:
                yield from self._call_without_usage(ours, named=named)
            else:
                yield from self._release_refusal(ours)
                yield from self.state_stream_response_body(event)

    def _release_refusal(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        assert self._held
        kept = bytes(self.response_body_buf)
        self.response_body_buf.clear()
        yield from self._begin_answer(ours, self._held)
        yield from self.state_stream_response_body(ResponseData(self.stream_id, kept))

    def _call_without_usage(
        self, ours: RoutedRequest, *, named: bool
    ) -> layer.CommandGenerator[None]:
        assert self._held
        assert ours.call
        status = self._held.response.status_code
        ours.call.attempt.end(time.perf_counter(), status=status, error="usage parameter refused")
        if named:
            ours.usage_refused()
        self.response_body_buf.clear()
        ours.asks_usage = False
        # This connection is still at the end of its last answer.
        yield from self._call(ours, fresh=True)

    # --- ends -------------------------------------------------------------------------------------

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        """Close the exchange; answer for a provider that fails before its answer has begun."""
        ours = self.ours
        if ours is None or ours.exchange.ended is not None:
            yield from super().handle_protocol_error(event)
        elif isinstance(event, RequestProtocolError):
            ours.abandon()
            # mitmproxy's message may quote the client's bytes after a colon.
            what = event.message.partition(":")[0]
            yield from super().handle_protocol_error(
                RequestProtocolError(self.stream_id, what, event.code)
            )
        else:
            # mitmproxy's message may quote the provider's bytes.
            error = _provider_failure(event)
            if not self._answering:
                yield from self._upstream_failed(ours, error, str(error))
                return
            ours.close(source="partial", flag=error.flag, error=str(error))
            yield from super().handle_protocol_error(
                ResponseProtocolError(self.stream_id, str(error), event.code)
            )

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:  # noqa: FBT001
        """Refuse headers that smuggle; close the exchange if they are the provider's."""
        invalid = yield from super().check_invalid(request)
        if invalid and self.ours:
            self.ours.close(flag="UPE", error="invalid headers in the provider's answer")
        return invalid

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:  # noqa: FBT001
        """Find out whether the client has gone, or a person has killed the flow."""
        killed = yield from super().check_killed(emit_error_hook)
        if killed:
            self.abandon()
        return killed

    def abandon(self, error: RequestError | None = None) -> None:
        """Close the exchange of a stream that will see no more events."""
        if self.ours is not None:
            self.ours.abandon(error)

    def _fail_closed(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        """After a fault of our own: end the request, forward nothing more of it."""
        error = InternalError("Pointsman failed to handle this request.")
        if not self._answering:
            ours.refuse(error)  # before the exchange is closed: its status is the client's
        ours.abandon(error)
        if self.server_state in (
            self.state_wait_for_response_headers,
            self.state_stream_response_body,
            self.state_hold_refusal,
        ) and isinstance(ours.call, Call):
            cancel = RequestProtocolError(self.stream_id, error.code, ErrorCode.CANCEL)
            yield SendHttp(cancel, self.context.server)
        if self._answering:
            broken = ResponseProtocolError(self.stream_id, error.code, ErrorCode.CANCEL)
            yield SendHttp(broken, self.context.client)
            yield DropStream(self.stream_id)
        else:
            assert self.flow.response
            content = self.flow.response.raw_content or b""
            head = ResponseHeaders(self.stream_id, self.flow.response)
            yield SendHttp(head, self.context.client)
            yield SendHttp(ResponseData(self.stream_id, content), self.context.client)
            yield from self._end_response()
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored

    def _send_local_response(self) -> layer.CommandGenerator[None]:
        """Send the flow's response, which no provider gave."""
        assert self.flow.response
        self.flow.response.timestamp_start = time.time()
        self.flow.response.stream = False
        yield HttpResponseHeadersHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        yield from self.send_response()

    def _end_response(self) -> layer.CommandGenerator[None]:
        self.flow.live = False
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)


def _before(
    generator: layer.CommandGenerator[None],
    hook: type[commands.Command],
    action: Callable[[], None],
) -> layer.CommandGenerator[None]:
    """Run a layer's generator, and the action just before it yields that hook."""
    reply: Any = None
    while True:
        try:
            command = generator.send(reply)
        except StopIteration:
            return
        if isinstance(command, hook):
            action()
        reply = yield command


def _connect_failure(reason: str) -> UpstreamError:
    """Tell the client what it can act on; the reason is mitmproxy's and OpenSSL's own words."""
    if any(word in reason.lower() for word in ("certificate", "tls", "ssl")):
        return UpstreamError("The provider could not be reached: the TLS handshake failed.")
    return UpstreamError("The provider could not be reached.")


def _provider_failure(event: ResponseProtocolError) -> UpstreamError:
    if any(words in event.message for words in _CLOSED):
        return UpstreamResetError("The provider closed the connection before its answer was whole.")
    return UpstreamProtocolError("The provider's answer could not be understood.")
