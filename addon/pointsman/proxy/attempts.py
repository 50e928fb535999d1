"""The upstream half of a stream of ours: attempts, until an answer may go to the client.

An attempt ends well when its answer may begin: the status is good and, for a stream, the first
content event has come; up to there everything of it is held back, and a failure leads to the plan's
next attempt inside the same client request. After the first content byte nothing is retried.

What an attempt that was given up says later is not heard: see `layers`.
"""

import math
import time
from collections.abc import Callable
from typing import Protocol

from mitmproxy import http
from mitmproxy.connection import Connection, Server
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpResponseHeadersHook

from pointsman.config.table import RetryCondition
from pointsman.errors import (
    ConnectTimeoutError,
    IdleTimeoutError,
    KeyMissingError,
    RequestError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamResetError,
    UpstreamTimeoutError,
)
from pointsman.proxy.answer import SUCCESS
from pointsman.proxy.connections import GetProviderConnection, ProviderConnection
from pointsman.proxy.http2 import UnprocessedError
from pointsman.proxy.routed import Call, RoutedRequest
from pointsman.proxy.router import Router
from pointsman.proxy.shaping import ShapeError, Shaper
from pointsman.routing.planning import condition, retry_after

_UNPROCESSABLE = frozenset({400, 422})
_DRAIN_SECONDS = 5.0
_MAX_HELD = 256 * 1024  # bytes of an answer that are held back

type _Action = Callable[[RoutedRequest], layer.CommandGenerator[None]]


class Alarm(events.Event):
    """The time has come that a stream has waited for."""


class Parent(Protocol):
    """The layer, as its streams know it."""

    router: Router
    connections: dict[Connection, layer.Layer]

    def wake_up(self, at: float) -> None:
        """Send an `Alarm` at this time (of `time.monotonic`)."""

    def is_answer_stuck(self, stream_id: int) -> bool:
        """Tell whether an answer waits for its client."""


