"""The stream: one client request, from its headers to the end of its answer.

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

from mitmproxy import flow
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import TCPLayer
from mitmproxy.proxy.layers.http import DropStream, SendHttp
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
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpRequestHook,
)

from pointsman.errors import (
    BodyTooLargeError,
    InternalError,
    KilledError,
    OverloadedError,
    RequestError,
)
from pointsman.proxy.attempts import Alarm, AttemptingStream, Parent
from pointsman.proxy.claiming import claim, is_address, refused
from pointsman.proxy.egress import refuse_tunnel
from pointsman.proxy.faults import describe
from pointsman.proxy.routed import RoutedRequest

logger = logging.getLogger(__name__)

_OVERLOADED = "Too many large requests are under way; try again."
_WEB_PORTS = frozenset({80, 443, 8080, 8443})


class Stream(AttemptingStream):
    """One request and its answer: the client's half, and the ends."""

    def __init__(self, context: Context, stream_id: int, parent: Parent) -> None:
        super().__init__(context, stream_id, parent)
        self._too_large = False
        self._body_bytes = 0  # bytes of bodies, of those that all requests may hold

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            if isinstance(event, Alarm):
                yield from self.ring()
            else:
                yield from super()._handle_event(event)
        except Exception as fault:
            if self.ours is None:
                raise
            what = "a routed request failed inside Pointsman\n%s"
            logger.error(what, describe(fault))  # noqa: TRY400 (the message may quote it)
            yield from self._fail_closed(self.ours)

    # --- the request ------------------------------------------------------------------------------

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        """Find out whose request it is, before any hook sees it."""
        yield from _around(
            super().state_wait_for_request_headers(event),
            HttpRequestHeadersHook,
            before=self._claim,
            after=self._mask,
        )
        if self.ours and self._too_large and self.client_state == self.state_consume_request_body:
            yield from self._over_the_limit(self.ours)

    def _claim(self) -> None:
        request = self.flow.request
        table = self.router.table
        found = claim(table, request, self.context, self.mode) or refused(
            table, request, self.context, self.mode
        )
        if found is None:
            request.stream = True
            return
        request.stream = False
        route, host, refusal = found
        self.ours = RoutedRequest(self.router, self.flow, route, host, refusal)
        length = request.headers.get("content-length", "")
        self._too_large = length.isdecimal() and int(length) > self.router.body_limit
        if self._too_large and not self.ours.decide_unread():
            request.headers.pop("expect", None)  # mitmproxy would answer: 100, continue

    def _mask(self) -> None:
        """Take the client's keys off the flow, once mitmproxy's own addons have checked them."""
        if self.ours:
            self.ours.mask_credentials()

    def handle_connect_regular(self) -> layer.CommandGenerator[None]:
        """Open a tunnel. Beside the web's ports the server may have to speak first (SMTP, MySQL).

        So for a name that is not ours the bytes are relayed at once; elsewhere the client's first
        bytes, with their server name or Host, decide.
        """
        assert self.context.server.address
        host, port = self.context.server.address
        named = port not in _WEB_PORTS and not is_address(host)
        if named and self.router.table.lookup(host) is None:
            self.child_layer = TCPLayer(self.context, ignore=True)
            yield from self.handle_connect_finish()
        else:
            yield from super().handle_connect_regular()  # type: ignore[no-untyped-call]

    def handle_connect_finish(self) -> layer.CommandGenerator[None]:
        """Open no tunnel to a host that is denied."""
        if self.flow.response is None:
            refuse_tunnel(self.router, self.flow)
        yield from super().handle_connect_finish()  # type: ignore[no-untyped-call]

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
        elif isinstance(event, RequestTrailers):
            pass  # dropped, as a proxy may (RFC 9110, 6.5.1); one may be a key
        elif isinstance(event, RequestData):
            self.request_body_buf += event.data
            if len(self.request_body_buf) > self.router.body_limit:
                yield from self._over_the_limit(self.ours)
            elif not self._take_room(len(event.data)):
                yield from self._refuse_early(self.ours, OverloadedError(_OVERLOADED))
        else:
            yield from self._request_complete(self.ours)

    def _over_the_limit(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        """Pass a body on as it comes where no one has to read it; refuse it elsewhere."""
        if self.flow.response is not None:
            yield from self._answer_early(ours)  # some addon's own, such as a proxy password's
            return
        if not ours.decide_unread():
            limit = self.router.body_limit
            too_large = BodyTooLargeError(f"The request body is larger than {limit} bytes.")
            yield from self._refuse_early(ours, ours.refusal or too_large)
            return
        self.flow.request.stream = True
        error = yield from self.stream_up(ours)
        if error is not None:
            yield from self._refuse_early(ours, error)
            return
        if self.client_state == self.state_errored:
            return
        self.client_state = self.state_stream_request_body
        kept = bytes(self.request_body_buf)
        self._free_body()
        if kept:
            yield from self.state_stream_request_body(RequestData(self.stream_id, kept))

    def state_stream_request_body(
        self, event: RequestData | RequestTrailers | RequestEndOfMessage
    ) -> layer.CommandGenerator[None]:
        """Pass a body on as it comes."""
        if self.ours and isinstance(event, RequestTrailers):
            return
        if self.ours and isinstance(event, RequestData):
            self.ours.exchange.request_bytes += len(event.data)
        if self.ours and isinstance(event, RequestEndOfMessage):
            self.await_first_byte(self.ours)
        yield from super().state_stream_request_body(event)

    def _refuse_early(
        self, ours: RoutedRequest, error: RequestError
    ) -> layer.CommandGenerator[None]:
        """Answer without waiting for the rest of the body, which is discarded."""
        ours.refuse(error)
        yield from self._answer_early(ours)

    def _answer_early(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        assert self.flow.response
        ours.exchange.request_bytes = len(self.request_body_buf)
        self.request_body_buf.clear()
        self.flow.response.headers["connection"] = "close"
        yield from self.send_local_response()
        if self.client_state != self.state_errored:
            self.client_state = self.server_state = self.state_errored
            yield from self._end_response()

    def _request_complete(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        self.flow.request.timestamp_end = time.time()
        self.flow.request.data.content = bytes(self.request_body_buf)
        self.request_body_buf.clear()
        self.client_state = self.state_done
        refusal = ours.decide()
        if not self._take_room(ours.decompressed):
            refusal = refusal or OverloadedError(_OVERLOADED)
        yield HttpRequestHook(self.flow)
        refusal = ours.decide_again(refusal)
        if (yield from self.check_killed(True)):
            return
        if self.flow.response is None and refusal is not None:
            ours.refuse(refusal)
        if self.flow.response is not None:
            yield from self.send_local_response()
        else:
            yield from self.attempt(ours)

    # --- the answer -------------------------------------------------------------------------------

    def start_response_stream(self) -> layer.CommandGenerator[None]:
        """Send the answer's head."""
        if self.ours is None:
            yield from super().start_response_stream()
            return
        assert self.flow.response
        self.answering = True
        self._free_body()
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
            self.answering = True
            self.ours.close(source="response")
        yield from super().send_response(already_streamed)

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
            if not self.upstream_open:
                yield from self._gone(event)
                return
            # mitmproxy's message may quote the client's bytes after a colon.
            what = event.message.partition(":")[0]
            yield from super().handle_protocol_error(
                RequestProtocolError(self.stream_id, what, event.code)
            )
        else:
            yield from self.provider_failed(ours, event)

    def _gone(self, event: RequestProtocolError) -> layer.CommandGenerator[None]:
        """End the request of a client that has gone while no provider was being called."""
        self.client_state = self.server_state = self.state_errored
        self.flow.error = flow.Error(event.message.partition(":")[0])
        yield HttpErrorHook(self.flow)
        self.flow.live = False
        yield DropStream(self.stream_id)

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:  # noqa: FBT001
        """Refuse headers that smuggle; close the exchange if they are the provider's."""
        invalid = yield from super().check_invalid(request)
        if invalid and self.ours:
            self.ours.close(flag="DPE", error="invalid headers", status=400)
        return invalid

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:  # noqa: FBT001
        """Find out whether the client has gone, or a person has killed the flow."""
        killed = yield from super().check_killed(emit_error_hook)
        if killed:
            by_a_person = self.flow.error and self.flow.error.msg == flow.Error.KILLED_MESSAGE
            self.abandon(KilledError("A person has killed it.") if by_a_person else None)
        return killed

    def abandon(self, error: RequestError | None = None) -> None:
        """Close the exchange of a stream that will see no more events."""
        if self.ours is not None:
            self.ours.abandon(error)

    def let_go(self) -> None:
        """Hold nothing large any more; there is no further event.

        Streams and layers refer to each other, so Python would free them, and the bodies that they
        hold, only with its next search for garbage.
        """
        self._free_body()
        self.response_body_buf.clear()
        self.stop()
        self.context.layers.clear()
        self.client_state = self.server_state = _over  # in the place of methods of its own
        if self.ours and self.flow.response is not None and callable(self.flow.response.stream):
            self.flow.response.stream = True

    # --- memory -----------------------------------------------------------------------------------

    def _take_room(self, size: int) -> bool:
        """Take so many bytes of what all requests' bodies may hold, if there is room."""
        if not self.router.bodies.take(size):
            return False
        self._body_bytes += size
        return True

    def _free_body(self) -> None:
        """Hold no body of the request any more: it has gone, and is not sent again.

        But where someone will look at it: a UI, or who asked for prompts on spans.
        """
        self.request_body_buf.clear()
        if self.ours is not None and not self.ours.captures:
            self.ours.forget_body()
            if not (self.router.shows or self.router.keep_bodies):
                self.flow.request.data.content = None
        self.router.bodies.give_back(self._body_bytes)
        self._body_bytes = 0

    def _fail_closed(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        """After a fault of our own: end the request, forward nothing more of it."""
        error = InternalError("Pointsman failed to handle this request.")
        if not self.answering:
            ours.refuse(error)  # before the exchange is closed: its status is the client's
        ours.abandon(error)
        yield from self.cancel_upstream()
        if self.answering:
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
        if (ended := self.tell_end()) is not None:
            yield ended

    def tell_end(self) -> HttpErrorHook | None:
        """Return the hook that tells addons and UIs, after a fault of ours, that the flow is over.

        No one waits for it.
        """
        if not hasattr(self, "flow"):
            return None
        self.flow.error, self.flow.live = flow.Error(InternalError.code), False
        ended = HttpErrorHook(self.flow)
        ended.blocking = False
        return ended

    def _end_response(self) -> layer.CommandGenerator[None]:
        self.flow.live = False
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)


def _over(_: events.Event) -> layer.CommandGenerator[None]:
    """Hear nothing more."""
    yield from ()


def _around(
    generator: layer.CommandGenerator[None],
    hook: type[commands.Command],
    *,
    before: Callable[[], None],
    after: Callable[[], None],
) -> layer.CommandGenerator[None]:
    """Run a layer's generator, with actions just before it yields that hook and just after."""
    reply: Any = None
    while True:
        try:
            command = generator.send(reply)
        except StopIteration:
            return
        if isinstance(command, hook):
            before()
        reply = yield command
        if isinstance(command, hook):
            after()
