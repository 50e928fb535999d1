"""Why a request would go where it would go: for `pointsman explain`. Nothing is sent.

The same functions decide here and in the proxy. Keys are masked; of the body only the fields that
change are shown.
"""

import re
from dataclasses import asdict, dataclass
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from rich.console import Console
from rich.text import Text

from pointsman.config.backends import INFERENCE_POOL
from pointsman.config.credentials import CredentialError
from pointsman.config.hosts import known_llm_hosts
from pointsman.config.resources import authority
from pointsman.config.table import RoutingTable, Rule, Target
from pointsman.errors import NoRouteError, NoTargetError, RequestError
from pointsman.routing import matching
from pointsman.routing.balancing import NoWeightError, affinity_value
from pointsman.routing.changes import BodyChange, body_changes, shown_headers
from pointsman.routing.masking import mask_query
from pointsman.routing.planning import order_of, shares
from pointsman.routing.request import Body, ClientRequest, text
from pointsman.routing.rewriting import DEFAULT_PORTS, rewrite

_BODY_LIMIT = 32 * 1024 * 1024
_TOKEN_CHARACTERS = 32  # a header name longer than that is taken for a mistake in the quoting
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")


@dataclass(frozen=True, slots=True)
class RuleStep:
    """One rule that was looked at."""

    rule: str
    matched: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TargetStep:
    """One target that the request may go to, and the request that would leave.

    `share` is its part of what its priority gets; a priority above 0 waits for the ones before.
    """

    provider: str
    share: float
    priority: int = 0
    method: str = ""
    host: str = ""
    url: str = ""
    connects_to: str = ""
    headers: tuple[str, ...] = ()
    dropped_headers: tuple[str, ...] = ()
    body_changes: tuple[BodyChange, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision, step by step. `error` is what the client would be told instead.

    `known_llm_host` is told of a host that is in no rule: whether `llm_unknown=deny` refuses it.
    """

    request: str
    route: str | None
    rules: tuple[RuleStep, ...] = ()
    observe: bool = False
    affinity: str | None = None
    targets: tuple[TargetStep, ...] = ()
    error: str | None = None
    known_llm_host: bool | None = None

    def as_dict(self) -> dict[str, object]:
        """Return it as plain data, for JSON."""
        return asdict(self)


def parse_request(*, url: str, method: str, headers: list[str], body: bytes) -> ClientRequest:
    """Return the request that the parts describe.

    Raises:
        ValueError: a part is malformed.
    """
    if not _TOKEN.match(method):
        raise ValueError(f"--method: {method!r} is not an HTTP method; write it as POST")
    parts, host, port = _split(url)
    fields = [(b"host", parts.netloc.rpartition("@")[2].encode())]
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip() or " " in name.strip():
            raise ValueError(f"--header: {header[:_TOKEN_CHARACTERS]!r} is not `name: value`")
        fields.append((name.strip().encode(), value.strip().encode()))
    path = parts.path or "/"
    encoding = next((text(v) for n, v in fields if n.lower() == b"content-encoding"), "")
    return ClientRequest(
        method=method.upper(),
        scheme=parts.scheme,
        host=host,
        port=port,
        path=f"{path}?{parts.query}" if parts.query else path,
        headers=tuple(fields),
        body=Body(body, encoding, limit=_BODY_LIMIT),
        address=(host, port),
    )


def _split(url: str) -> tuple[SplitResult, str, int]:
    """Return the parts of a URL, its host, and its port or its scheme's. Raises ValueError."""
    if not url.isprintable() or " " in url:
        raise ValueError(f"--url: {url!r} has white space in it; write %20 for a space")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:
        raise ValueError(f"--url: {url!r} is not a URL; IPv6 goes in brackets") from None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"--url: {url!r} is not an http or https URL")
    try:
        port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise ValueError(f"--url: {url!r} has a port that can't be; write 1 to 65535")
    return parts, parts.hostname, port


