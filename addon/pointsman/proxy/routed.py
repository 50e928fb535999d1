"""One request of ours from its headers to its log line: all of it that is not I/O.

The stream (see `streams`) speaks with mitmproxy and asks here what to send and what to answer.
Nothing on the flow ever holds a key: not the provider's, which only the wire's copy gets, and not
the client's own, which is masked on the flow and kept aside.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mitmproxy import http
from mitmproxy.net.http import url

from pointsman.config.credentials import CredentialError, mask
from pointsman.config.table import Route, Target
from pointsman.errors import InternalError, NoRouteError, NoTargetError, RequestError
from pointsman.protocols import detect
from pointsman.protocols.errors import error_body
from pointsman.proxy.answer import Answer
from pointsman.proxy.router import Decision, Router
from pointsman.routing.request import Body, ClientRequest, StreamedBody, text
from pointsman.routing.rewriting import (
    CREDENTIAL_HEADERS,
    CREDENTIAL_PARAMETERS,
    Outgoing,
    forward,
    rewrite,
    without_hop_by_hop,
)
from pointsman.telemetry.cost import cost_usd
from pointsman.telemetry.exchange import Attempt, Exchange, UsageSource, summary

logger = logging.getLogger(__name__)

_MAX_KEPT_BODY = 16 * 1024 * 1024
_MAX_REQUEST_ID = 128
_SWITCHING_PROTOCOLS = 101
_MULTIPLE_CHOICES = 300  # the first status that is no success
_BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt under way: what is sent, and its record."""

    target: Target | None  # None: passed on unchanged, observed only
    outgoing: Outgoing
    attempt: Attempt


