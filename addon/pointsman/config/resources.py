"""LLMProvider and LLMRoute: what a manifest may say.

The kinds and their fields are those of Alibaba Cloud Service Mesh, API version
`istio.alibabacloud.com/v1beta1`. Two markers stand on fields that are not: `EXTENSION` (ours;
`pointsman check --portable` names each use) and `PENDING` (modelled and validated, but refused
until the behaviour exists: a field is never accepted and ignored).

Everything here is frozen, knows its fields by their YAML names (camelCase), and forbids unknown
ones. What one document alone can tell is validated here; what needs the others, in `loading`.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Annotated, Any, Literal, Self

import re2
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from pointsman.config.problems import shown_field, shown_value

API_GROUP = "istio.alibabacloud.com"
API_VERSION = f"{API_GROUP}/v1beta1"


@dataclass(frozen=True)
class Marker:
    """Tells something of a field that its type does not."""

    name: str


EXTENSION = Marker("extension")
PENDING = Marker("pending")


# --- values ---------------------------------------------------------------------------------------

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z")
_WITH_PORT = re.compile(r"(?P<host>.+):[0-9]+\Z")
_METHOD = re.compile(r"[A-Z]+(-[A-Z]+)*\Z")
_HEADER_NAME_PATTERN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEADER_NAME = re.compile(rf"{_HEADER_NAME_PATTERN}\Z")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+\Z")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_PORT = 65535
_PORT_PATTERN = (
    r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_ADDRESS_PATTERN = rf"(\[[0-9a-fA-F:.]+\]|{_LABEL}(\.{_LABEL})*\.?):{_PORT_PATTERN}"
_ADDRESS = re.compile(rf"{_ADDRESS_PATTERN}\Z")
# RFC 1035, 2.3.4, as text without the trailing dot.
_MAX_LABEL = 63
_MAX_HOST = 253


def normalise_host(host: str) -> str:
    """Lower-case, without a trailing dot or IPv6 brackets: the form in which hosts are compared."""
    return host.strip("[]").rstrip(".").lower()


def authority(host: str, port: int | None = None) -> str:
    """Return a host as it stands in a URL, with its port if one is given: IPv6 in brackets."""
    bare = host.strip("[]")
    shown = f"[{bare}]" if ":" in bare else bare
    return shown if port is None else f"{shown}:{port}"


def host_name(value: str) -> str:
    """Return a host name in its normal form. Raises ValueError."""
    in_brackets = value.startswith("[") and value.endswith("]")
    if _is_ipv6(address := value[1:-1] if in_brackets else value):
        return address.lower()
    host = value.removesuffix(".")
    if len(host) > _MAX_HOST:
        raise ValueError(
            f"a host name has at most {_MAX_HOST} characters, and this one has {len(host)};"
            " shorten it"
        )
    if not _HOST.match(host):
        mend = _host_mend(normalise_host(value))
        raise ValueError(f"{shown_value(value)} is not a host name; {mend}")
    if any(len(label) > _MAX_LABEL for label in host.split(".")):
        raise ValueError(
            f"between the dots of a host name stand at most {_MAX_LABEL} characters; shorten it"
        )
    return host.lower()


def _is_ipv6(host: str) -> bool:
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


def _host_mend(host: str) -> str:
    match = _WITH_PORT.match(host)
    # What stood in brackets has lost only the first of them.
    if match and (_HOST.match(match["host"]) or _is_ipv6(match["host"].removesuffix("]"))):
        bare = match["host"].removesuffix("]")
        return f"write it without port{'' if shown_value(bare) == 'this' else f': {bare}'}"
    return "write the bare host name, without scheme, port or path, such as api.openai.com"


def host_or_wildcard(value: str) -> str:
    """Return a host name, or `*.` and one, in its normal form. Raises ValueError."""
    if value.startswith("*."):
        return "*." + host_name(value[2:])
    return host_name(value)


def parse_duration(value: object) -> float:
    """Return the seconds of `250ms`, `30s` or `1m30s`.

    Raises:
        ValueError: it is no duration.
    """
    if isinstance(value, str) and _DURATION.match(value):
        return sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(value))
    wrong = "it is empty" if value is None else f"{shown_value(value)} is not a duration"
    raise ValueError(f"{wrong}; write a number with a unit, such as 250ms or 30s")


def _address(value: object) -> tuple[str, int]:
    if not isinstance(value, str) or not _ADDRESS.match(value):
        raise ValueError(
            f"{shown_value(value)} is not an address; write host:port, such as 10.0.0.7:8443"
        )
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


def _path(value: str) -> str:
    plain = value.isascii() and value.isprintable() and " " not in value and "#" not in value
    if not value.startswith("/") or not plain:
        raise ValueError(f"{shown_value(value)} is not a path; write it as /v1/chat/completions")
    return value


def _header_name(value: str) -> str:
    # The name is not repeated: where the space after the colon is missing, a key may be part of it.
    if not _HEADER_NAME.match(value):
        raise ValueError("this is not an HTTP header name; write `name: value` with letters and -")
    return value.lower()


def _distinct_names(value: object) -> object:
    if isinstance(value, dict):
        seen: set[str] = set()
        for name in value:
            folded = str(name).lower()
            if folded in seen and _HEADER_NAME.match(folded):
                raise ValueError(
                    f"the header {shown_field(folded)} stands there twice, and case makes no"
                    " difference; keep one of them"
                )
            seen.add(folded)
    return value


def _regex(value: str) -> str:
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(value, options)
    except re2.error as error:
        said = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        # Behind the colon stands a part of the expression.
        reason = said if shown_value(value) != "this" else said.partition(":")[0]
        raise ValueError(f"{shown_value(value)} is not an RE2 expression: {reason}") from None
    return value


def _some_text(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty; write a text or remove the field")
    return value


def _some_text_to_match(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty; write a text, or {} where it is enough that it is present")
    return value


def _not_empty[T](value: tuple[T, ...]) -> tuple[T, ...]:
    if not value:
        raise ValueError("the list is empty; give at least one element")
    return value


# The schemas are for the CustomResourceDefinitions: what an API server can check of a type. They
# take whatever the validator beside them takes; their patterns are understood by Go and Python.
_LABEL_PATTERN = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_IPV6_PATTERN = r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*"
_HOST_PATTERN = rf"{_LABEL_PATTERN}(\.{_LABEL_PATTERN})*\.?|{_IPV6_PATTERN}|\[{_IPV6_PATTERN}\]"
_TEXT = {"type": "string", "minLength": 1, "pattern": r"\S"}
_DURATION_SCHEMA = {
    "type": "string",
    "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$",
    "maxLength": 64,
}


def _text(pattern: str, **more: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^({pattern})$", **more})


# With the dot that may stand at the end, and with the `*.` that may stand before.
Host = Annotated[str, AfterValidator(host_name), _text(_HOST_PATTERN, maxLength=_MAX_HOST + 1)]
HostOrWildcard = Annotated[
    str,
    AfterValidator(host_or_wildcard),
    _text(rf"(\*\.)?({_HOST_PATTERN})", maxLength=_MAX_HOST + 3),
]
Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
PositiveDuration = Annotated[
    Duration, Field(gt=0), WithJsonSchema({**_DURATION_SCHEMA, "allOf": [{"pattern": "[1-9]"}]})
]
Address = Annotated[tuple[str, int], BeforeValidator(_address), _text(_ADDRESS_PATTERN)]
UrlPath = Annotated[str, AfterValidator(_path), _text('/[!-"$-~]*')]
HeaderName = Annotated[str, AfterValidator(_header_name)]
DISTINCT_NAMES = BeforeValidator(_distinct_names)
ModelName = Annotated[str, Field(min_length=1), AfterValidator(_some_text), WithJsonSchema(_TEXT)]
TextToMatch = Annotated[str, AfterValidator(_some_text_to_match), WithJsonSchema(_TEXT)]
Regex = Annotated[TextToMatch, AfterValidator(_regex), WithJsonSchema(_TEXT)]
Port = Annotated[int, Field(gt=0, le=_MAX_PORT)]
Labels = dict[str, str]
# YAML has lists, a frozen model has tuples; only this conversion is lax.
LIST = Field(strict=False)
FILLED_LIST = Field(strict=False, json_schema_extra={"minItems": 1})
NOT_EMPTY = AfterValidator(_not_empty)


class Model(BaseModel):
    """The base of everything in a manifest: frozen, strict, unknown fields forbidden."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
    )


