"""The request that leaves: the client's own, patched for one target.

Only what a target owns is touched: scheme, host, path, credentials, and single top-level fields of
a chat body. Every other header and every other byte of the body is as the client sent it. A rewrite
is made anew for each attempt, from the client's request, never from another rewrite.

A target without a config is only accounted for: its own host's traffic goes where it was going.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from posixpath import normpath
from typing import Literal
from urllib.parse import quote, unquote

import msgspec

from pointsman.config import credentials
from pointsman.config.resources import normalise_host
from pointsman.config.table import CallConfig, Target, TlsSettings
from pointsman.errors import MethodNotSupportedError, ModelMissingError
from pointsman.protocols import CHAT, Api, detect, streams_by_path
from pointsman.routing.request import Body, ClientRequest, Headers, text

DEFAULT_PORTS = {"http": 80, "https": 443}
Shape = Literal["fold", "unfold"]

# RFC 9110, 7.6.1, and what proxies of old have added.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# As they are on the wire.
CREDENTIAL_HEADERS = frozenset(name.encode() for name in credentials.CREDENTIAL_HEADERS)
_ECHOED = frozenset({"TRACE", "TRACK"})  # methods that are answered by the request itself
# What belongs to the account of the client's key and would contradict another's.
_ACCOUNT_HEADERS = frozenset({b"openai-organization", b"openai-project"})
# Gemini's clients may put their key into the query.
CREDENTIAL_PARAMETERS = frozenset({"access_token", "api-key", "api_key", "apikey", "key"})


def is_credential_parameter(name: str) -> bool:
    """Tell whether a query parameter, percent-encoded or not, carries a key."""
    return unquote(name).lower() in CREDENTIAL_PARAMETERS


_CHAT_ENDPOINT = "/chat/completions"
_PATH_SAFE = "/:@!$&'()*+,;=~-._"
# The endpoints of the OpenAI API, by which a path is told from the base that it stands on.
_ENDPOINT = re.compile(
    r"/(?:chat/completions|completions|responses|embeddings|models|moderations|images|audio|files"
    r"|uploads|batches|fine_tuning|assistants|threads|vector_stores|conversations|containers|evals"
    r"|realtime|videos|rerank)(?:/.*)?\Z"
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it goes to the wire. It holds the key: it must not be logged or shown.

    `model` and `stream` are what the provider is asked for; `asked_usage` tells that the usage
    event was asked for on our own account and has to be taken out of the answer again. `shape`
    tells what has to be done with the answer where the rules force `stream` against the client's
    wish: fold a stream into one body, or unfold a body into a stream; `client_usage` that the
    client wants the usage event in the latter. `secret_headers` are the lower-case names whose
    values no one may see; `chat` tells that it is a chat request, whatever the path.
    """

    method: str
    scheme: Literal["http", "https"]
    host: str
    port: int
    address: tuple[str, int]
    tls: TlsSettings
    path: str
    headers: Headers
    body: bytes
    model: str | None
    stream: bool
    asked_usage: bool = False
    shape: Shape | None = None
    client_usage: bool = False
    secret_headers: frozenset[str] = frozenset()
    chat: bool = False

    @property
    def api(self) -> Api | None:
        """The API that is spoken; a provider's chat endpoint may have any path."""
        return detect(self.method, self.path) or (CHAT if self.chat else None)