class RoutedRequest:
    """A request to a host of ours, and its exchange."""

    def __init__(self, router: Router, flow: http.HTTPFlow, route: Route, host: str) -> None:
        self.flow = flow
        self.decision: Decision | None = None
        self.call: Call | None = None
        self.answer: Answer | None = None
        self.asks_usage = True
        self.kept = bytearray()  # of the answer's body, where a UI will show it
        self._router = router
        self._route = route
        self._host = host
        request = flow.request
        self._api = detect(request.method, request.path)
        peer = flow.client_conn.peername
        self.exchange = Exchange(
            request_id=_request_id(request.headers.get("x-request-id"), flow.id),
            host=host,
            method=request.method,
            path=request.path.partition("?")[0],
            client=url.hostport("", peer[0], peer[1]) if peer else None,
            started=time.perf_counter(),
            workload=router.workload,
            namespace=router.namespace,
            route=route.name,
        )
        self._body: Body | None = None
        self._passes_unread: bool | None = None
        # The client's credentials, by what stands on the flow in their place.
        self._masked: dict[tuple[bytes, bytes], bytes] = {}
        self._masked_paths: dict[str, str] = {}
        self._mask_credentials()
        router.opened(flow.client_conn.id, self)

    # --- the request ------------------------------------------------------------------------------

    def _mask_credentials(self) -> None:
        request = self.flow.request
        fields = []
        for name, value in request.headers.fields:
            shown = value
            # With a space after its name a header is refused, but the flow is kept.
            if name.strip().lower() in CREDENTIAL_HEADERS:
                shown = mask(text(value)).encode()
                self._masked[name, shown] = value
            fields.append((name, shown))
        request.headers.fields = tuple(fields)
        if (shown_path := mask_query(request.path)) != request.path:
            self._masked_paths[shown_path] = request.path
            request.path = shown_path

    def client_request(self) -> ClientRequest:
        """Read the flow as it stands now: what a person edited at an intercept counts."""
        request = self.flow.request
        raw = request.raw_content or b""
        if self._body is None or not (self._body.streamed or self._body.raw is raw):
            encoding = request.headers.get("content-encoding", "")
            self._body = Body(raw, encoding, limit=self._router.body_limit)
        _, port = url.parse_authority(request.host_header or "", check=False)
        return ClientRequest(
            method=request.method,
            scheme=request.scheme,
            host=self._host,
            port=port or request.port,
            path=self._masked_paths.get(request.path, request.path),
            headers=tuple(
                (name, self._masked.get((name, value), value))
                for name, value in request.headers.fields
            ),
            body=self._body,
            address=(request.host, request.port),
            multiplexed=request.is_http2 or request.is_http3,
        )

    def decide(self) -> RequestError | None:
        """Make the decision; return what the client has to be told instead, if so."""
        started = time.perf_counter()
        try:
            request = self.client_request()
            self.exchange.request_bytes = len(request.body.raw)
            self.exchange.client_model = request.model
            self._take(self._router.decide(self._route, request))
        except RequestError as error:
            return self._unless_observing(error)
        except Exception:
            logger.exception("no decision could be made")
            return InternalError("Pointsman failed to handle this request.")
        finally:
            self.exchange.overhead += time.perf_counter() - started
        return None

    def decide_unread(self) -> bool:
        """Decide on a request that is too large to be read; tell whether it can pass unread."""
        if self._passes_unread is None:
            self._body = StreamedBody()
            self._passes_unread = False
            try:
                decision = self._router.decide_unread(self._route, self.client_request())
                if decision is not None:
                    self._take(decision)
                    self._passes_unread = True
            except RequestError as error:
                self._passes_unread = self._unless_observing(error) is None
            except Exception:
                logger.exception("no decision could be made")
        return self._passes_unread

    def _take(self, decision: Decision) -> None:
        exchange = self.exchange
        self.decision = decision
        exchange.rule = decision.rule.name
        exchange.provider = decision.target.provider
        exchange.provider_host = decision.target.host
        if decision.observe:
            exchange.flag("OB")
        self._show()

    def _unless_observing(self, error: RequestError) -> RequestError | None:
        """Who only observes refuses nothing: what would have been refused is logged."""
        if not (self._router.observe and isinstance(error, NoRouteError | NoTargetError)):
            return error
        self.exchange.flag(error.flag)
        self.exchange.flag("OB")
        return None

    def begin_call(self) -> Call | RequestError:
        """Make the request for the decision's target, from the flow as it stands now."""
        started = time.perf_counter()
        decided = self.decision if self.decision and not self.decision.observe else None
        try:
            return self._begin_call(decided.target if decided else None)
        except RequestError as error:
            return error
        except CredentialError as error:
            logger.error("the key of provider %s: %s", self.exchange.provider, error)  # noqa: TRY400
            return NoTargetError(f"The key of the provider {self.exchange.provider} is missing.")
        except Exception:
            logger.exception("a request could not be rewritten")
            return InternalError("Pointsman failed to handle this request.")
        finally:
            self.exchange.overhead += time.perf_counter() - started

    def _begin_call(self, target: Target | None) -> Call:
        exchange, request = self.exchange, self.client_request()
        if target is None:
            outgoing = forward(request)
        else:
            inject = self.asks_usage and self._router.asks_usage(target)
            outgoing = rewrite(target, request, inject_usage=inject)
        exchange.request_model = outgoing.model
        exchange.stream = outgoing.stream
        # The query may carry a client's key.
        exchange.upstream_path = outgoing.path.partition("?")[0]
        self._api = detect(outgoing.method, outgoing.path) or self._api
        attempt = Attempt(
            provider=target.provider if target else outgoing.host,
            provider_host=outgoing.host,
            started=time.perf_counter(),
        )
        exchange.attempts.append(attempt)
        self.call = Call(target, outgoing, attempt)
        return self.call

    def wire_request(self, outgoing: Outgoing, *, absolute: bool) -> http.Request:
        """Build what goes to the wire. It holds the key and is on no flow.

        `absolute` is the form that an upstream proxy wants for plain HTTP.
        """
        original = self.flow.request
        authority = url.hostport(outgoing.scheme, outgoing.host, outgoing.port)
        named = absolute or original.is_http2 or original.is_http3
        return http.Request(
            host=outgoing.host,
            port=outgoing.port,
            method=outgoing.method.encode(),
            scheme=outgoing.scheme.encode(),
            authority=authority.encode("idna") if named else b"",
            path=outgoing.path.encode("utf-8", "surrogateescape"),
            http_version=original.data.http_version,
            headers=http.Headers(outgoing.headers),
            content=None,
            trailers=original.trailers,
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
        self.answer = Answer(
            self._api,
            content_type=headers.get("content-type", ""),
            content_encoding=headers.get("content-encoding", ""),
            filter_usage=asked_usage,
        )
        if response.status_code < _MULTIPLE_CHOICES and self.answer.event_stream:
            self._learn(asked_usage=asked_usage)
        if response.status_code != _SWITCHING_PROTOCOLS:
            headers.fields = without_hop_by_hop(headers.fields)
            self._frame(response, resized=self.answer.filters)
            response.stream = self._pass_on
        self.exchange.overhead += time.perf_counter() - started

    def _learn(self, *, asked_usage: bool) -> None:
        assert self.call
        if self.call.target is None:
            return
        if asked_usage:
            self._router.usage_accepted(self.call.target)
        elif not self.asks_usage:
            self._router.usage_refused(self.call.target)

    def _frame(self, response: http.Response, *, resized: bool) -> None:
        """Frame the body for the client's connection, which outlives the provider's."""
        request, headers = self.flow.request, response.headers
        if resized:
            headers.pop("content-length", None)
        if request.is_http2 or request.is_http3:
            headers.pop("transfer-encoding", None)
            return
        framed = "content-length" in headers or "transfer-encoding" in headers
        bodiless = request.method == "HEAD" or response.status_code in _BODILESS
        if not framed and not bodiless and request.http_version == "HTTP/1.1":
            headers["transfer-encoding"] = "chunked"

    def _pass_on(self, chunk: bytes) -> list[bytes]:
        """Take a chunk of the answer (b"" at its end) and return what the client gets now."""
        started = time.perf_counter()
        assert self.answer
        try:
            passed = self.answer.feed(chunk) if chunk else self.answer.close()
        except Exception:
            # The answer goes on unread: losing the count is better than losing the answer.
            logger.exception("an answer could not be read; its usage is unknown")
            self.answer.reader = None
            passed = chunk
        reader, exchange = self.answer.reader, self.exchange
        if reader and reader.content_started and exchange.first_token is None:
            exchange.first_token = started if self.answer.event_stream else None
        exchange.response_bytes += len(passed)
        if self._router.keep_bodies and len(self.kept) < _MAX_KEPT_BODY:
            self.kept += passed
        exchange.overhead += time.perf_counter() - started
        # Never [b""]: in chunked framing an empty chunk is the end of the body.
        return [passed] if passed else []

    def refuse(self, error: RequestError) -> None:
        """Put our own answer on the flow."""
        self.exchange.flag(error.flag)
        self.exchange.error = self.exchange.error or error.code
        self.answer = None
        body = error_body(
            self._api.name if self._api else None,
            status=error.status,
            message=str(error),
            kind=error.kind,
            code=error.code,
            param=error.param,
        )
        self.exchange.response_bytes = len(body)
        headers = {"content-type": "application/json", "x-pointsman-error": error.code}
        self.flow.response = http.Response.make(error.status, body, headers)

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
        self, *, source: UsageSource | None = None, flag: str = "", error: str | None = None
    ) -> None:
        """Close the exchange, once, and emit it."""
        exchange = self.exchange
        if exchange.ended is not None:
            return
        exchange.ended = now = time.perf_counter()
        exchange.flag(flag)
        exchange.error = exchange.error or error
        if self.flow.response is not None:
            exchange.status = self.flow.response.status_code
        if self.call is not None:
            self.call.attempt.end(now, error=error)
        steps: list[Callable[[], None]] = [
            partial(self._account, source),
            self._show,
            partial(self._emit, now),
        ]
        for step in steps:
            try:
                step()
            except Exception:
                logger.exception("a request could not be accounted for in full")
        self._router.closed(self.flow.client_conn.id, self)

    def _emit(self, ended: float) -> None:
        self.exchange.overhead += time.perf_counter() - ended
        self._router.emit(self.exchange)

    def _account(self, source: UsageSource | None) -> None:
        reader, exchange = self.answer.reader if self.answer else None, self.exchange
        if reader is None or self.call is None:
            return
        exchange.response_model = reader.model
        exchange.finish_reason = reader.finish_reason
        exchange.usage = reader.usage
        exchange.usage_source = source if reader.usage else None
        exchange.cost_usd = cost_usd(
            reader.usage,
            provider_host=self.call.attempt.provider_host,
            models=(reader.model, exchange.request_model),
        )

    def _show(self) -> None:
        """Put the decision on the flow, for the lists and filters of the UIs."""
        exchange = self.exchange
        self.flow.comment = summary(exchange)
        shown = {
            "llm_route": exchange.route,
            "llm_rule": exchange.rule,
            "llm_provider": exchange.provider,
            "llm_model": exchange.request_model,
            "llm_flags": " ".join(exchange.flags),
            "llm_error": exchange.error,
        }
        self.flow.metadata.update({name: value for name, value in shown.items() if value})


def _request_id(sent: str | None, own: str) -> str:
    """Return the client's request id where it can stand in a log line, else the flow's."""
    if sent and len(sent) <= _MAX_REQUEST_ID and sent.isascii() and sent.isprintable():
        return sent
    return own


def mask_query(path: str) -> str:
    """Return a path whose query shows no key."""
    bare, mark, query = path.partition("?")
    parts = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        secret = equals and name.lower() in CREDENTIAL_PARAMETERS
        parts.append(f"{name}={mask(value)}" if secret else part)
    return f"{bare}{mark}{'&'.join(parts)}"