def _exactly_one(model: BaseModel, what: str) -> None:
    given = [
        type(model).model_fields[name].alias or name
        for name in model.model_fields_set
        if getattr(model, name) is not None
    ]
    if len(given) != 1:
        members = ", ".join(f.alias or n for n, f in type(model).model_fields.items())
        found = f"found {' and '.join(sorted(given))}" if given else "found none"
        raise ValueError(f"{what} takes exactly one of {members}; {found}")


class Metadata(BaseModel):
    """The object metadata; what Kubernetes puts there besides is its own business."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    name: Annotated[str, Field(min_length=1)]
    namespace: str | None = None


# --- LLMProvider ----------------------------------------------------------------------------------


class ApiKeyFrom(Model):
    """Where the key stands instead of in the manifest: an environment variable or a file."""

    env: str | None = None
    """The name of an environment variable of the proxy."""
    file: str | None = None
    """The path of a file, read again when it changes: a mounted Secret, say."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "apiKeyFrom")
        return self


# Fields of the body that have a field of their own here, or that are the prompt itself.
_NOT_PARAMS = {
    "model": "use the field model",
    "stream": "use the field stream",
    "stream_options": "use the provider's streamUsage",
    "messages": "the prompt is the client's own",
}


class Params(Model):
    """Top-level fields of a chat body: `set` overrides the client's, `default` fills in."""

    set: dict[str, Any] = {}
    """Replaces what the client sent."""
    default: dict[str, Any] = {}
    """Stands in where the client sent nothing."""

    @field_validator("set", "default")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if mend := _NOT_PARAMS.get(name):
                raise ValueError(f"{name} can't be a parameter; {mend}")
        return value


