"""One request of ours from its headers to its log line: all of it that is not I/O.

The stream (see `streams`) speaks with mitmproxy and asks here what to send and what to answer.
Nothing on the flow ever holds a key: not the provider's, which only the wire's copy gets, and not
the client's own, which is masked on the flow and kept aside.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

from mitmproxy import http
from mitmproxy.net.http import url

from pointsman.config.backends import Address, Endpoints
from pointsman.config.credentials import CredentialError
from pointsman.config.table import RetryCondition, Route, Target, TimeLimits
from pointsman.errors import (
    HostNotAllowedError,
    InternalError,
    KeyMissingError,
    NoRouteError,
    NoTargetError,
    RequestError,
)
from pointsman.protocols import Api, detect
from pointsman.protocols.errors import error_body
from pointsman.proxy.answer import SUCCESS, Answer
from pointsman.proxy.claiming import port_of
from pointsman.proxy.faults import log_fault
from pointsman.proxy.framing import frame, part
from pointsman.proxy.keys import no_key
from pointsman.proxy.mirroring import Copy
from pointsman.proxy.own_keys import Masks
from pointsman.proxy.refusing import refusal_of
from pointsman.proxy.router import Decision, Router, Tracing
from pointsman.proxy.shaping import Shaper
from pointsman.proxy.showing import Showing
from pointsman.proxy.tracing import content_of, with_trace
from pointsman.routing.planning import condition
from pointsman.routing.progress import Progress
from pointsman.routing.request import Body, ClientRequest, StreamedBody, text
from pointsman.routing.rewriting import (
    Outgoing,
    forward,
    rewrite,
    without_hop_by_hop,
)
from pointsman.telemetry.chunks import ChunkTimes
from pointsman.telemetry.content import Kept
from pointsman.telemetry.exchange import Attempt, Exchange, UsageSource, name_of
from pointsman.telemetry.verdicts import is_error

logger = logging.getLogger(__name__)

_TRACE_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context
KEY_SECONDS = 1.0  # for so long a key that was read is used
_MAX_KEPT_BODY = 16 * 1024 * 1024
_MAX_REQUEST_ID = 128
_SWITCHING_PROTOCOLS = 101


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt under way: what is sent, and its record."""

    target: Target | None  # None: passed on unchanged, observed only
    outgoing: Outgoing
    attempt: Attempt