def explain(table: RoutingTable, request: ClientRequest) -> Explanation:
    """Return what would happen to the request."""
    said = f"{request.method} {request.scheme}://{authority(request.host)}{request.bare_path}"
    route = table.lookup(request.host)
    if route is None:
        known = request.host in known_llm_hosts()
        return Explanation(said, route=None, known_llm_host=known)
    name = route.name or "none (the provider answers for its own host)"
    verdicts = list(matching.explain(route, request))
    steps = tuple(RuleStep(v.rule.name, v.matched, v.reason) for v in verdicts)
    if not verdicts[-1].matched:
        error = f"{NoRouteError.status}: no rule of the route matches"
        return Explanation(said, name, steps, error=error)
    rule = verdicts[-1].rule
    value = affinity_value(rule.affinity, request)
    try:
        targets = _targets(rule, value)
    except NoWeightError:
        error = f"{NoTargetError.status}: no provider of the rule applies to this workload"
        return Explanation(said, name, steps, rule.observe, error=error)
    reached = tuple(_step(target, share, request) for target, share in targets)
    refused = next((step.error for step in reached if step.error), None)
    return Explanation(said, name, steps, rule.observe, value, reached, refused)


def _targets(rule: Rule, affinity: str | None) -> list[tuple[Target, float]]:
    if not any(target.weight for target in rule.targets):
        raise NoWeightError
    if affinity is not None:
        return [(order_of(rule.targets, affinity)[0], 1.0)]
    return [(target, share) for target, share in shares(rule.targets) if share]


def _step(target: Target, share: float, request: ClientRequest) -> TargetStep:
    try:
        outgoing = rewrite(target, request)
    except RequestError as error:
        message = f"{error.status}: {error}"
        return TargetStep(target.provider, share, target.priority, error=message)
    except CredentialError as error:
        message = f"{NoTargetError.status}: {error}"
        return TargetStep(target.provider, share, target.priority, error=message)
    port = None if outgoing.port == DEFAULT_PORTS[outgoing.scheme] else outgoing.port
    sent = {name.lower() for name, _ in outgoing.headers}
    return TargetStep(
        provider=target.provider,
        share=share,
        priority=target.priority,
        method=outgoing.method,
        host=outgoing.host,
        url=f"{outgoing.scheme}://{authority(outgoing.host, port)}{mask_query(outgoing.path)}",
        connects_to=_where(target) or authority(*outgoing.address),
        headers=tuple(shown_headers(outgoing)),
        dropped_headers=tuple(
            text(name).lower() for name, _ in request.headers if name.lower() not in sent
        ),
        body_changes=tuple(body_changes(request, outgoing)),
    )


def _where(target: Target) -> str | None:
    """Say where a backend is that only the cluster knows the addresses of."""
    if target.endpoints is None:
        return None
    backend = target.endpoints.backend
    pod = backend.kind == INFERENCE_POOL
    return f"a ready pod of the {backend}" if pod else f"the cluster IP of the {backend}"


def show(explanation: Explanation, console: Console) -> None:
    """Print it for a person."""

    def line(style: str, *parts: str) -> None:
        console.print(Text(" ".join(parts), style=style))

    line("bold", explanation.request)
    if explanation.route is None:
        line("yellow", "  the host is in no rule: passed on untouched, HTTPS undecrypted")
        if explanation.known_llm_host:
            what = "it is a known LLM host: with llm_unknown=deny it is refused instead"
            line("yellow", f"  {what} (403; HTTPS is closed)")
        return
    line("", "  route", explanation.route)
    for step in explanation.rules:
        mark, style = ("✓", "green") if step.matched else ("✗", "dim")
        line(style, f"  {mark} rule {step.rule}:", step.reason)
    if explanation.observe:
        line("yellow", "  mode observe: only logged; the request goes where it was going")
    if explanation.affinity is not None:
        line("", "  affinity: this value keeps its target")
    for target in explanation.targets:
        _show_target(target, line)
    if explanation.error and not explanation.targets:
        line("red", "  refused with", explanation.error)


class _Line(Protocol):
    def __call__(self, style: str, *parts: str) -> None: ...


def _show_target(target: TargetStep, line: _Line) -> None:
    tier = f", when those before have failed: priority {target.priority}" if target.priority else ""
    line("bold", f"  → {target.provider} ({target.share:.0%}{tier})")
    if target.error:
        line("red", "      refused with", target.error)
        return
    line("cyan", "     ", target.method, target.url)
    line("dim", "      connects to", target.connects_to)
    for header in target.headers:
        line("", "     ", header)
    for name in target.dropped_headers:
        line("dim", f"      {name}: (dropped)")
    for change in target.body_changes:
        before = "(absent)" if change.before is None else change.before
        after = "(removed)" if change.after is None else change.after
        line("magenta", f"      body {change.field}: {before} → {after}")