# Headers that belong to the connection or that the proxy itself computes.
_NOT_HEADERS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


_DELETE = 0x7F


def _own_header(value: str) -> str:
    if value in _NOT_HEADERS:
        raise ValueError(f"{value} belongs to the connection and can't be set")
    return value


OwnHeaderName = Annotated[HeaderName, AfterValidator(_own_header)]


def header_value(value: str) -> str:
    """Return the value of a header unless it could end the header. Raises ValueError."""
    if any((ord(c) < ord(" ") and c != "\t") or ord(c) == _DELETE for c in value):
        raise ValueError("a header value can't contain control characters; remove them")
    return value


HeaderValue = Annotated[str, AfterValidator(header_value), _text(r"[^\x00-\x08\x0A-\x1F\x7F]*")]


class OpenAIConfig(Model):
    """How to call a provider that speaks the OpenAI API."""

    model: ModelName | None = None
    """The model that is asked for; absent: the client's own."""
    stream: bool | None = None
    """Whether the answer is asked for as a stream; absent: as the client wants it. The client
    gets the shape that it asked for.
    """
    api_key: Annotated[Annotated[str, Field(min_length=1)] | None, Field(repr=False)] = None
    """The key, or ${NAME} for an environment variable of the proxy. Whoever may read this object
    reads a literal key: prefer apiKeyFrom, or ${NAME}.
    """
    api_key_from: Annotated[ApiKeyFrom | None, EXTENSION] = None
    """Where the key stands instead."""
    model_mapping: Annotated[dict[str, ModelName], EXTENSION] = {}
    """The provider's model for a client's model, or for a prefix of it that ends with *."""
    headers: Annotated[
        dict[OwnHeaderName, HeaderValue],
        DISTINCT_NAMES,
        EXTENSION,
        Field(repr=False),
    ] = {}
    """Headers that are set on each request; ${NAME} stands for an environment variable."""
    params: Annotated[Params, EXTENSION] = Params()
    """Fields of the chat body that are set."""

    @field_validator("model_mapping")
    @classmethod
    def _star_last(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern in value:
            if "*" in pattern[:-1]:
                raise ValueError(f"{shown_value(pattern)}: * stands only at the end, as in gpt-4*")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key is not None and self.api_key_from is not None:
            raise ValueError("apiKey and apiKeyFrom exclude each other; keep one")
        has_key = self.api_key is not None or self.api_key_from is not None
        if has_key and "authorization" in self.headers:
            raise ValueError("headers.authorization and a key exclude each other; keep one")
        return self


class AnthropicConfig(OpenAIConfig):
    """How to call a provider that speaks the Anthropic Messages API."""

    version: str | None = None


class GeminiConfig(OpenAIConfig):
    """How to call a provider that speaks the Gemini API."""


class AzureOpenAIConfig(OpenAIConfig):
    """How to call an Azure OpenAI deployment."""

    deployment: str | None = None
    api_version: str | None = None


class ProviderConfig(Model):
    """A union of which one member is set."""

    open_ai_config: Annotated[OpenAIConfig | None, Field(alias="openAIConfig")] = None
    """The provider speaks the OpenAI API."""
    anthropic_config: Annotated[AnthropicConfig | None, EXTENSION, PENDING] = None
    gemini_config: Annotated[GeminiConfig | None, EXTENSION, PENDING] = None
    azure_open_ai_config: Annotated[
        AzureOpenAIConfig | None, EXTENSION, PENDING, Field(alias="azureOpenAIConfig")
    ] = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "a provider config")
        return self