def rewrite(target: Target, request: ClientRequest, *, inject_usage: bool = True) -> Outgoing:
    """Return the request that calls the target.

    `inject_usage=False` keeps from asking for usage a provider that is known to refuse it.

    Raises:
        MalformedBodyError, ModelMissingError, UnsupportedEncodingError, BodyTooLargeError: a chat
            request that can't be patched.
        MethodNotSupportedError: the answer would show the key to the client.
        CredentialError: the target's key can't be had.
    """
    same_host = normalise_host(request.host) == target.host
    chat = is_chat(target, request)
    readable = chat and not request.body.streamed
    patched = _patch(target, request, inject_usage=inject_usage) if readable else None
    body = patched.body if patched else None
    scheme, port, address = _destination(target, request, same_host=same_host)
    set_headers = _set_headers(target.config)
    if set_headers and request.method.upper() in _ECHOED:
        raise MethodNotSupportedError(f"{request.method} is not sent to a provider with its key.")
    own_key = not CREDENTIAL_HEADERS.isdisjoint(set_headers)
    return Outgoing(
        method=request.method,
        scheme=scheme,
        host=target.host,
        port=port,
        address=address,
        tls=target.tls,
        path=_path(target, request, chat=chat, same_host=same_host, own_key=own_key),
        headers=_headers(
            request,
            host=None if same_host and not target.config else _authority(target.host, scheme, port),
            body=body,
            set_headers=set_headers,
            drop=_dropped(same_host=same_host, own_key=own_key)
            | ({b"accept-encoding"} if patched and patched.asked_usage else frozenset()),
        ),
        body=request.body.raw if body is None else body,
        model=patched.model if patched else request.model,
        stream=patched.stream if patched else _streams(request),
        asked_usage=patched.asked_usage if patched else False,
        shape=patched.shape if patched else None,
        client_usage=patched.client_usage if patched else False,
        secret_headers=frozenset(text(name) for name in set_headers)
        | frozenset(text(name) for name in CREDENTIAL_HEADERS | {b"cookie"}),
        chat=chat,
    )


def _streams(request: ClientRequest) -> bool:
    """Tell whether a request that is not rewritten asks for a stream."""
    if request.method == "POST" and streams_by_path(request.bare_path):
        return True
    return request.body.lenient_fields.get("stream") == _TRUE


def forward(request: ClientRequest) -> Outgoing:
    """Return the request unchanged, to where the client sent it: what observing does."""
    here = Target(provider="", host=normalise_host(request.host))
    return rewrite(here, request)


def is_chat(target: Target, request: ClientRequest) -> bool:
    """Tell whether a request is for the chat endpoint: a POST to `/` or to any chat path."""
    if request.method != "POST":
        return False
    path = plain_path(request.bare_path).rstrip("/")
    if path.lower().endswith(_CHAT_ENDPOINT):
        return True
    # Without a config nothing is rewritten, so a bare "/" keeps the meaning the host gives it.
    endpoint = (target.path or "").partition("?")[0].rstrip("/")
    return target.config is not None and path in {"", endpoint}


def plain_path(path: str) -> str:
    """Return a path as a provider may read it: decoded, without dot segments and `;` parameters.

    Otherwise another spelling of the chat path would leave with the rules' key and the client's own
    model.
    """
    decoded = unquote(path)
    if decoded == path and ";" not in path and "/." not in path and "//" not in path:
        return path
    segments = "/".join(segment.partition(";")[0] for segment in decoded.split("/"))
    return normpath("/" + segments.lstrip("/"))


def patches_body(target: Target, request: ClientRequest) -> bool:
    """Tell whether the target's config may change the request's body."""
    return target.config is not None and is_chat(target, request)


# --- destination ----------------------------------------------------------------------------------


def _destination(
    target: Target, request: ClientRequest, *, same_host: bool
) -> tuple[Literal["http", "https"], int, tuple[str, int]]:
    accounting_only = target.config is None and same_host
    if accounting_only and target.scheme is None and target.port is None:
        scheme: Literal["http", "https"] = "https" if request.scheme == "https" else "http"
        return scheme, request.port, target.address or request.address
    scheme = target.scheme or "https"
    port = target.port or DEFAULT_PORTS[scheme]
    return scheme, port, target.address or (target.host, port)


def _authority(host: str, scheme: str, port: int) -> bytes:
    name = f"[{host}]" if ":" in host else host
    return (name if port == DEFAULT_PORTS[scheme] else f"{name}:{port}").encode()


def _path(
    target: Target, request: ClientRequest, *, chat: bool, same_host: bool, own_key: bool
) -> str:
    """Put a chat request on the provider's path, any other below the provider's base path."""
    if target.path is None or target.config is None:
        path, query = request.bare_path or "/", ""
        if target.root_path is not None and path == "/" and request.method == "POST":
            path = target.root_path
    else:
        endpoint, _, query = target.path.partition("?")
        asked = request.bare_path
        if any(odd in unquote(asked) for odd in ("/.", "//")):
            asked = quote(plain_path(asked), safe=_PATH_SAFE)  # not to climb out of the base path
        below = _below(_base(endpoint), asked, same_host=same_host)
        path = endpoint if chat else below
    rest = request.path.partition("?")[2]
    if own_key or not same_host:
        rest = _without_credentials(rest)
    query = "&".join(part for part in (query, rest) if part)
    return f"{path}?{query}" if query else path


