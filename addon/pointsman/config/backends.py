"""What a `backendRef` names: a server in the cluster, and the addresses that it has just now.

The rules name it; who reads the cluster (`pointsman.kubernetes`) fills in the addresses and changes
them while the rules stay. Without anyone who does, a Service is called by its DNS name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from pointsman.config.resources import BACKEND_APIS, INFERENCE_POOL, SERVICE, ObjectRef

type Address = tuple[str, int]

DEFAULT_SERVICE_PORT = 80
CLUSTER_DOMAIN = "cluster.local"
# Where a POST to `/` goes: what in-cluster servers of the OpenAI API (vLLM, SGLang) answer on.
CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Backend:
    """A Service or an InferencePool. `api` is what it is read with: `v1`, `inference…/v1`.

    `port` is the one that the reference names; None: the object says.
    """

    api: str
    kind: str
    namespace: str
    name: str
    port: int | None = None

    @classmethod
    def of(cls, ref: ObjectRef, namespace: str) -> "Backend":
        """Return what a reference in this namespace names."""
        api = BACKEND_APIS[ref.group, ref.kind]
        return cls(api, ref.kind, ref.namespace or namespace, ref.name, ref.port)

    @property
    def label(self) -> str:
        """What the log and the metrics call it, as a provider has its name."""
        return f"{self.kind.lower()}/{self.namespace}/{self.name}"

    @property
    def host(self) -> str:
        """What stands in `Host`: the Service's DNS name; a pool has none, so one of that form."""
        zone = "svc" if self.kind == SERVICE else INFERENCE_POOL.lower()
        return f"{self.name}.{self.namespace}.{zone}.{CLUSTER_DOMAIN}"

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Endpoints:
    """The addresses of a backend now, and how many requests each has under way.

    `fault` says why there are none that could be: no such object, no permission. None: they are
    what the cluster says, though that may be none at all (no pod is ready).
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.fault: str | None = "not read yet"
        self._addresses: tuple[Address, ...] = ()
        self._under_way: dict[Address, int] = {}
        self._last_used: dict[Address, int] = {}
        self._clock = 0

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All of them, in no order that means anything."""
        return self._addresses

    def replace(self, addresses: Iterable[Address], fault: str | None = None) -> None:
        """Take over what the cluster says. Requests under way on what is gone end as they do."""
        self._addresses = tuple(dict.fromkeys(addresses))
        self.fault = fault
        here = set(self._addresses)
        self._last_used = {a: used for a, used in self._last_used.items() if a in here}

    def by_load(self) -> list[Address]:
        """Return the addresses, fewest requests under way first, then the one used longest ago."""
        return sorted(
            self._addresses,
            key=lambda a: (self._under_way.get(a, 0), self._last_used.get(a, 0)),
        )

    def under_way(self, address: Address) -> int:
        """Return how many requests an address has."""
        return self._under_way.get(address, 0)

    def begin(self, address: Address) -> None:
        """A request goes there now."""
        self._clock += 1
        self._under_way[address] = self._under_way.get(address, 0) + 1
        if address in self._addresses:
            self._last_used[address] = self._clock

    def end(self, address: Address) -> None:
        """It is over."""
        left = self._under_way.get(address, 0) - 1
        if left > 0:
            self._under_way[address] = left
        else:
            self._under_way.pop(address, None)


class Backends(Protocol):
    """Who reads the cluster."""

    def endpoints(self, backend: Backend) -> Endpoints:
        """Return what is known of a backend, the same object each time: it goes on changing."""


class UnreadBackends:
    """Stands for a cluster that no one reads: for those who only look at the rules."""

    def endpoints(self, backend: Backend) -> Endpoints:
        """Return what has no addresses."""
        return Endpoints(backend)


__all__ = [
    "CHAT_PATH",
    "DEFAULT_SERVICE_PORT",
    "INFERENCE_POOL",
    "SERVICE",
    "Address",
    "Backend",
    "Backends",
    "Endpoints",
    "UnreadBackends",
]