class Configs(Model):
    """The config of a provider, and what single rules have instead."""

    default_config: ProviderConfig | None = None
    """Used unless the rule that a request came by has its own."""
    route_specific_configs: dict[str, ProviderConfig] = {}
    """By the name of a rule: merged field by field over the default for requests that came by
    it.
    """


class Tls(Model):
    """TLS towards the provider; verification is on unless switched off by name."""

    ca_file: str | None = None
    """The path of the authorities that are trusted instead of the system's (PEM)."""
    sni: Host | None = None
    """The name that is asked for and verified; absent: the host."""
    insecure_skip_verify: bool = False
    """Accept any certificate."""

    @model_validator(mode="after")
    def _verified_or_not(self) -> Self:
        if self.ca_file is not None and self.insecure_skip_verify:
            raise ValueError(
                "caFile and insecureSkipVerify exclude each other: what is not verified needs no"
                " authority; keep one"
            )
        return self


class Timeouts(Model):
    """Bounds for one attempt, in seconds once loaded."""

    connect: PositiveDuration | None = None
    """Until the connection can be used; 10s if absent."""
    first_byte: PositiveDuration | None = None
    """From the sent request to the first content."""
    idle: PositiveDuration | None = None
    """Between two chunks of the answer."""


class OutlierDetection(Model):
    """Passive health: when a target is set aside, and for how long (seconds once loaded)."""

    consecutive_failures: Annotated[int, Field(gt=0)] = 5
    """Failures in a row that set a target aside; 5 if absent."""
    base_ejection: PositiveDuration = 30.0
    """How long the first time; each time in a row twice as long. 30s if absent."""
    max_ejection: PositiveDuration = 300.0
    """How long at most; 5m if absent."""

    @model_validator(mode="after")
    def _base_within_max(self) -> Self:
        if self.base_ejection > self.max_ejection:
            base, most = (
                f"{seconds:g}s{'' if name in self.model_fields_set else ', the default'}"
                for name, seconds in (
                    ("base_ejection", self.base_ejection),
                    ("max_ejection", self.max_ejection),
                )
            )
            raise ValueError(
                f"baseEjection ({base}) is longer than maxEjection ({most}); lower baseEjection or"
                " raise maxEjection"
            )
        return self


class WorkloadSelector(Model):
    """The labels that a workload must have for the resource to apply to it."""

    labels: Labels = {}
    """All of them must match; none: every workload."""


