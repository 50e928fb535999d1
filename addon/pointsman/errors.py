"""What may go wrong with one request, each with the status and the words that the client gets.

The messages reach applications: they name routes and providers by what the client itself knows,
and hold no key, no prompt and no answer.
"""

from typing import ClassVar


class RequestError(Exception):
    """A request that Pointsman answers itself.

    Attributes:
        status: the HTTP status for the client.
        kind: `error.type` in the JSON body, as OpenAI names them.
        code: `error.code`, and the value of the header `x-pointsman-error`.
        flag: the response flag in the access log, as Envoy names them; "" for none.
        param: the body field at fault, if one is.
        retry_after: seconds after which the same request may succeed, as the client is told.
    """

    status: ClassVar[int] = 400
    kind: ClassVar[str] = "invalid_request_error"
    code: ClassVar[str] = "bad_request"
    flag: ClassVar[str] = ""
    param: ClassVar[str | None] = None
    retry_after: ClassVar[int | None] = None


class NoRouteError(RequestError):
    """The host has a route, but none of its rules matches."""

    status = 404
    code = "no_route"
    flag = "NR"


class NoTargetError(RequestError):
    """The rule that matched has no target that can be called."""

    status = 503
    kind = "server_error"
    code = "no_target"
    flag = "UH"


class KeyMissingError(NoTargetError):
    """The rule that matched has no target left whose key can be had.

    Attributes:
        rule: that rule.
        provider: the one that would have been called.
    """

    code = "no_key"
    rule: str | None = None
    provider: str | None = None


class MalformedBodyError(RequestError):
    """A chat request whose body is not a JSON object."""

    code = "malformed_body"
    flag = "DPE"


class ModelMissingError(RequestError):
    """Neither the client nor the rules name a model."""

    code = "model_missing"
    param = "model"


class BodyTooLargeError(RequestError):
    """A body over the limit, as sent or once decompressed."""

    status = 413
    code = "body_too_large"
    flag = "DPE"


class OverloadedError(RequestError):
    """The bodies of the requests under way hold as much memory as they may."""

    status = 503
    kind = "server_error"
    code = "overloaded"
    flag = "OM"
    retry_after = 1


class UnsupportedEncodingError(RequestError):
    """A compressed body that can't be read, and so not rewritten."""

    status = 415
    code = "unsupported_encoding"
    flag = "DPE"


class MalformedRequestError(RequestError):
    """A request that names a host of ours, in bytes that are no HTTP."""

    code = "malformed_request"
    flag = "DPE"


class AmbiguousHostError(RequestError):
    """A request that does not name one host: it names several, or one that can't be."""

    code = "ambiguous_host"
    flag = "DPE"


class MisdirectedError(RequestError):
    """A request that names another host than the connection that it came by (RFC 9110, 15.5.20)."""

    status = 421
    code = "misdirected"
    flag = "DPE"


class MethodNotSupportedError(RequestError):
    """A method whose answer is the request as it came, with its headers (RFC 9110, 9.3.8)."""

    status = 501
    code = "method_not_supported"
    flag = "DPE"


class HostNotAllowedError(RequestError):
    """A known LLM host that no rule names, where such hosts are denied.

    Envoy's flag for an unauthorized external service.
    """

    status = 403
    code = "host_not_allowed"
    flag = "UAEX"


class UpstreamError(RequestError):
    """No answer could be had from the provider."""

    status = 502
    kind = "server_error"
    code = "upstream_failure"
    flag = "UF"


class UpstreamResetError(UpstreamError):
    """The provider closed the connection before it answered."""

    code = "upstream_reset"
    flag = "UC"


class UpstreamProtocolError(UpstreamError):
    """The provider's answer was not HTTP."""

    code = "upstream_protocol_error"
    flag = "UPE"


class UpstreamTimeoutError(UpstreamError):
    """The provider did not answer in time."""

    status = 504
    code = "upstream_timeout"
    flag = "UT"


class ConnectTimeoutError(UpstreamTimeoutError):
    """No connection to the provider stood in time; Envoy counts that as a failed connection."""

    code = "connect_timeout"
    flag = "UF"


class IdleTimeoutError(UpstreamTimeoutError):
    """The provider stopped in the middle of its answer."""

    code = "idle_timeout"
    flag = "SI"


class KilledError(RequestError):
    """A person has killed the request in a UI; its client's connection or stream is closed."""

    status = 503
    code = "killed"


class InternalError(RequestError):
    """Our own fault. Nothing is forwarded: a request of ours fails closed."""

    status = 502
    kind = "server_error"
    code = "internal_error"
    flag = "IE"


class StoppedError(RequestError):
    """The proxy ends before the request does. Envoy calls that a local reset."""

    status = 503
    kind = "server_error"
    code = "stopped"
    flag = "LR"


class DrainTimeoutError(StoppedError):
    """The proxy has waited for the request to end, as long as it may."""

    code = "drain_timeout"
