"""How a pod is injected: the options of `pointsman inject`, which a pod's annotations override."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from ipaddress import ip_network
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from pointsman.config.problems import did_you_mean
from pointsman.config.resources import NAMESPACE_PATTERN

PREFIX = "pointsman.io/"
# What other annotations with our prefix are for.
SWITCH = f"{PREFIX}inject"
STATUS = f"{PREFIX}status"

PROXY_PORT = 15001
_LARGEST_PORT = 65535
_MOST_WORKERS = 64
_NAME = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_QUANTITY = r"(?P<number>[0-9]+(\.[0-9]*)?|\.[0-9]+)(?P<unit>[numkMGTPE]|[KMGTPE]i)?"
_HOST = r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"
_RULES = rf"kubernetes:({NAMESPACE_PATTERN})?"
_SETTING = r"[a-z0-9_]+=.*"
# What `set` can't say, as the manifest says it: and where it does.
_TAKEN = {
    "mode": "the sidecar is transparent",
    "confdir": "it is a volume of the sidecar's",
    "listen_host": "the sidecar listens on loopback",
    "listen_port": "use proxy-port",
    "llm_rules": "use rules-configmap or rules",
    "llm_labels": "they are the pod's own",
    "llm_passthrough": "use passthrough-hosts",
    "llm_admin": "the pod's hooks ask there",
    "llm_health": "the pod's probes ask for port 15021 at the pod's own address",
    "llm_drain_timeout": "it follows grace-period",
}
_ADMIN_PORTS = (15020, 15021)
LLM_OPTIONS = frozenset(
    {
        "llm_access_log",
        "llm_body_limit",
        "llm_body_memory",
        "llm_gateways",
        "llm_keep_flows",
        "llm_key_dirs",
        "llm_key_variables",
        "llm_kubernetes",
        "llm_metrics",
        "llm_observe",
        "llm_otel",
        "llm_status",
        "llm_unknown",
    }
)
# Every interface, as the probes come from outside of the pod; by IPv4 or IPv6 alone, if so wanted.
_EVERY_INTERFACE = ("", "0.0.0.0", "[::]")  # noqa: S104 (see above)
_PROBED = {f"llm_health={host}:{_ADMIN_PORTS[1]}" for host in _EVERY_INTERFACE}
_UNITS = (
    {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1)}
    | {unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)}
    | {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}
)
_LEAST_MEMORY = 192 * 1024 * 1024  # the supervisor and one worker at rest


class SettingsError(ValueError):
    """An option that has no sense: the message names it and says what to write."""


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _split(value: Any) -> Any:
    """Take a list as it is, and a text as one whose items stand between commas."""
    if isinstance(value, str):
        return tuple(item for part in value.split(",") if (item := part.strip()))
    return value


def _lines(value: Any) -> Any:
    """Take a list as it is, and a text as one with an item on each line."""
    if isinstance(value, str):
        return tuple(item for line in value.splitlines() if (item := line.strip()))
    return value


def _matching(pattern: str, called: str) -> AfterValidator:
    whole = re.compile(rf"(?:{pattern})\Z", re.DOTALL)

    def check(value: str) -> str:
        if not whole.match(value):
            raise ValueError(f"{value!r} is not {called}")
        return value

    return AfterValidator(check)


def _setting(value: str) -> str:
    name = value.partition("=")[0]
    if value in _PROBED:
        return value
    if name in _TAKEN:
        raise ValueError(f"{name} can't be set: {_TAKEN[name]}")
    if name.startswith("llm") and name not in LLM_OPTIONS:
        raise ValueError(f"there is no option {name}{did_you_mean(name, LLM_OPTIONS)}")
    return value


def _quantity(text: str) -> Decimal:
    """Return what a quantity is, in cores or in bytes."""
    match = re.fullmatch(_QUANTITY, text)
    assert match  # noqa: S101 (its field has been validated)
    return Decimal(match["number"]) * _UNITS[match["unit"] or ""]


def _ports(value: str) -> str:
    numbers = [int(part) if part.isdecimal() else 0 for part in value.split("-")]
    in_range = all(0 < number <= _LARGEST_PORT for number in numbers)
    if len(numbers) > 2 or not in_range or numbers != sorted(numbers):  # noqa: PLR2004 (a range)
        raise ValueError(f"{value!r} is not a port, nor a range such as 8000-8010")
    return "-".join(map(str, numbers))


def _numbers(ports: Iterable[str]) -> set[int]:
    """Return all the numbers of ports and of ranges."""
    ends = [[int(part) for part in port.split("-")] for port in ports]
    return {number for one in ends for number in range(one[0], one[-1] + 1)}


def _cidr(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError as error:
        raise ValueError(f"{value!r} is not a range of addresses ({error})") from None


type _Ports = Annotated[tuple[Annotated[str, AfterValidator(_ports)], ...], BeforeValidator(_split)]
type _Cidrs = Annotated[tuple[Annotated[str, AfterValidator(_cidr)], ...], BeforeValidator(_split)]
type _Name = Annotated[str, _matching(_NAME, "a name that Kubernetes allows")]
type _Quantity = Annotated[str, _matching(_QUANTITY, "a quantity such as 500m, 1, 256Mi")]


class Settings(BaseModel):
    """What may differ from pod to pod. Texts are as on the command line: `80,443`.

    Attributes:
        image: of all three containers.
        rules_configmap: the ConfigMap with the manifests.
        rules: `kubernetes:[namespace]`, to read them from the cluster instead.
        keys_secret: a Secret whose entries are variables, and files in /etc/pointsman/keys.
        ca_secret: a Secret of the type kubernetes.io/tls; without one, each pod makes its own.
        workers: processes of the proxy; each can use one core.
        proxy_port: where redirected connections arrive, for all workers.
        include_ports, exclude_ports: which destination ports are redirected.
        include_cidrs, exclude_cidrs: which destination addresses are.
        passthrough_hosts: never decrypted.
        set: further options of the addon and mitmproxy, `name=value`.
        grace_period: terminationGracePeriodSeconds of pods that do not set it, in seconds.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=_dashed, validate_by_name=True
    )

    image: Annotated[str, _matching(r"[^\s,]+", "the name of an image")]
    rules_configmap: _Name = "pointsman-rules"
    rules: Annotated[str, _matching(_RULES, "kubernetes: or kubernetes:NAMESPACE")] | None = None
    keys_secret: _Name | None = None
    ca_secret: _Name | None = None
    workers: int = Field(default=1, ge=1, le=_MOST_WORKERS)
    proxy_port: int = Field(default=PROXY_PORT, ge=1024, le=_LARGEST_PORT)
    include_ports: _Ports = ("80", "443")
    exclude_ports: _Ports = ()
    include_cidrs: _Cidrs = ()
    exclude_cidrs: _Cidrs = ()
    passthrough_hosts: Annotated[
        tuple[Annotated[str, _matching(_HOST, "a host name")], ...], BeforeValidator(_split)
    ] = ()
    set: Annotated[
        tuple[Annotated[str, _matching(_SETTING, "name=value"), AfterValidator(_setting)], ...],
        BeforeValidator(_lines),
    ] = ()
    cpu_request: _Quantity = "100m"
    cpu_limit: _Quantity | None = None
    memory_request: _Quantity = "128Mi"
    memory_limit: _Quantity = "512Mi"
    grace_period: int = Field(default=90, ge=10, le=3600)

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if not self.include_ports:
            raise ValueError("include-ports: it names no port, and nothing would be redirected")
        if _numbers(self.include_ports) <= _numbers(self.exclude_ports):
            raise ValueError(
                "exclude-ports: it has all of include-ports, and nothing would be redirected"
            )
        if self.proxy_port in _ADMIN_PORTS:
            raise ValueError(
                f"proxy-port: {self.proxy_port} is the admin endpoint's or the probes'; use another"
            )
        return self

    @model_validator(mode="after")
    def _check_resources(self) -> Self:
        if _quantity(self.memory_limit) < _LEAST_MEMORY:
            raise ValueError(
                f"memory-limit: with {self.memory_limit} the sidecar can't start; write 256Mi or"
                " more"
            )
        for name, request, limit in (
            ("cpu", self.cpu_request, self.cpu_at_most),
            ("memory", self.memory_request, self.memory_limit),
        ):
            if _quantity(request) > _quantity(limit):
                raise ValueError(
                    f"{name}-request: {request} is more than {name}-limit, {limit}; raise that one"
                    " too"
                )
        if _quantity(self.memory_request) % 1:
            raise ValueError(
                f"memory-request: {self.memory_request} is a part of a byte; write such as 128Mi"
            )
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What is not as it is by default, by the options' names: JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    @property
    def cpu_at_most(self) -> str:
        """The cores that the proxy may use: each worker one, and it can't use more."""
        return self.cpu_limit or str(self.workers)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Return the settings that options give.

        Raises:
            SettingsError: one of them has no sense.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            raise SettingsError(_say(error)) from None

    def overridden(self, annotations: Mapping[str, str]) -> Self:
        """Return the settings of a pod with these annotations (those with our prefix count).

        Raises:
            SettingsError: one of them is unknown, or its value has no sense.
        """
        given = {
            name.removeprefix(PREFIX): text
            for name, text in annotations.items()
            if name.startswith(PREFIX) and name not in {SWITCH, STATUS}
        }
        for name in given:
            if name not in OPTIONS:
                raise SettingsError(
                    f"annotation {PREFIX}{name} is unknown{did_you_mean(name, OPTIONS)}"
                )
        try:
            return type(self).of(self.model_dump(by_alias=True) | given)
        except SettingsError as error:
            raise SettingsError(f"annotation {PREFIX}{error}") from None


# The names of the settings on the command line; with the prefix, those of the annotations.
OPTIONS = frozenset(_dashed(name) for name in Settings.model_fields)


def _say(error: ValidationError) -> str:
    """Say what the first error is, as the validators above have worded it."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return f"{_dashed(str(first['loc'][0]))}: {message}" if first["loc"] else message