class LLMProviderSpec(Model):
    """A host, a path, and how to call it."""

    workload_selector: WorkloadSelector | None = None
    """The workloads that this applies to; absent: all."""
    host: Host
    """The provider's host name, without scheme, port or path; unique among providers."""
    path: UrlPath | None = None
    """The chat endpoint, such as /v1/chat/completions; absent: the client's path stays."""
    scheme: Annotated[Literal["http", "https"] | None, EXTENSION] = None
    """https if absent."""
    port: Annotated[Port | None, EXTENSION] = None
    """443 if absent, 80 with scheme http."""
    address: Annotated[Address | None, EXTENSION] = None
    """Connect to host:port instead, while Host and SNI stay the host."""
    tls: Annotated[Tls | None, EXTENSION] = None
    """TLS towards the provider."""
    configs: Configs | None = None
    """How the provider is called; absent: its traffic is only accounted for."""
    stream_usage: Annotated[Literal["inject", "asIs"] | None, EXTENSION] = None
    """Whether a chat stream is asked for its usage where the client did not; inject if there is
    an openAIConfig, else asIs.
    """
    timeouts: Annotated[Timeouts | None, EXTENSION] = None
    """Bounds for one attempt."""
    outlier_detection: Annotated[OutlierDetection | None, EXTENSION] = None
    """When a failing target is set aside."""

    @model_validator(mode="after")
    def _tls_needs_https(self) -> Self:
        if self.tls is not None and self.scheme == "http":
            raise ValueError("tls has no meaning with scheme http; remove one of them")
        return self


# --- LLMRoute -------------------------------------------------------------------------------------


class StringMatch(Model):
    """At most one of exact, prefix and regex (RE2, the whole value); none: the thing is present."""

    exact: TextToMatch | None = None
    """The whole value."""
    prefix: TextToMatch | None = None
    """What the value begins with."""
    regex: Regex | None = None
    """An RE2 expression for the whole value."""

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.model_fields_set:
            _exactly_one(self, "a match (or {} for presence)")
        return self


def _exact_from_string(value: object) -> object:
    return {"exact": value} if isinstance(value, str) else value


# `method: POST` is what everyone writes first; on the extension fields a bare string means exact.
# (A structural schema has no type for either of two, so an API server takes anything there.)
StringOrMatch = Annotated[
    StringMatch,
    BeforeValidator(_exact_from_string),
    WithJsonSchema({"x-kubernetes-preserve-unknown-fields": True}),
]


def _matches_a_path(match: StringMatch) -> StringMatch:
    for value in filter(None, (match.exact, match.prefix)):
        if not value.startswith("/"):
            mend = "a path begins with /, so this never matches; write it as /v1/embeddings"
            raise ValueError(mend)
        if "?" in value or "#" in value:
            raise ValueError(
                "a path is matched without its query, so this never matches; write only what"
                " stands before ? and #"
            )
    return match


def _matches_a_method(match: StringMatch) -> StringMatch:
    for value in filter(None, (match.exact, match.prefix)):
        if not _METHOD.match(value):
            upper = value.strip().upper()
            plain = _METHOD.match(upper) and shown_value(value) != "this"
            mend = upper if plain else "it in capital letters, such as POST"
            raise ValueError(
                f"{shown_value(value)} is no method, so this never matches; write {mend}"
            )
    return match


PathMatch = Annotated[StringOrMatch, AfterValidator(_matches_a_path)]
MethodMatch = Annotated[StringOrMatch, AfterValidator(_matches_a_method)]


class Match(Model):
    """What stands inside one match is ANDed."""

    headers: Annotated[dict[HeaderName, StringMatch], DISTINCT_NAMES] = {}
    """By the name of a header, in any case; {} means that it is present."""
    source_labels: Labels = {}
    """Labels of this workload."""
    gateways: Annotated[tuple[str, ...], LIST] = ()
    """The gateway names of the instance; none, or mesh: the sidecar."""
    path: Annotated[PathMatch | None, EXTENSION] = None
    """The path without its query: a text for the whole of it, or exact, prefix or regex."""
    method: Annotated[MethodMatch | None, EXTENSION] = None
    """The HTTP method, likewise."""
    model: Annotated[StringOrMatch | None, EXTENSION] = None
    """The model in the client's body, likewise."""

    @property
    def takes_all(self) -> bool:
        """Whether it has no condition, so that every request matches."""
        given = (self.path, self.method, self.model)
        return not (self.headers or self.source_labels or self.gateways) and not any(given)


