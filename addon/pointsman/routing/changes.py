"""What a rewrite has changed, for people: every key masked, long values cut.

The client's request and the one that leaves are compared; neither is touched.
"""

from dataclasses import dataclass

import msgspec

from pointsman.config.problems import shown_field
from pointsman.routing.masking import mask_protocols, mask_query, mask_value
from pointsman.routing.request import Body, ClientRequest, Headers, text
from pointsman.routing.rewriting import CREDENTIAL_HEADERS, HOP_BY_HOP, Outgoing

_SHOWN = 60
_MOST = 100  # headers or fields
# What frames the message is each connection's own; the host has a line of its own.
_FRAMING = frozenset(map(text, HOP_BY_HOP | {b"content-length", b"host"}))
_SECRET = frozenset(map(text, CREDENTIAL_HEADERS | {b"cookie"}))


@dataclass(frozen=True, slots=True)
class Change:
    """One thing before and after; None where it is not there."""

    what: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class BodyChange:
    """One top-level field of the body, as JSON; None where it is not there."""

    field: str
    before: str | None
    after: str | None


def place_changes(request: ClientRequest, outgoing: Outgoing) -> list[Change]:
    """Return what is different of where the request goes."""
    pairs = (
        ("scheme", request.scheme, outgoing.scheme),
        ("host", request.host, outgoing.host),
        ("port", str(request.port), str(outgoing.port)),
        ("path", _cut(mask_query(request.path)), _cut(mask_query(outgoing.path))),
    )
    return [Change(what, before, after) for what, before, after in pairs if before != after]


def header_changes(request: ClientRequest, outgoing: Outgoing) -> list[Change]:
    """Return the headers that are set, changed or dropped, without those that only frame."""
    secret = outgoing.secret_headers | _SECRET
    before, after = _by_name(request.headers), _by_name(outgoing.headers)
    names = [name for name in dict.fromkeys([*before, *after]) if name not in _FRAMING]
    return [
        Change(_named(name, outgoing), _header(name, before, secret), _header(name, after, secret))
        for name in names
        if before.get(name) != after.get(name)
    ][:_MOST]


def body_changes(request: ClientRequest, outgoing: Outgoing) -> list[BodyChange]:
    """Return the top-level fields of the body that are set, changed or dropped."""
    if outgoing.body is request.body.raw:
        return []
    before = request.body.lenient_fields
    # What the client may send (NaN, a lone surrogate) leaves as it came, and is read alike.
    after = Body(outgoing.body, limit=len(outgoing.body)).lenient_fields
    return [
        BodyChange(name, _shown(before.get(name)), _shown(after.get(name)))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ][:_MOST]


def shown_headers(outgoing: Outgoing) -> list[str]:
    """Return the headers that leave, each in a line."""
    return [
        f"{_named(name, outgoing)}: {_masked(name, value, outgoing)}"
        for name, value in ((text(n).lower(), text(v)) for n, v in outgoing.headers)
    ]


def _masked(name: str, value: str, outgoing: Outgoing) -> str:
    return mask_value(value) if name in outgoing.secret_headers else value


def _named(header: str, outgoing: Outgoing) -> str:
    """Return a header's name; the rules may have a key in its place."""
    return shown_field(header) if header in outgoing.secret_headers else header


def _by_name(headers: Headers) -> dict[str, list[bytes]]:
    values: dict[str, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(text(name).lower(), []).append(value)
    return values


def _header(name: str, values: dict[str, list[bytes]], secret: frozenset[str]) -> str | None:
    if name not in values:
        return None
    said = (text(mask_protocols(value)) for value in values[name])
    return _cut(", ".join(mask_value(value) if name in secret else value for value in said))


def _shown(value: msgspec.Raw | None) -> str | None:
    return None if value is None else _cut(bytes(value).decode("utf-8", "replace"))


def _cut(said: str) -> str:
    return said if len(said) <= _SHOWN else said[:_SHOWN] + "…"