def _base(endpoint: str) -> str:
    """Return a path less its endpoint: `/v1` for `/v1/chat/completions`."""
    # First, as a base may have an endpoint's name in it: `/models/acme/tiny/v1/chat/completions`.
    if endpoint.endswith(_CHAT_ENDPOINT):
        return endpoint.removesuffix(_CHAT_ENDPOINT)
    if match := _ENDPOINT.search(endpoint):
        return endpoint[: match.start()]
    return endpoint.rpartition("/")[0]


def _below(base: str, path: str, *, same_host: bool) -> str:
    if path == base or path.startswith(base + "/"):
        return path
    if match := _ENDPOINT.search(path):
        return base + match[0]
    # On the provider's own host, a path that is none of OpenAI's is one of the provider's own API.
    return path if same_host else base + path


def _without_credentials(query: str) -> str:
    kept = [
        part for part in query.split("&") if not is_credential_parameter(part.partition("=")[0])
    ]
    return "&".join(kept)


# --- headers --------------------------------------------------------------------------------------


def _set_headers(config: CallConfig | None) -> dict[bytes, bytes]:
    if config is None:
        return {}
    headers = {name.encode(): value.encode() for name, value in config.headers.items()}
    if config.credential is not None:
        headers[b"authorization"] = b"Bearer " + config.credential.reveal().encode()
    return headers


def _dropped(*, same_host: bool, own_key: bool) -> frozenset[bytes]:
    dropped = HOP_BY_HOP | {b"content-length", b"expect"}
    if own_key or not same_host:
        dropped |= CREDENTIAL_HEADERS | _ACCOUNT_HEADERS
    if not same_host:
        dropped |= {b"cookie"}
    return dropped


def _headers(
    request: ClientRequest,
    *,
    host: bytes | None,
    body: bytes | None,
    set_headers: Mapping[bytes, bytes],
    drop: frozenset[bytes],
) -> Headers:
    # A client may name only its own additions: Host is never one.
    named = frozenset(
        option.strip().lower().encode()
        for option in request.header_values.get("connection", "").split(",")
    ) - {b"host"}
    if request.is_websocket:
        drop -= {b"connection", b"upgrade"}
        named = frozenset()
    if request.multiplexed and request.header_values.get("te") == "trailers":
        drop -= {b"te"}  # the one TE that HTTP/2 has (RFC 9113, 8.2.2); gRPC insists on it
    if body is not None:
        drop |= {b"content-encoding"}  # what is patched was decoded
    result = []
    if host is not None and not request.multiplexed and "host" not in request.header_values:
        result.append((b"host", host))
    for raw_name, sent in request.headers:
        name, value = raw_name.lower(), sent
        if name in drop or name in named or name in set_headers:
            continue
        if name == b"host":
            value = host or sent
        elif name == b"sec-websocket-protocol" and b"authorization" in drop:
            value = _without_key_protocols(sent)
        result.append((raw_name, value))
    if b"accept-encoding" in drop:
        result.append((b"accept-encoding", b"identity"))
    result.extend(set_headers.items())
    result.extend(_framing(request, body))
    return tuple(result)


def _without_key_protocols(value: bytes) -> bytes:
    """Drop the client's key from a Sec-WebSocket-Protocol, where browsers have to put it."""
    parts = [part.strip() for part in value.split(b",")]
    return b", ".join(part for part in parts if not part.startswith(b"openai-insecure-api-key"))


def _framing(request: ClientRequest, body: bytes | None) -> Headers:
    if request.body.streamed:
        length = request.header_values.get("content-length")
        if length is not None:
            return ((b"content-length", length.encode()),)
        return () if request.multiplexed else ((b"transfer-encoding", b"chunked"),)
    size = len(request.body.raw if body is None else body)
    if size or request.method in {"POST", "PUT", "PATCH"}:
        return ((b"content-length", b"%d" % size),)
    return ()