class AttemptingStream(HttpStream):
    """Carries out a plan. `ours` is set where the host is ours."""

    def __init__(self, context: Context, stream_id: int, parent: Parent) -> None:
        super().__init__(context, stream_id)
        self.parent = parent
        self.router = parent.router
        self.ours: RoutedRequest | None = None
        self.answering = False  # the client has the answer's head
        self.heard: Server | None = None  # whose answer is awaited; None between attempts
        self._held: ResponseHeaders | None = None
        self._opening: list[bytes] = []
        self._shaper: Shaper | None = None
        self._reused = False  # the attempt's connection had been used before, and has not answered
        self._repeated = False  # the attempt has been made once more
        self._timers: list[tuple[float, Call | None, _Action]] = []

    def stop(self) -> None:
        """Hold nothing of an attempt any more."""
        self._held = self._shaper = None
        self._opening.clear()
        self._timers.clear()

    # --- an attempt -------------------------------------------------------------------------------

    def attempt(self, ours: RoutedRequest, *, again: bool = False) -> layer.CommandGenerator[None]:
        """Make the plan's next attempt; `again` repeats the last one, changed."""
        self.heard = None
        self._repeated = again
        call = ours.begin_call(again=again)
        if isinstance(call, RequestError):
            # What an earlier attempt was answered counts more than a key that has gone since.
            (ours.give_up if isinstance(call, KeyMissingError) else ours.refuse)(call)
            yield from self.send_local_response()
            return
        command = self._connection_for(call)
        connection, failure = yield command
        # The client may have gone while we connected: then nothing is sent and nothing billed.
        if (yield from self.check_killed(True)):
            return
        if failure:
            error = _connect_failure(command, failure)
            yield from self._failed(ours, "connect-failure", error, failure)
            return
        renewed = ours.renew_call()
        if not isinstance(renewed, Call):
            if renewed is None:
                yield from self.attempt(ours)
            else:
                ours.give_up(renewed)
                yield from self.send_local_response()
            return
        call = renewed
        self.context.server = self.flow.server_conn = self.heard = connection
        self._reused = command.server is None
        self.server_state = self.state_wait_for_response_headers
        yield from self._send_request(ours, call)
        ours.mirror()
        self.await_first_byte(ours)

    def await_first_byte(self, ours: RoutedRequest) -> None:
        """Bound how long the provider takes to begin its answer, from now on."""
        limit = ours.limits().first_byte
        if limit is not None:
            self._wake_up(limit, self._first_byte_timeout)

    def _connection_for(self, call: Call) -> GetProviderConnection:
        outgoing = call.outgoing
        limits = call.target.limits if call.target else None
        command = GetProviderConnection(
            outgoing.address,
            outgoing.scheme == "https",
            self.flow.server_conn.via,
            "tcp",
            sni=outgoing.tls.sni or outgoing.host,
            settings=outgoing.tls,
        )
        if limits is not None:
            command.connect_timeout = limits.connect
        # A connection whose answer has just ended is not ready for the next request yet.
        command.fresh = command.connection_spec_matches(self.context.server)
        return command

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
        yield SendHttp(RequestHeaders(self.stream_id, request, not body), server)
        if body:
            yield SendHttp(RequestData(self.stream_id, body), server)
        yield SendHttp(RequestEndOfMessage(self.stream_id), server)

    def stream_up(self, ours: RoutedRequest) -> layer.CommandGenerator[RequestError | None]:
        """Connect, for a body that is passed on as it comes; it can't be sent twice."""
        call = ours.begin_call()
        if isinstance(call, RequestError):
            return call
        command = self._connection_for(call)
        connection, failure = yield command
        if failure:
            ours.failed("connect-failure", failure)
            return _connect_failure(command, failure)
        if (yield from self.check_killed(True)):
            return None
        renewed = ours.renew_call()
        assert renewed  # there is one attempt
        if isinstance(renewed, RequestError):
            return renewed
        call = renewed
        self.context.server = self.flow.server_conn = self.heard = connection
        head = RequestHeaders(self.stream_id, self._wire_request(ours, call), end_stream=False)
        yield SendHttp(head, connection)
        return None

    def _failed(
        self,
        ours: RoutedRequest,
        kind: RetryCondition,
        error: UpstreamError,
        reason: str,
        *,
        wait: float | None = None,
    ) -> layer.CommandGenerator[None]:
        """Go on with the next attempt, or tell the client."""
        self.heard = None
        self.stop()
        self.response_body_buf.clear()
        pause = ours.failed(kind, reason, retry_after=wait)
        if pause is None:
            ours.give_up(error)
            yield from self.send_local_response()
        elif pause:
            self.server_state = self.state_between_attempts
            self._wake_up(pause, self.attempt)
        else:
            yield from self.attempt(ours)

    def state_between_attempts(self, _: events.Event) -> layer.CommandGenerator[None]:
        """Wait for the next attempt."""
        yield from ()

    def cancel_upstream(self) -> layer.CommandGenerator[None]:
        """End the request to the provider at once, if one is under way."""
        if self.upstream_open:
            cancel = RequestProtocolError(self.stream_id, "given up", ErrorCode.CANCEL)
            yield SendHttp(cancel, self.context.server)

    @property
    def upstream_open(self) -> bool:
        """Whether a provider's connection is at this request's disposal."""
        server = self.context.server
        return isinstance(server, ProviderConnection) and server in self.parent.connections

    @property
    def is_paused(self) -> bool:
        """Whether it waits for a connection, or for a hook, and keeps what comes meanwhile."""
        return self._paused is not None

    # --- time -------------------------------------------------------------------------------------

    def _wake_up(self, seconds: float, action: _Action) -> None:
        at = time.monotonic() + seconds
        self._timers.append((at, self.ours.call if self.ours else None, action))
        self.parent.wake_up(at)

    @property
    def deadline(self) -> float:
        """When it wants to be woken up, in seconds of `time.monotonic`; infinite: not at all."""
        over = self.ours is None or self.ours.exchange.ended is not None or self.child_layer
        return math.inf if over else min((at for at, _, _ in self._timers), default=math.inf)

    def ring(self) -> layer.CommandGenerator[None]:
        """Do what was put off until now, unless the attempt that it was for is over."""
        now, timers = time.monotonic(), self._timers
        self._timers = [timer for timer in timers if timer[0] > now]
        for at, call, action in timers:
            ours = self.ours
            if at <= now and ours and ours.call is call and ours.exchange.ended is None:
                yield from action(ours)

    def _first_byte_timeout(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        if self.answering or self.server_state == self.state_between_attempts:
            return
        if self.server_state == self.state_shape and not ours.opens_with_content():
            return  # it has come, and is held only until all of it is there
        yield from self.cancel_upstream()
        error = UpstreamTimeoutError("The provider did not answer in time.")
        yield from self._failed(ours, "first-byte-timeout", error, "no first byte in time")

    def _watch_idle(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        """Look whether chunks still come; look again when the next one would be late."""
        limit = ours.limits().idle
        shaping = self.server_state == self.state_shape
        if limit is None or not (shaping or self.server_state == self.state_stream_response_body):
            return
        left = limit - (time.perf_counter() - ours.last_chunk)
        if left <= 0 and self.parent.is_answer_stuck(self.stream_id):
            left = limit  # it is the client that is slow, and the provider waits for it
        if left > 0:
            self._wake_up(left, self._watch_idle)
            return
        yield from self.cancel_upstream()
        error = IdleTimeoutError("The provider stopped in the middle of its answer.")
        if shaping:
            yield from self._failed(ours, "first-byte-timeout", error, "no chunk in time")
            return
        ours.failed("first-byte-timeout", error.code)
        ours.close(source="partial", flag=error.flag, error=error.code)
        ending = ours.error_event(error)
        if ending:
            yield SendHttp(ResponseData(self.stream_id, ending), self.context.client)
            yield from self.send_response(already_streamed=True)
        else:
            yield from super().handle_protocol_error(
                ResponseProtocolError(self.stream_id, str(error), ErrorCode.GENERIC_SERVER_ERROR)
            )

    # --- an answer --------------------------------------------------------------------------------

    def state_wait_for_response_headers(
        self, event: ResponseHeaders
    ) -> layer.CommandGenerator[None]:
        """Begin the answer, or hold back what may lead to another attempt."""
        self._reused = False  # it works
        ours = self.ours
        if ours is None:
            event.response.stream = True
            yield from super().state_wait_for_response_headers(event)
            return
        assert ours.call
        ours.call.attempt.status = event.response.status_code
        if self._is_invalid(event):
            yield from self.cancel_upstream()
            what, code = "invalid headers", ErrorCode.RESPONSE_VALIDATION_FAILED
            broken = ResponseProtocolError(self.stream_id, what, code)
            yield from self.provider_failed(ours, broken)
        elif self._may_refuse_usage(ours, event):
            self._held = event
            self.server_state = self.state_hold_refusal
        elif ours.may_retry(condition(event.response.status_code)):
            self._held = event
            self.server_state = self.state_drain
            self._wake_up(_DRAIN_SECONDS, self._drain_late)
        else:
            yield from self._take_answer(ours, event)

    def _is_invalid(self, event: ResponseHeaders) -> bool:
        """Tell whether the headers smuggle. mitmproxy's own check ends the client's request."""
        try:
            if self.context.options.validate_inbound_headers:
                validate_headers(event.response)
        except ValueError:
            return True
        return False

    def _take_answer(
        self, ours: RoutedRequest, event: ResponseHeaders
    ) -> layer.CommandGenerator[None]:
        # A copy: mitmproxy still reads the original to manage the provider's connection.
        response = event.response.copy()
        try:
            validate_headers(response)
        except ValueError:
            yield from self.cancel_upstream()
            error = UpstreamProtocolError("The provider's answer could not be understood.")
            yield from self._failed(ours, "reset", error, error.code)
            return
        head = ResponseHeaders(self.stream_id, response, event.end_stream)
        ours.begin_answer(response)
        good = response.status_code in SUCCESS and not event.end_stream
        if good and (shaper := ours.shaper()):
            self._held, self._shaper = head, shaper
            self.server_state = self.state_shape
            yield from self._begin_to_watch(ours)
        elif good and ours.opens_with_content() and self._holds(ours):
            self._held = head
            self.server_state = self.state_open
        else:
            ours.answered(response.status_code, _wait(response))
            yield from self._begin(ours, head)

    def _holds(self, ours: RoutedRequest) -> bool:
        """Tell whether what comes before the content may turn out to be a failure."""
        return ours.may_retry("5xx") or ours.limits().first_byte is not None

    def _begin(self, ours: RoutedRequest, head: ResponseHeaders) -> layer.CommandGenerator[None]:
        self._held = None
        yield from super().state_wait_for_response_headers(head)
        if self.answering:
            yield from self._begin_to_watch(ours)

    def _begin_to_watch(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        ours.last_chunk = time.perf_counter()
        yield from self._watch_idle(ours)

    def state_drain(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Take in a refusal; the next attempt is made when this connection is free again."""
        assert self.ours
        if isinstance(event, ResponseData):
            self.response_body_buf += event.data
            if len(self.response_body_buf) > _MAX_HELD:
                yield from self.cancel_upstream()
                yield from self._drained(self.ours, whole=False)
        elif isinstance(event, ResponseEndOfMessage):
            yield from self._drained(self.ours, whole=True)

    def _drain_late(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        """Go on without the rest of a refusal that does not end."""
        if self.server_state == self.state_drain:
            yield from self.cancel_upstream()
            yield from self._drained(ours, whole=False)

    def _drained(self, ours: RoutedRequest, *, whole: bool) -> layer.CommandGenerator[None]:
        assert self._held
        response = self._held.response
        if whole:
            ours.keep_answer(response, bytes(self.response_body_buf))
        status = response.status_code
        kind = condition(status)
        assert kind
        assert ours.call
        ours.call.attempt.status = status
        error = UpstreamError(f"The provider answered with status {status}.")
        yield from self._failed(ours, kind, error, f"status {status}", wait=_wait(response))

    def state_open(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Hold a stream back until its first content: one that opens with an error is retried."""
        ours = self.ours
        assert ours
        assert self._held
        if isinstance(event, ResponseData):
            self._opening += ours.pass_on(event.data)
            if ours.opened_with_error() and ours.may_retry("5xx"):
                yield from self.cancel_upstream()
                error = UpstreamError("The provider answered with an error.")
                yield from self._failed(ours, "5xx", error, "stream opened with an error")
            elif (
                ours.opened_with_error()
                or not ours.opens_with_content()
                or sum(map(len, self._opening)) > _MAX_HELD
            ):
                yield from self._open(ours)
        else:
            yield from self._open(ours)
            if self.server_state == self.state_stream_response_body:
                yield from self.state_stream_response_body(event)

    def _open(self, ours: RoutedRequest) -> layer.CommandGenerator[None]:
        assert self._held
        ours.answered(self._held.response.status_code, None)
        opening, self._opening = self._opening, []
        yield from self._begin(ours, self._held)
        if self.server_state == self.state_stream_response_body:
            for chunk in opening:
                yield SendHttp(ResponseData(self.stream_id, chunk), self.context.client)

    def state_shape(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Take in a whole answer and give it the shape that the client asked for."""
        ours, shaper = self.ours, self._shaper
        assert ours
        assert shaper
        assert self._held
        try:
            if isinstance(event, ResponseData):
                ours.pass_on(event.data)
                with ours.timed():
                    shaper.feed(event.data)
            elif isinstance(event, ResponseEndOfMessage):
                ours.pass_on(b"")
                with ours.timed():
                    shaped = shaper.close()
                response = self._held.response
                self._held = self._shaper = None
                ours.answered(response.status_code, None)
                self.flow.response = shaped.response(response)
                ours.exchange.response_bytes = len(shaped.body)
                yield from self.send_local_response()
        except ShapeError as error:
            yield from self.cancel_upstream()
            failure = UpstreamProtocolError("The provider's answer could not be understood.")
            yield from self._failed(ours, "5xx", failure, f"stream {error}")

    # --- a provider that refuses to be asked for usage --------------------------------------------

    def _may_refuse_usage(self, ours: RoutedRequest, event: ResponseHeaders) -> bool:
        return (
            ours.asks_usage
            and ours.call is not None
            and ours.call.outgoing.asked_usage
            and event.response.status_code in _UNPROCESSABLE
            and not event.end_stream
        )

    def state_hold_refusal(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Keep a refusal back until it is known whether it is about what we have added."""
        ours = self.ours
        assert ours
        if isinstance(event, ResponseData):
            self.response_body_buf += event.data
            if len(self.response_body_buf) > _MAX_HELD:
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
        yield from self._take_answer(ours, self._held)
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
        self._held = None
        self.response_body_buf.clear()
        ours.asks_usage = False
        yield from self.attempt(ours, again=True)

    # --- ends -------------------------------------------------------------------------------------

    def provider_failed(
        self, ours: RoutedRequest, event: ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        """Go on after a provider that has broken off; mitmproxy's message may quote its bytes."""
        error = _provider_failure(event)
        if self.server_state == self.state_drain:
            # It has refused, and broken off in its words: what counts is that it has refused.
            yield from self._drained(ours, whole=False)
            return
        unprocessed = isinstance(event, UnprocessedError)
        # A stream that alone is reset was seen by its provider, and may have been paid for.
        stale = self._reused and event.message.startswith(_CLOSED)
        if (unprocessed or stale) and ours.may_repeat() and not self._repeated:
            # Idle connections are closed by their providers, at times just as one is used again:
            # where the plan has no other attempt, the same one is made on a new connection.
            assert ours.call
            reason = "not begun with" if unprocessed else "stale connection"
            ours.call.attempt.end(time.perf_counter(), error=reason)
            yield from self.attempt(ours, again=True)
        elif not self.answering:
            yield from self._failed(ours, "reset", error, error.code)
        else:
            if ours.call and ours.call.target:
                ours.failed("reset", error.code)
            ours.close(source="partial", flag=error.flag, error=error.code)
            yield from super().handle_protocol_error(
                ResponseProtocolError(self.stream_id, str(error), event.code)
            )

    def send_local_response(self) -> layer.CommandGenerator[None]:
        """Send the flow's response, which is whole."""
        assert self.flow.response
        self.flow.response.timestamp_start = time.time()
        self.flow.response.stream = False
        yield HttpResponseHeadersHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        yield from self.send_response()


def _wait(response: http.Response) -> float | None:
    """Return the seconds that a refusal asks to wait."""
    return retry_after(response.headers.get("retry-after"), time.time())


def _connect_failure(command: GetProviderConnection, reason: str) -> UpstreamError:
    """Tell the client what it can act on; the reason is mitmproxy's and OpenSSL's own words."""
    if command.server is not None and command.server.timed_out:
        return ConnectTimeoutError("The provider could not be reached in time.")
    if any(word in reason.lower() for word in ("certificate", "tls", "ssl")):
        return UpstreamError("The provider could not be reached: the TLS handshake failed.")
    return UpstreamError("The provider could not be reached.")


# What mitmproxy says when a provider goes away, over HTTP/1 and HTTP/2; it has no code for it.
_CLOSED = ("server closed connection", "peer closed connection", "HTTP/2 connection closed")
_BROKEN = ("stream reset", "HTTP/1 protocol error: peer closed connection")  # h11's words


def _provider_failure(event: ResponseProtocolError) -> UpstreamError:
    if isinstance(event, UnprocessedError) or event.message.startswith(_CLOSED + _BROKEN):
        return UpstreamResetError("The provider closed the connection before its answer was whole.")
    return UpstreamProtocolError("The provider's answer could not be understood.")
