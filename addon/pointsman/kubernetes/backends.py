"""Services and InferencePools that rules name: their addresses, as the cluster has them.

Each backend that the live rules name has a watch of its own, and an InferencePool one more for the
pods that its selector takes. So the permissions that are needed are no wider than the names. There
is a bound to the watches, which the namespaces of the backends share fairly. Where it does not
suffice, and until it has been read, a Service is called by its DNS name.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Protocol

from pointsman.config.backends import (
    DEFAULT_SERVICE_PORT,
    SERVICE,
    Address,
    Backend,
    Endpoints,
)
from pointsman.config.faults import Fault
from pointsman.config.table import RoutingTable
from pointsman.kubernetes.api import Api, ApiError, AwayError, Collection, Object, run_apart
from pointsman.kubernetes.watching import Watched

logger = logging.getLogger(__name__)

# How long new rules wait for the addresses of the backends that they name.
_PREPARE_SECONDS = 2.0
# How long a start waits for them.
BACKENDS_SECONDS = 5.0
_MAX_PORT = 65535
# httpx opens up to 100 connections.
_MOST_WATCHES = 90
_NOT_WATCHED = "not read: the rules name too many servers in the cluster"


class _Say(Protocol):
    def __call__(self, addresses: Iterable[Address], fault: str | None) -> None: ...


class ClusterBackends:
    """The backends that the rules name. `changed` is called when one has other addresses."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._endpoints: dict[Backend, Endpoints] = {}
        self._tasks: dict[Backend, asyncio.Task[None]] = {}
        self._readers: dict[Backend, _Service | _Pool] = {}
        self._not_watched = 0
        self._too_many: Fault | None = None
        self._api: Api | None = None
        self._holder: asyncio.Task[None] | None = None

    def endpoints(self, backend: Backend) -> Endpoints:
        """Return what is known of a backend, the same object each time."""
        found = self._endpoints.get(backend)
        if found is None:
            found = self._endpoints[backend] = Endpoints(backend)
            found.replace(_unread(backend), None if backend.kind == SERVICE else found.fault)
        return found

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why the addresses may not be what the cluster says."""
        found = [
            replace(fault, text=f"{backend}: {fault.text}")
            for backend, reader in self._readers.items()
            for fault in reader.faults
        ]
        return (*found, self._too_many) if self._too_many else tuple(found)

    def fault(self, backend: Backend) -> str | None:
        """Return why a backend can't be called, as the cluster has it; None: it can, or may yet."""
        found = self._endpoints.get(backend)
        return found.fault if found and self._is_known(backend) else None

    def doubt(self, backend: Backend) -> str | None:
        """Return why it can't be told whether a backend can be called; None: it can."""
        if self._is_known(backend):
            return None
        found, reader = self._endpoints.get(backend), self._readers.get(backend)
        if found and found.fault:
            return found.fault
        faults = reader.faults if reader else ()
        return f"it can't be read: {faults[0].text}" if faults else None

    def _is_known(self, backend: Backend) -> bool:
        reader = self._readers.get(backend)
        return reader is not None and reader.known

    def read_once(self, table: RoutingTable, seconds: float) -> None:
        """Read the backends of a table, before there is an event loop; what fails comes later."""
        watched = _to_watch(table)
        if watched:
            run_apart(self._read_all(watched, seconds))

    async def prepare(self, table: RoutingTable) -> None:
        """Begin to watch what a table names that is about to go live, and wait for first words."""
        waiting = []
        for backend in _to_watch(table):
            if backend not in self._tasks:
                waiting.append(heard := asyncio.Event())
                self._begin(backend, heard)
        with suppress(TimeoutError):
            async with asyncio.timeout(_PREPARE_SECONDS):
                for heard in waiting:
                    await heard.wait()

    def keep(self, table: RoutingTable) -> None:
        """Stop to watch what the live table does not name."""
        named, watched = _named(table), _to_watch(table)
        for backend in [b for b in self._tasks if b not in watched]:
            self._tasks.pop(backend).cancel()
            del self._readers[backend]
        for backend in named.difference(watched):
            fault = None if backend.kind == SERVICE else _NOT_WATCHED
            self.endpoints(backend).replace(_unread(backend), fault)
        self._tell_of_too_many(len(named) - len(watched))
        for backend in [b for b in self._endpoints if b not in named]:
            del self._endpoints[backend]

    def _tell_of_too_many(self, not_watched: int) -> None:
        before, self._not_watched = self._not_watched, not_watched
        text = (
            f"the rules name too many servers in the cluster: {not_watched} of them are not"
            " watched; Services among them are called by their DNS names"
        )
        if not_watched > before:
            logger.warning("%s", text)
        since = self._too_many.since if self._too_many else time.time()
        self._too_many = Fault("outdated", text, since) if not_watched else None

    def stop(self) -> None:
        """Stop all watches."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._readers.clear()
        if self._holder is not None:
            self._holder.cancel()
        self._api = self._holder = None

    def _begin(self, backend: Backend, heard: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        if self._api is None:
            self._api = Api()
            self._holder = loop.create_task(_held_open(self._api))
        reader = self._reader(self._api, backend, heard)
        self._readers[backend] = reader
        self._tasks[backend] = loop.create_task(reader.run())

    def _reader(self, api: Api, backend: Backend, heard: asyncio.Event) -> "_Service | _Pool":
        endpoints = self.endpoints(backend)

        def say(addresses: Iterable[Address], fault: str | None) -> None:
            self._said(endpoints, addresses, fault)
            heard.set()

        return (_Service if backend.kind == SERVICE else _Pool)(api, backend, say)

    def _said(self, endpoints: Endpoints, addresses: Iterable[Address], fault: str | None) -> None:
        if fault is not None and fault != endpoints.fault:
            logger.warning("%s can't be called: %s", endpoints.backend, fault)
        endpoints.replace(addresses, fault)
        self._changed()

    async def _read_all(self, named: Iterable[Backend], seconds: float) -> None:
        api = Api()
        try:
            async with asyncio.timeout(seconds):
                for backend in named:
                    try:
                        await self._reader(api, backend, asyncio.Event()).fetch()
                    except AwayError:
                        raise
                    except ApiError as error:
                        logger.warning("the %s could not be read yet: %s", backend, error)
        except (AwayError, TimeoutError) as error:
            why = str(error) or "the API does not answer in time"
            logger.warning("the backends of the rules could not be read yet: %s", why)
        finally:
            await api.close()


async def _held_open(api: Api) -> None:
    """Close an API when this is cancelled."""
    try:
        await asyncio.Event().wait()
    finally:
        await api.close()


def _named(table: RoutingTable) -> set[Backend]:
    return {target.endpoints.backend for target in table.targets() if target.endpoints}


def _to_watch(table: RoutingTable) -> list[Backend]:
    """Return what is watched of what a table names: all of it, or of each namespace as much."""
    left = _MOST_WATCHES
    chosen = []
    for backend in _in_turn(_named(table)):
        left -= 1 if backend.kind == SERVICE else 2
        if left < 0:
            break
        chosen.append(backend)
    return chosen


def _in_turn(named: Iterable[Backend]) -> Iterator[Backend]:
    """Yield one backend of each namespace, then another of each, in an order that stays.

    Pools first: they can't be called without being watched.
    """
    by_namespace = defaultdict(list)
    for backend in sorted(named, key=lambda b: (b.kind == SERVICE, b.name, b.api, b.port or 0)):
        by_namespace[backend.namespace].append(backend)
    for turn in zip_longest(*(by_namespace[name] for name in sorted(by_namespace))):
        yield from filter(None, turn)


def _unread(backend: Backend) -> tuple[Address, ...]:
    """Return what is called of a backend that has not been read: a Service has its DNS name."""
    if backend.kind != SERVICE:
        return ()
    return ((backend.host, backend.port or DEFAULT_SERVICE_PORT),)


# --- one backend ----------------------------------------------------------------------------------


class _Service:
    """Reads a Service's address."""

    def __init__(self, api: Api, backend: Backend, say: _Say) -> None:
        self._backend = backend
        self._say = say
        where = Collection("v1", "services", backend.namespace, backend.name)
        self._objects = Watched(api, where, _spec, self._changed, self._failed)

    @property
    def known(self) -> bool:
        """Whether it has been read."""
        return self._objects.known

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why it can't be read."""
        return (self._objects.fault,) if self._objects.fault else ()

    async def run(self) -> None:
        """Watch it, until cancelled."""
        await self._objects.run()

    async def fetch(self) -> None:
        """Read it, once. Raises ApiError."""
        await self._objects.fetch()

    def _changed(self) -> None:
        spec = self._objects.items.get((self._backend.namespace, self._backend.name))
        if spec is None:
            self._say((), f"there is no {self._backend}")
            return
        try:
            self._say((service_address(spec, self._backend),), None)
        except ValueError as error:
            self._say((), str(error))

    def _failed(self) -> None:
        if not self.known:
            self._say(_unread(self._backend), None)