def without_hop_by_hop(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return an answer's headers without those that belong to the provider's connection.

    Transfer-Encoding stays: it frames the body that follows. Alt-Svc goes: it would send the
    client's next request around the proxy.
    """
    headers = tuple(headers)
    named = {
        option.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    drop = (HOP_BY_HOP - {b"transfer-encoding"} | {b"alt-svc"} | named) - {b"transfer-encoding"}
    return tuple((name, value) for name, value in headers if name.lower() not in drop)


# --- body -----------------------------------------------------------------------------------------

_TRUE = msgspec.Raw(b"true")
_NULL = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class _Patched:
    body: bytes | None  # None: nothing had to be changed
    model: str | None
    stream: bool
    asked_usage: bool
    shape: Shape | None
    client_usage: bool


def _patch(target: Target, request: ClientRequest, *, inject_usage: bool) -> _Patched:
    """Patch the fields of a chat body that the target owns, and no others."""
    config = target.config
    inject_usage = inject_usage and target.stream_usage == "inject"
    # Without a config a body need not even be JSON: that is between the client and its provider.
    fields = request.body.fields if config else request.body.lenient_fields
    changes: dict[str, msgspec.Raw | None] = {}
    model = _string(fields.get("model"))
    if config is not None:
        model = _patch_model(config, model, fields, changes)
        if config.stream is not None and fields.get("stream") != (wanted := _raw(config.stream)):
            changes["stream"] = wanted
        for name, value in config.params_default.items():
            if name not in fields:
                changes[name] = _raw(value)
        changes.update({name: _raw(value) for name, value in config.params_set.items()})
    stream = (changes.get("stream") or fields.get("stream")) == _TRUE
    asked_usage = False
    if stream and inject_usage:
        asked_usage = _ask_usage(fields.get("stream_options", _NULL), changes)
    elif config is not None and config.stream is False and "stream_options" in fields:
        changes["stream_options"] = None  # providers refuse it without stream
    body = None
    if changes or (config is not None and request.body.repeats(_owned(config))):
        merged = {**fields, **changes}
        body = msgspec.json.encode({k: v for k, v in merged.items() if v is not None})
    wanted_stream = fields.get("stream") == _TRUE
    shape: Shape | None = None
    if config is not None and config.stream is not None and stream != wanted_stream:
        shape = "fold" if stream else "unfold"
    usage = wanted_stream and _asks_usage(fields.get("stream_options", _NULL))
    return _Patched(body, model, stream, asked_usage, shape, client_usage=usage)


def _owned(config: CallConfig) -> set[str]:
    """Return the fields that rules look at or set: no other reader may find another value."""
    return {"model", "stream", "stream_options", *config.params_default, *config.params_set}


def _patch_model(
    config: CallConfig,
    asked: str | None,
    fields: Mapping[str, msgspec.Raw],
    changes: dict[str, msgspec.Raw | None],
) -> str | None:
    model = map_model(config, asked)
    if model is None and fields.get("model", _NULL) == _NULL:
        raise ModelMissingError(
            "Neither the request nor the rules name a model: set `model` in the request body."
        )
    if model is not None and model != asked:
        changes["model"] = _raw(model)
    return model


def map_model(config: CallConfig, asked: str | None) -> str | None:
    """Return the provider's model for the client's, `asked`; None where neither names one.

    A mapping comes first (an exact name, then the longest prefix), then the config's model.
    """
    mapping = config.model_mapping
    if asked is not None and mapping:
        if found := mapping.get(asked):
            return found
        prefixes = [p for p in mapping if p.endswith("*") and asked.startswith(p[:-1])]
        if prefixes:
            return mapping[max(prefixes, key=len)]
    return config.model or asked


def _asks_usage(options: msgspec.Raw) -> bool:
    try:
        asked = msgspec.json.decode(options)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(asked, dict) and asked.get("include_usage") is True


def _ask_usage(options: msgspec.Raw, changes: dict[str, msgspec.Raw | None]) -> bool:
    """Ask for the usage event unless the client does; tell whether it is on our own account."""
    try:
        asked = msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None) or {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False  # no object: the provider will refuse it, as it would have without us
    if asked.get("include_usage") == _TRUE:
        return False
    changes["stream_options"] = _raw({**asked, "include_usage": True})
    return True


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _string(value: msgspec.Raw | None) -> str | None:
    if value is None:
        return None
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return decoded if isinstance(decoded, str) and decoded else None


__all__ = [
    "CREDENTIAL_HEADERS",
    "CREDENTIAL_PARAMETERS",
    "DEFAULT_PORTS",
    "Body",
    "Outgoing",
    "forward",
    "is_chat",
    "map_model",
    "rewrite",
    "without_hop_by_hop",
]