# RFC 1123, 2.1, as an API server has it for namespaces, and for names of objects.
NAMESPACE_PATTERN = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(rf"{NAMESPACE_PATTERN}\Z")
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?\Z")
# What a backendRef may name, and the API that it is read with.
SERVICE = "Service"
INFERENCE_POOL = "InferencePool"
BACKEND_APIS = {
    ("", SERVICE): "v1",
    ("core", SERVICE): "v1",
    ("inference.networking.k8s.io", INFERENCE_POOL): "inference.networking.k8s.io/v1",
    ("inference.networking.x-k8s.io", INFERENCE_POOL): "inference.networking.x-k8s.io/v1alpha2",
}


def _object_name(value: str) -> str:
    if len(value) > _MAX_HOST or not _OBJECT_NAME.match(value):
        raise ValueError(
            "this is not a name that Kubernetes has; write lower-case letters, digits, - and ."
        )
    return value


def _namespace(value: str) -> str:
    if not _NAMESPACE.match(value):
        raise ValueError(
            "this is no namespace that Kubernetes has; write up to 63 lower-case letters, digits"
            " and -"
        )
    return value


ObjectName = Annotated[
    str,
    AfterValidator(_object_name),
    _text(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", maxLength=_MAX_HOST),
]


class ObjectRef(Model):
    """A server in the cluster: a Service, or the ready pods of an InferencePool."""

    group: str = ""
    """The API group; a Service has none."""
    kind: str = SERVICE
    """Service or InferencePool; Service if absent."""
    name: ObjectName
    """The object's name."""
    namespace: Annotated[str, AfterValidator(_namespace), _text(NAMESPACE_PATTERN)] | None = None
    """The object's namespace; the route's own if absent."""
    port: Annotated[Port | None, EXTENSION] = None
    """The Service's port; needed where it has several and none is named http."""

    @model_validator(mode="after")
    def _known_kind(self) -> Self:
        if (self.group, self.kind) not in BACKEND_APIS:
            raise ValueError(
                "only these can be a backend: kind Service with no group, and kind InferencePool"
                " with the group inference.networking.k8s.io or inference.networking.x-k8s.io"
            )
        if self.port is not None and self.kind == INFERENCE_POOL:
            raise ValueError("an InferencePool has its own ports; remove port")
        return self


class BackendRef(Model):
    """One of a rule's backends and its share of the requests."""

    provider_host: Host | None = None
    """The host of an LLMProvider."""
    backend_ref: ObjectRef | None = None
    """A Service or an InferencePool in the cluster."""
    weight: Annotated[int, Field(ge=0)] | None = None
    """Its share is weight / sum of the weights; absent: 0, unless it stands alone."""
    priority: Annotated[Annotated[int, Field(ge=0)], EXTENSION] = 0
    """0 is used first; a higher one when every lower one fails or is set aside."""

    @model_validator(mode="after")
    def _one_backend(self) -> Self:
        if (self.provider_host is None) == (self.backend_ref is None):
            raise ValueError("a backend takes exactly one of providerHost, backendRef; keep one")
        return self


def _status_as_string(value: object) -> object:
    return str(value) if type(value) is int else value


RetryCondition = Annotated[
    Literal["connect-failure", "reset", "429", "5xx", "first-byte-timeout"],
    BeforeValidator(_status_as_string),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "enum": ["connect-failure", "reset", "429", 429, "5xx", "first-byte-timeout"],
        }
    ),
]


def _some_condition[T](value: tuple[T, ...]) -> tuple[T, ...]:
    if not value:
        raise ValueError("the list is empty; to switch retries off, write attempts: 1 instead")
    return value