class _Pool:
    """Reads an InferencePool, and the pods that it selects."""

    def __init__(self, api: Api, backend: Backend, say: _Say) -> None:
        self._api = api
        self._backend = backend
        self._say = say
        where = Collection(backend.api, "inferencepools", backend.namespace, backend.name)
        self._pools = Watched(api, where, _spec, self._pool_changed, self._failed)
        self._pods: Watched[str] | None = None
        self._ports: tuple[int, ...] = ()
        self._selector = ""
        self._running = False
        self._task: asyncio.Task[None] | None = None

    @property
    def known(self) -> bool:
        """Whether they have been read."""
        return self._pools.known and (self._pods is None or self._pods.known)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why they can't be read."""
        return tuple(w.fault for w in (self._pools, self._pods) if w is not None and w.fault)

    async def run(self) -> None:
        """Watch them, until cancelled."""
        self._running = True
        try:
            await self._pools.run()
        finally:
            self._running = False
            self._stop()

    async def fetch(self) -> None:
        """Read them, once. Raises ApiError."""
        await self._pools.fetch()
        if self._pods is not None:
            await self._pods.fetch()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _pool_changed(self) -> None:
        spec = self._pools.items.get((self._backend.namespace, self._backend.name))
        try:
            if spec is None:
                raise ValueError(f"there is no {self._backend}")  # noqa: TRY301 (told as the others)
            selector, self._ports = pool_selector(spec)
        except ValueError as error:
            self._stop()
            self._pods, self._selector = None, ""
            self._say((), str(error))
            return
        if selector == self._selector:
            self._pods_changed()
            return
        self._stop()
        self._selector = selector
        where = Collection("v1", "pods", self._backend.namespace, labels=selector)
        self._pods = Watched(self._api, where, ready_address, self._pods_changed, self._failed)
        if self._running:
            self._task = asyncio.get_running_loop().create_task(self._pods.run())

    def _pods_changed(self) -> None:
        if self._pods is not None and self._pods.known:
            ips = self._pods.items.values()
            self._say([(ip, port) for ip in ips for port in self._ports], None)

    def _failed(self) -> None:
        """Tell why there are no addresses. Those that another selector took are no longer its."""
        if self._pools.fault and not self._pools.known:
            self._say((), f"it can't be read: {self._pools.fault.text}")
        elif self._pods is not None and self._pods.fault and not self._pods.known:
            self._say((), f"its pods can't be read: {self._pods.fault.text}")