class RoutedRequest:
    """A request to a host of ours, and its exchange."""

    def __init__(
        self,
        router: Router,
        flow: http.HTTPFlow,
        route: Route,
        host: str,
        refusal: RequestError | None = None,
    ) -> None:
        self.flow = flow
        self.refusal = refusal  # it is ours, and has to be refused whatever the rules say
        self.decision: Decision | None = None
        self.call: Call | None = None
        self.answer: Answer | None = None
        self.asks_usage = True
        self.last_chunk = 0.0
        self.kept = bytearray()  # of the answer's body, where a UI will show it
        self._router = router
        self._route = route
        self._host = host
        request = flow.request
        self._api: Api | None = None
        peer = flow.client_conn.peername
        self.exchange = Exchange(
            request_id=_request_id(flow),
            host=host,
            method=request.method,
            path="",
            client=url.hostport("", peer[0], peer[1]) if peer else None,
            started=time.perf_counter(),
            workload=router.workload,
            namespace=router.namespace,
            route=route.name,
            route_host=route.host,
            replay=bool(flow.is_replay),
        )
        self._read_line()
        self._said = Kept(router.capture) if router.capture else None
        if router.tracing is not None:
            headers = request.headers
            self.exchange.trace_context = {n: headers[n] for n in _TRACE_HEADERS if n in headers}
        self._showing = Showing(flow, full=router.keep_ways) if router.shows else None
        self._by_hand = router.wanted_by_hand.pop(flow.id, None)
        self._progress: Progress | None = None  # none where the request is only observed
        self._mirrored = False
        self._answering = False  # the attempt's answer has begun well
        self._occupied: tuple[Endpoints, Address] | None = None
        self._encoding = ""
        self._last_answer: http.Response | None = None
        self._body: Body | None = None
        self._passes_unread: bool | None = None
        self._decided_on: tuple[object, ...] = ()
        self._masks = Masks(flow, router.own_keys)
        # A replay outlives the connection that the flow once came by.
        self._client = f"replay of {flow.id}" if flow.is_replay else flow.client_conn.id
        router.opened(self._client, self)

    # --- the request ------------------------------------------------------------------------------

    def _read_line(self) -> None:
        """Record what is asked for, as it stands on the flow."""
        request, exchange = self.flow.request, self.exchange
        exchange.method, exchange.path = request.method, request.path.partition("?")[0]
        self._api = detect(request.method, request.path)
        exchange.api = self._api.name if self._api else None

    def mask_credentials(self) -> None:
        """Put masks in the place of the client's keys; the wire gets the keys.

        Called once more after a person could edit the request, it takes in the keys that they have
        typed.
        """
        self._masks.put()

    def client_request(self) -> ClientRequest:
        """Read the flow as it stands now: what a person edited at an intercept counts."""
        request = self.flow.request
        raw = request.raw_content or b""
        if self._body is None or not (self._body.streamed or self._body.raw is raw):
            encoding = request.headers.get("content-encoding", "")
            self._body = Body(raw, encoding, limit=self._router.body_limit)
        port = port_of(request.host_header or "")
        return ClientRequest(
            method=request.method,
            scheme=request.scheme,
            host=self._host,
            port=port or request.port,
            path=self._masks.path(),
            headers=self._masks.headers(),
            body=self._body,
            address=(request.host, request.port),
            multiplexed=request.is_http2 or request.is_http3,
        )

    def decide(self) -> RequestError | None:
        """Make the decision; return what the client has to be told instead, if so."""
        started = time.perf_counter()
        self._decided_on = self._as_shown()
        if self.refusal is not None and self._unless_observing(self.refusal) is not None:
            return self.refusal
        try:
            request = self.client_request()
            self.exchange.request_bytes = len(request.body.raw)
            if self.refusal is not None:
                return None
            self.exchange.client_model = name_of(request.model)
            self._decide(request)
        except RequestError as error:
            if isinstance(error, KeyMissingError):
                self.exchange.rule, self.exchange.provider = error.rule, error.provider
            return self._unless_observing(error)
        except Exception as fault:  # noqa: BLE001
            log_fault(logger, "no decision could be made", fault)
            return InternalError("Pointsman failed to handle this request.")
        finally:
            self.exchange.overhead += time.perf_counter() - started
        return None

    def decide_again(self, refusal: RequestError | None) -> RequestError | None:
        """Take in what a person, or another addon, has made of the request at mitmproxy's hook.

        A changed request gets a decision of its own; `refusal` is what `decide` has returned.
        """
        self.mask_credentials()
        exchange, changed = self.exchange, self._as_shown() != self._decided_on
        settled = self.refusal or self.flow.response or exchange.ended
        if settled is not None or not changed:
            return refusal
        self._free_probe()
        self.decision = self._progress = exchange.decision = None
        exchange.rule = exchange.provider = exchange.provider_host = None
        exchange.flags.clear()  # there are none but the decision's yet
        self._read_line()
        return self.decide()

    def _as_shown(self) -> tuple[object, ...]:
        """Return what rules look at, as it stands on the flow."""
        request = self.flow.request
        fields = request.headers.fields
        return request.method, request.data.path, fields, request.raw_content

    def decide_unread(self) -> bool:
        """Decide on a request that is too large to be read; tell whether it can pass unread."""
        if self._passes_unread is None:
            self._body = StreamedBody()
            self._passes_unread = False
            if self.refusal is not None:
                self._passes_unread = self._unless_observing(self.refusal) is None
                return self._passes_unread
            try:
                decision = self._router.decide_unread(self._route, self.client_request())
                if decision is not None:
                    self._take(decision)
                    self._passes_unread = True
            except RequestError as error:
                self._passes_unread = self._unless_observing(error) is None
            except Exception as fault:  # noqa: BLE001
                log_fault(logger, "no decision could be made", fault)
        return self._passes_unread

    def _decide(self, request: ClientRequest) -> None:
        decision = None
        try:
            if self._by_hand is None:
                decision = self._router.decide(self._route, request)
            else:
                decision = self._router.decide_via(self._route, request, self._by_hand)
        finally:
            self.exchange.decision = self._router.record(self._route, request, decision)
        self._take(decision)

    def _take(self, decision: Decision) -> None:
        exchange = self.exchange
        self.decision = decision
        exchange.rule = decision.rule.name or None
        exchange.provider = decision.target.provider
        exchange.provider_host = decision.target.host
        if decision.observe:
            exchange.flag("OB")
        else:
            once = self._body is not None and self._body.streamed
            self._progress = Progress(decision.plan, decision.rule.retry, once=once)
        self._show()

    def _free_probe(self) -> None:
        """Take back the decision's claim on its target, which has not been called."""
        if self.decision is not None and not self.decision.observe:
            self._router.health.abandoned(self.decision.target, time.monotonic())

    def _unless_observing(self, error: RequestError) -> RequestError | None:
        """Who only observes refuses nothing: what would have been refused is logged."""
        softened = NoRouteError | NoTargetError | HostNotAllowedError
        if not (self._router.observe and isinstance(error, softened)):
            return error
        self.exchange.flag(error.flag)
        self.exchange.flag("OB")
        return None

    # --- attempts ---------------------------------------------------------------------------------

    def begin_call(self, *, again: bool = False) -> Call | RequestError:
        """Make the request for the plan's next target, from the flow as it stands now.

        `again` asks the same target once more and is no attempt of the plan's.
        """
        while True:
            target = self.call.target if again and self.call else self._next_target()
            started = time.perf_counter()
            try:
                return self._begin_call(target)
            except RequestError as error:
                return error
            except CredentialError as error:
                # Gone since the plan was made.
                assert target
                again = False
                if gone := self._without_key(target, error):
                    return gone
                attempt = Attempt(target.provider, target.host, started)
                attempt.end(started, error="no key")
                self.exchange.attempts.append(attempt)
            except Exception as fault:  # noqa: BLE001
                log_fault(logger, "a request could not be rewritten", fault)
                return InternalError("Pointsman failed to handle this request.")
            finally:
                self.exchange.overhead += time.perf_counter() - started

    def _without_key(self, target: Target, error: CredentialError) -> RequestError | None:
        """Tell of a key that has gone; return what the client is told where no attempt is left."""
        assert self.decision
        self._router.keys.tell(target, error)
        if self.attempts_left():
            return None
        return no_key(self.decision.rule.name, [target.provider])

    def renew_call(self) -> Call | RequestError | None:
        """Return the call to be sent now that there is a connection, with the key of now.

        Connecting may take longer than a key lives. None: it has gone, and another attempt is left.
        """
        call = self.call
        assert call
        now = time.perf_counter()
        if call.target is None or now - call.attempt.started < KEY_SECONDS:
            return call
        asked_usage = call.outgoing.asked_usage
        try:
            new = rewrite(call.target, self.client_request(), inject_usage=asked_usage)
        except CredentialError as error:
            call.attempt.end(now, error="no key")
            return self._without_key(call.target, error)
        traced = {
            text(name): text(value)
            for name, value in call.outgoing.headers
            if name.lower() in {b"traceparent", b"tracestate"}
        }
        new = replace(new, headers=with_trace(new.headers, traced))
        self.call = replace(call, outgoing=new)
        return self.call

    def _next_target(self) -> Target | None:
        """Return the target of the next attempt; None where the request is only observed."""
        return self._progress.next_target() if self._progress else None

    def _begin_call(self, target: Target | None) -> Call:
        exchange, request = self.exchange, self.client_request()
        if target is None:
            outgoing = forward(request)
        else:
            inject = self.asks_usage and self._router.asks_usage(target)
            outgoing = rewrite(target, request, inject_usage=inject)
            exchange.provider, exchange.provider_host = target.provider, target.host
            self._router.health.begin(target, time.monotonic())
        exchange.request_model = name_of(outgoing.model)
        exchange.stream = outgoing.stream
        # The query may carry a client's key.
        exchange.upstream_path = outgoing.path.partition("?")[0]
        exchange.first_token, exchange.chunk_times, exchange.response_bytes = None, None, 0
        self.answer = None
        self.kept.clear()
        if self._said:
            self._said.clear()
        self._api = outgoing.api or self._api
        exchange.api = self._api.name if self._api else None
        attempt = Attempt(
            provider=target.provider if target else self._router.provider_at(outgoing.host),
            provider_host=outgoing.host,
            started=time.perf_counter(),
            port=outgoing.port,
        )
        exchange.attempts.append(attempt)
        self._occupy(target)
        outgoing = self._traced(outgoing, lambda tracing: tracing.begin(exchange, attempt))
        self.call = Call(target, outgoing, attempt)
        if self._showing is not None and self._showing.full:
            self._showing.rewritten(request, outgoing)
            self._show()
        return self.call

    def _traced(self, outgoing: Outgoing, begin: Callable[[Tracing], dict[str, str]]) -> Outgoing:
        """Let a span be the parent of what the provider makes of the client's trace."""
        if self._router.tracing is None:
            return outgoing
        try:
            fields = begin(self._router.tracing)
        except Exception as fault:  # noqa: BLE001
            log_fault(logger, "a call could not be traced", fault)
            return outgoing
        return replace(outgoing, headers=with_trace(outgoing.headers, fields))

    def _occupy(self, target: Target | None) -> None:
        """Count the request at the endpoint that it goes to now, and no longer at the last one."""
        if self._occupied is not None:
            endpoints, address = self._occupied
            endpoints.end(address)
            self._occupied = None
        if target is not None and target.endpoints is not None and target.address is not None:
            target.endpoints.begin(target.address)
            self._occupied = (target.endpoints, target.address)

    def mirror(self) -> None:
        """Send a copy if the rule says so: once, after the client's own request was sent."""
        decision, own = self.decision, self.exchange
        if self._mirrored or decision is None or decision.observe:
            return
        self._mirrored = True
        wanted, mirrors = decision.rule.mirror, self._router.mirrors
        if wanted is None or (request := self.client_request()).is_websocket:
            return
        if not self._router.mirrors_now(decision.rule):
            return
        if self.flow.server_conn.via is not None:
            mirrors.drop(own.rule, "they would have to go by the upstream proxy")
            return
        if not self._router.keys.available(wanted.target):
            mirrors.drop(own.rule, "their provider has no key")
            return
        try:
            outgoing = rewrite(wanted.target, request)
        except (RequestError, CredentialError) as error:
            mirrors.drop(own.rule, f"they can't be made for {wanted.target.host}: {error}")
            return
        copy = own.copied(time.perf_counter(), wanted.target.provider)
        copy.provider_host = wanted.target.host
        copy.upstream_path = outgoing.path.partition("?")[0]
        copy.request_model, copy.stream = name_of(outgoing.model), outgoing.stream
        outgoing = self._traced(outgoing, lambda tracing: tracing.begin_copy(own, copy))
        if mirrors.send(Copy(outgoing, wanted.target.limits, copy, self._router.sinks.emit)):
            own.mirrored_to = wanted.target.provider

    def attempts_left(self) -> bool:
        """Tell whether the plan has another attempt."""
        return self._progress is not None and self._progress.left

    def may_retry(self, condition: RetryCondition | None) -> bool:
        """Tell whether a failure of this kind, now, would lead to another attempt."""
        return self._progress is not None and self._progress.may_retry(condition)

    def may_repeat(self) -> bool:
        """Tell whether a request may be sent twice, where the plan has no other attempt."""
        return self._progress is not None and self._progress.may_repeat

    def failed(
        self, condition: RetryCondition, reason: str, *, retry_after: float | None = None
    ) -> float | None:
        """End the attempt as failed; return the pause before the next, None where there is none."""
        assert self.call
        self.call.attempt.end(time.perf_counter(), error=reason)
        if self.call.target is None or self._progress is None:
            return None
        now = time.monotonic()
        self._answering = False
        self._router.health.failed(self.call.target, now, retry_after)
        # Instances must not march in step; this is no secret.
        jitter = random.random()  # noqa: S311
        return self._progress.pause_after(condition, now, retry_after or 0.0, jitter)

    def answered(self, status: int, wait: float | None) -> None:
        """Tell the target's health how it has answered; `wait` is its Retry-After in seconds."""
        assert self.call
        if self.call.target is None:
            return
        now = time.monotonic()
        if condition(status) is None:
            self._router.health.answering(self.call.target, now)
            self._answering = True
        else:
            self._router.health.failed(self.call.target, now, wait)

    def limits(self) -> TimeLimits:
        """Return the time limits of the attempt under way."""
        target = self.call.target if self.call else None
        if target is None or self.decision is None:
            return TimeLimits()
        limits, whole = target.limits, self.decision.rule.retry.per_try_timeout
        if whole is None:
            return limits
        first_byte = whole if limits.first_byte is None else min(limits.first_byte, whole)
        return replace(limits, first_byte=first_byte)

    def keep_answer(self, response: http.Response, body: bytes) -> None:
        """Keep a provider's refusal: the client gets the last one when all attempts have failed."""
        headers = http.Headers(without_hop_by_hop(response.headers.fields))
        headers.pop("transfer-encoding", None)
        headers["content-length"] = str(len(body))
        self._last_answer = http.Response.make(response.status_code, body, headers)
        self._last_answer.reason = response.reason

    def give_up(self, error: RequestError) -> None:
        """Put on the flow what the client gets when no attempt is left."""
        if self._last_answer is not None:
            self.flow.response = self._last_answer
            self._part(self.flow.response)
            self.exchange.response_bytes = len(self._last_answer.raw_content or b"")
            self.exchange.error = self.exchange.error or error.code
            self.answer = None
            return
        told = [a.error or f"status {a.status}" for a in self.exchange.attempts]
        if len(told) > 1:
            kinds = ", ".join(f"{n}: {_public(reason)}" for n, reason in enumerate(told, 1))
            error = type(error)(f"{error} Attempts: {kinds}.")
        self.refuse(error)

    def wire_request(self, outgoing: Outgoing, *, absolute: bool) -> http.Request:
        """Build what goes to the wire. It holds the key and is on no flow.

        `absolute` is the form that an upstream proxy wants for plain HTTP.
        """
        original = self.flow.request
        authority = url.hostport(outgoing.scheme, outgoing.host, outgoing.port)
        named = absolute or original.is_http2 or original.is_http3
        headers = http.Headers(outgoing.headers)
        sent = self._masks.behind(b"proxy-authorization")
        if absolute and sent is not None:
            headers["proxy-authorization"] = text(sent)  # it is for the upstream proxy
        version = original.data.http_version
        return http.Request(
            host=outgoing.host,
            port=outgoing.port,
            method=outgoing.method.encode(),
            scheme=outgoing.scheme.encode(),
            authority=authority.encode("idna") if named else b"",
            path=outgoing.path.encode("utf-8", "surrogateescape"),
            http_version=b"HTTP/1.1" if version == b"HTTP/1.0" else version,
            headers=headers,
            content=None,
            trailers=None,
            timestamp_start=time.time(),
            timestamp_end=None,
        )

    # --- the answer -------------------------------------------------------------------------------

    def begin_answer(self, response: http.Response) -> None:
        """Set up how the provider's answer is read and framed for the client."""
        started = time.perf_counter()
        assert self.call
        self.call.attempt.status = response.status_code
        headers = response.headers
        asked_usage = self.call.outgoing.asked_usage
        self._encoding = headers.get("content-encoding", "")
        self.answer = Answer(
            self._api,
            content_type=headers.get("content-type", ""),
            content_encoding=self._encoding,
            filter_usage=asked_usage and self.call.outgoing.shape is None,
        )
        if response.status_code in SUCCESS and self.answer.event_stream:
            self._learn(asked_usage=asked_usage)
        if response.status_code != _SWITCHING_PROTOCOLS:
            headers.fields = without_hop_by_hop(headers.fields)
            frame(self.flow.request, response, resized=self.answer.filters)
            self._part(response)
            response.stream = self.pass_on
        self.exchange.overhead += time.perf_counter() - started

    @property
    def streaming(self) -> bool:
        """Whether the answer is a stream that has begun."""
        return self.answer is not None and self.answer.event_stream

    def opens_with_content(self) -> bool:
        """Tell whether the answer is a stream whose first content is still to come."""
        return self.answer is not None and self.answer.opening

    def opened_with_error(self) -> bool:
        """Tell whether the stream has said that it failed, before any content."""
        reader = self.answer.reader if self.answer else None
        return reader is not None and reader.failed and not reader.content_started

    def shaper(self) -> Shaper | None:
        """Return what gives the answer the shape that the client asked for, if it has another."""
        if self.call is None or self.answer is None or self.flow.request.method == "HEAD":
            return None
        folds = self.call.outgoing.shape == "fold"
        if self.call.outgoing.shape is None or self.answer.event_stream is not folds:
            return None
        return Shaper(self.call.outgoing, self._encoding)

    def error_event(self, error: RequestError) -> bytes | None:
        """Return the event that ends a stream which has begun; None where there is no place for it.

        Within a length that was announced, or among compressed bytes, it would not be read as one.
        """
        assert self.flow.response
        if self.answer is None or not self.answer.event_stream:
            return None
        if "content-length" in self.flow.response.headers or self._encoding not in {"", "identity"}:
            return None
        data = error_body(error, self._api.name if self._api else None)
        named = b"event: error\n" if self._api and self._api.name.startswith("anthropic") else b""
        return b"\n\n" + named + b"data: " + data + b"\n\n"

    def _learn(self, *, asked_usage: bool) -> None:
        assert self.call
        if self.call.target is None:
            return
        if asked_usage:
            self._router.usage_accepted(self.call.target)
        elif not self.asks_usage:
            self._router.usage_refused(self.call.target)

    def _part(self, response: http.Response) -> None:
        if self._router.draining:
            part(self.flow.request, response)

    def pass_on(self, chunk: bytes) -> list[bytes]:
        """Take a chunk of the answer (b"" at its end) and return what the client gets now."""
        started = self.last_chunk = time.perf_counter()
        assert self.answer
        try:
            passed = self.answer.feed(chunk) if chunk else self.answer.close()
        except Exception as fault:  # noqa: BLE001
            # The answer goes on unread: losing the count is better than losing the answer.
            log_fault(logger, "an answer could not be read; its usage is unknown", fault)
            self.answer.reader = None
            passed = chunk
        self._time_chunks(self.answer, started)
        exchange = self.exchange
        exchange.response_bytes += len(passed)
        if self._router.keep_bodies and len(self.kept) < _MAX_KEPT_BODY:
            self.kept += passed
        if self._said:
            self._said.add(passed)
        exchange.overhead += time.perf_counter() - started
        # Never [b""]: in chunked framing an empty chunk is the end of the body.
        return [passed] if passed else []

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of what is done within as ours."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.exchange.overhead += time.perf_counter() - started

    def _time_chunks(self, answer: Answer, now: float) -> None:
        """Note when the first content of a stream came, and how long what follows takes."""
        reader, exchange = answer.reader, self.exchange
        if reader is None or not (answer.event_stream and reader.content_started):
            return
        if exchange.chunk_times is None:
            exchange.first_token, exchange.chunk_times = now, ChunkTimes(now)
        exchange.chunk_times.came(now, reader.later_events)

    def refuse(self, error: RequestError) -> None:
        """Put our own answer on the flow."""
        self.exchange.flag(error.flag)
        self.exchange.error = self.exchange.error or error.code
        self.answer = None
        self.flow.response = refusal_of(error, self._api.name if self._api else None)
        self.exchange.response_bytes = len(self.flow.response.raw_content or b"")
        self._part(self.flow.response)

    # --- the end ----------------------------------------------------------------------------------

    def suspects_usage(self, said: bytes) -> tuple[bool, bool]:
        """Tell of a 400 whether it may be, and whether it says that it is, about our addition."""
        assert self.call
        assert self.call.target
        named = b"stream_options" in said or b"include_usage" in said
        return named or self._router.suspects_usage(self.call.target), named

    def usage_refused(self) -> None:
        """Remember that this provider does not take the parameter."""
        assert self.call
        assert self.call.target
        self._router.usage_refused(self.call.target)

    def abandon(self, error: RequestError | None = None) -> None:
        """Close the exchange of a request that will see no more events."""
        flag, message = (error.flag, error.code) if error else ("DC", "client disconnected")
        self.close(source="partial", flag=flag, error=message)

    def close(
        self,
        *,
        source: UsageSource | None = None,
        flag: str = "",
        error: str | None = None,
        status: int | None = None,
    ) -> None:
        """Close the exchange, once, and emit it."""
        exchange = self.exchange
        if exchange.ended is not None:
            return
        exchange.ended = now = time.perf_counter()
        exchange.flag(flag)
        exchange.error = exchange.error or error
        exchange.status = status
        if self.flow.response is not None and status is None:
            exchange.status = self.flow.response.status_code
        if self.call is not None:
            said = None if error else self._error_said()
            if said:
                exchange.flag("UE")
                exchange.error = exchange.error or said
            self.call.attempt.end(now, error=error or said)
            self._judge(self.call.target, whole=source == "response", good=not said)
        else:
            self._free_probe()  # answered without a call
        self._occupy(None)
        steps: list[Callable[[], None]] = [
            partial(self._account, source),
            self._keep,
            self._tell_what_was_said,
            partial(self._time_close, now),
            self._show,
            self._emit,
        ]
        for step in steps:
            try:
                step()
            except Exception as fault:  # noqa: BLE001
                log_fault(logger, "a request could not be accounted for in full", fault)
        self._router.closed(self._client, self)
        self._release()

    def _release(self) -> None:
        """Keep nothing large: who still refers to this may do so for long."""
        self.forget_body()
        self._last_answer = None
        self.kept = bytearray()

    def forget_body(self) -> None:
        """Keep no body of the request: it will not be sent again."""
        self._body, self._decided_on = None, ()
        if self.call is not None and self.call.outgoing.body:
            self.call = replace(self.call, outgoing=replace(self.call.outgoing, body=b""))

    @property
    def decompressed(self) -> int:
        """How many bytes are held besides the body as it came."""
        return self._body.decompressed if self._body else 0

    @property
    def captures(self) -> bool:
        """Whether the request's body is needed when the exchange ends, for its span."""
        return self._said is not None

    def _error_said(self) -> str | None:
        """Return the error that an answer of a good status has turned out to be, if it has."""
        reader = self.answer.reader if self.answer else None
        good = self.exchange.status is not None and not is_error(self.exchange.status, None)
        return "error in the answer" if good and reader is not None and reader.failed else None

    def _judge(self, target: Target | None, *, whole: bool, good: bool) -> None:
        """Tell the target's health how an answer that began well has ended."""
        if target is None:
            return
        now = time.monotonic()
        if not good and self._answering:
            self._router.health.failed(target, now)
        elif whole and self._answering:
            self._router.health.succeeded(target, now)
        elif not whole:
            self._router.health.abandoned(target, now)

    def _time_close(self, ended: float) -> None:
        """Count the time since the end as ours; showing and telling it is past counting."""
        self.exchange.overhead += time.perf_counter() - ended

    def _emit(self) -> None:
        self._router.sinks.emit(self.exchange)
        content, self.exchange.content = self.exchange.content, None
        if content is not None:
            content.clear()  # no one wanted it

    def _tell_what_was_said(self) -> None:
        if self._said is not None and self.call is not None:
            self.exchange.content = content_of(
                self.exchange, self.call.outgoing, self.answer, self._said, self._encoding
            )

    def _account(self, source: UsageSource | None) -> None:
        reader, exchange = self.answer.reader if self.answer else None, self.exchange
        if self.answer is None or reader is None or self.call is None:
            return
        self.answer.account(exchange, self.call.attempt.provider_host, source)
        if reader.fault is not None:
            self._router.tell_fault(self.call.attempt.provider_host, reader.fault)

    def _show(self) -> None:
        if self._showing is not None:
            self._showing.update(self.exchange, self.decision)

    def _keep(self) -> None:
        """Leave on the flow what came of an answer that did not come to its end."""
        response = self.flow.response
        if response is None or not self._router.keep_bodies:
            return
        if self.kept and response.raw_content is None:
            response.raw_content = bytes(self.kept)
        cut = response.stream and len(self.kept) < self.exchange.response_bytes
        if cut and self._showing is not None:
            self._showing.cut(self.exchange.response_bytes)


def _public(reason: str) -> str:
    """Return an attempt's failure as a client may know it: without hosts or addresses."""
    known = ("status ", "no ", "stream ", "usage ")
    return reason if reason.startswith(known) else "not reached"


def _request_id(flow: http.HTTPFlow) -> str:
    """Return the client's request id where it can stand in a log line, else the flow's.

    A replay has one of its own: its flow may be the original's.
    """
    if flow.is_replay:
        return str(uuid4())
    sent = flow.request.headers.get("x-request-id", "")
    fits = 0 < len(sent) <= _MAX_REQUEST_ID and sent.isascii() and sent.isprintable()
    return str(sent if fits else flow.id)