class Retry(Model):
    """When and how often another attempt is made; `attempts` counts the first one."""

    attempts: Annotated[int, Field(ge=1)] | None = None
    """How many at most, the first included; absent: each target once."""
    retry_on: Annotated[
        tuple[RetryCondition, ...], FILLED_LIST, AfterValidator(_some_condition)
    ] = ()
    """What leads to another attempt; absent: all of them."""
    per_try_timeout: PositiveDuration | None = None
    """Until the first content of an attempt."""
    backoff: Duration | None = None
    """The first pause before the same target is tried again; 25ms if absent."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(getattr(self, name) in {None, ()} for name in type(self).model_fields):
            raise ValueError(
                "retry is empty; remove it for the default, or write attempts: 1 to switch retries"
                " off"
            )
        return self


class Affinity(Model):
    """The value that keeps its target: a header, a cookie, or a field of the JSON body."""

    # The names in a mapping, as `headers` have them, can't have a pattern in a structural schema.
    header: Annotated[HeaderName, _text(_HEADER_NAME_PATTERN)] | None = None
    """The name of a header."""
    cookie: Annotated[str, Field(min_length=1)] | None = None
    """The name of a cookie."""
    body_field: Annotated[str, Field(min_length=1)] | None = None
    """A field of the JSON body, with dots for fields inside it."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "affinity")
        return self


class Mirror(Model):
    """A copy of a share of the requests that the client never sees."""

    provider_host: Host
    """The host of the LLMProvider that gets the copy."""
    percent: Annotated[float, Field(ge=0, le=100)] = 100.0
    """The share of the requests that are copied, 0 to 100; all if absent."""


class RouteRule(Model):
    """One of a route's ordered rules: what it matches and where that goes."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """Unique in the route; what routeSpecificConfigs refer to."""
    matches: Annotated[tuple[Match, ...], LIST] = ()
    """One of them has to match; none: every request."""
    backend_refs: Annotated[tuple[BackendRef, ...], FILLED_LIST, NOT_EMPTY]
    """Where the requests go."""
    retry: Annotated[Retry | None, EXTENSION] = None
    """When another attempt is made."""
    affinity: Annotated[Affinity | None, EXTENSION] = None
    """What keeps a value on its target."""
    mirror: Annotated[Mirror | None, EXTENSION] = None
    """A copy for another provider."""
    mode: Annotated[Literal["route", "observe"] | None, EXTENSION] = None
    """observe: only log where requests would go."""

    @property
    def takes_all(self) -> bool:
        """Whether every request that gets as far comes under this rule."""
        return not self.matches or any(match.takes_all for match in self.matches)

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        refs = self.backend_refs
        tiers = {ref.priority for ref in refs}
        if len(refs) > 1 and len(tiers) == 1 and not any(ref.weight for ref in refs):
            raise ValueError(
                "the weights of backendRefs are all zero (an omitted weight is 0), so nothing could"
                " be chosen; give at least one a weight above 0, or each its own priority"
            )
        return self


class LLMRouteSpec(Model):
    """The host that clients call, and the rules that say where its requests go."""

    workload_selector: WorkloadSelector | None = None
    """The workloads that this applies to; absent: all."""
    host: HostOrWildcard
    """The host that clients call: a provider's, a Service's, any name, or *.suffix; unique among
    routes.
    """
    gateways: Annotated[tuple[str, ...], LIST] = ()
    """The gateway names that serve this; none, or mesh: the sidecar."""
    rules: Annotated[tuple[RouteRule, ...], FILLED_LIST, NOT_EMPTY]
    """In order; the first that matches decides."""


# --- the kinds ------------------------------------------------------------------------------------


class _Resource(Model):
    api_version: Literal["istio.alibabacloud.com/v1beta1"]
    metadata: Metadata
    # What an API server adds; a manifest that was fetched with kubectl has it.
    status: Any = None


class LLMProvider(_Resource):
    """`kind: LLMProvider`."""

    kind: Literal["LLMProvider"]
    spec: LLMProviderSpec


class LLMRoute(_Resource):
    """`kind: LLMRoute`."""

    kind: Literal["LLMRoute"]
    spec: LLMRouteSpec


KINDS: dict[str, type[LLMProvider | LLMRoute]] = {"LLMProvider": LLMProvider, "LLMRoute": LLMRoute}