def _spec(value: Object) -> Mapping[str, Any]:
    spec = value.get("spec")
    return spec if isinstance(spec, dict) else {}


def service_address(spec: Mapping[str, Any], backend: Backend) -> Address:
    """Return where a Service is called, from its `spec`.

    Raises:
        ValueError: it does not say, or has no such port.
    """
    listed = spec.get("ports")
    ports = [p for p in listed if isinstance(p, dict)] if isinstance(listed, list) else []
    numbers = [port.get("port") for port in ports]
    if backend.port is not None:
        chosen: object = backend.port
        if numbers and chosen not in numbers:
            raise ValueError(f"the {backend} has no port {chosen}; it has {_listed(numbers)}")
    elif len(ports) == 1:
        chosen = numbers[0]
    else:
        named = [port.get("port") for port in ports if port.get("name") == "http"]
        if not named:
            raise ValueError(
                f"the {backend} has {_listed(numbers)}, and none is named http; write port in the"
                " backendRef"
            )
        chosen = named[0]
    if not isinstance(chosen, int) or not 0 < chosen <= _MAX_PORT:
        raise ValueError(f"the {backend} has a port that can't be")
    address = spec.get("clusterIP")
    if spec.get("type") == "ExternalName":
        address = spec.get("externalName")
        if not isinstance(address, str) or not address:
            raise ValueError(f"the {backend} has no externalName")
    elif not isinstance(address, str) or address in {"", "None"}:
        address = backend.host  # headless: its name leads to its pods
    return address, chosen


def _listed(ports: list[Any]) -> str:
    return f"the ports {', '.join(map(str, ports))}" if ports else "no ports"


def pool_selector(spec: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Return the label selector of an InferencePool's pods, and their ports, from its `spec`.

    `v1` has `selector.matchLabels` and `targetPorts`, `v1alpha2` labels and `targetPortNumber`.

    Raises:
        ValueError: it does not say.
    """
    selector = spec.get("selector")
    labels = selector.get("matchLabels", selector) if isinstance(selector, dict) else None
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        labels = None
    if not labels:
        raise ValueError("the InferencePool selects no pods: it has no labels in its selector")
    listed = spec.get("targetPorts")
    ports = (
        [p.get("number") for p in listed if isinstance(p, dict)] if isinstance(listed, list) else []
    )
    ports = ports or [spec.get("targetPortNumber")]
    numbers = tuple(p for p in ports if isinstance(p, int) and 0 < p <= _MAX_PORT)
    if not numbers:
        raise ValueError("the InferencePool has no target port")
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items())), numbers


def ready_address(pod: Object) -> str | None:
    """Return the IP address of a pod that takes requests, None of any other."""
    metadata, status = pod.get("metadata"), pod.get("status")
    if not isinstance(metadata, dict) or not isinstance(status, dict):
        return None
    if metadata.get("deletionTimestamp") is not None:
        return None
    conditions = status.get("conditions")
    ready = any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in (conditions if isinstance(conditions, list) else ())
        if isinstance(condition, dict)
    )
    address = status.get("podIP")
    return address if ready and isinstance(address, str) and address else None
