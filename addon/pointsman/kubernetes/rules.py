"""The rules from the cluster: LLMProvider and LLMRoute objects, listed, watched, loaded, told.

Each object stands by itself (see `config.loading`). While the API server is away the live rules
stay. A copy of the objects in use, in a file of the proxy's own, lets it start without the server.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import msgspec

from pointsman.config.backends import Backend
from pointsman.config.documents import bounded
from pointsman.config.faults import Fault, noted
from pointsman.config.loading import (
    Instance,
    Loaded,
    LoadedObjects,
    LoadError,
    Problem,
    load_objects,
)
from pointsman.config.resources import API_VERSION, KINDS
from pointsman.kubernetes.api import (
    ANY,
    Api,
    ApiError,
    Collection,
    MissingClientError,
    Object,
    require_client,
    run_apart,
)
from pointsman.kubernetes.backends import ClusterBackends
from pointsman.kubernetes.status import StatusWriter, Verdict
from pointsman.kubernetes.watching import Watched

logger = logging.getLogger(__name__)

# How long a start waits for the API server: without a copy of the rules, and with one.
START_SECONDS = 10.0
_START_SECONDS_WITH_COPY = 3.0
_RETRY_SECONDS = 0.5
_DEBOUNCE_SECONDS = 0.2
# What could not go live, or could not be written to a status, is tried again so often.
_AGAIN_SECONDS = 30.0
_MAX_COPY = 64 * 1024 * 1024

type GoLive = Callable[[Loaded], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Found:
    """An object of ours: what is loaded of it, and all of it, for its status."""

    rule: Object
    whole: Object = field(repr=False)


class ClusterRules:
    """The rules of one namespace, or of all of them (None)."""

    def __init__(
        self,
        namespace: str | None,
        instance: Instance,
        *,
        copy: Path | None = None,
        backends: ClusterBackends | None = None,
        writes_status: bool = False,
    ) -> None:
        """Say where they are.

        Args:
            namespace: whose objects are read; None: those of all namespaces.
            instance: the workload that they are for.
            copy: the file for the copy of what is in use; None: none is kept.
            backends: who knows whether a backend that a rule names exists.
            writes_status: tell the objects what came of them.
        """
        self._namespace = namespace
        self._instance = instance
        self._copy = Copy(copy, str(self)) if copy else None
        self._backends = backends
        self._writes_status = writes_status
        self._good: Mapping[str, Object] = {}
        self._loaded: LoadedObjects | None = None
        self._in_use: Mapping[str, Object] | None = None  # as they were listed
        self._versions: Mapping[str, str] = {}  # of each kind; no list may be older
        self._watched: list[Watched[_Found]] = []
        self._told: frozenset[str] = frozenset()
        self._refused: tuple[Fault, ...] = ()
        self._doubt: Fault | None = None
        self._failure: Fault | None = None
        self._had_some = False
        self._wakened = asyncio.Event()

    def __str__(self) -> str:
        return f"kubernetes:{self._namespace or ''}"

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why what is live may not be what the cluster says: it is away, or objects are wrong."""
        found = (*(watched.fault for watched in self._watched), self._doubt, self._failure)
        return (*(fault for fault in found if fault is not None), *self._refused)

    def _nothing(self) -> list[Problem]:
        """Warn of a namespace that has never had an object: its name may well be misspelt."""
        if self._had_some:
            return []
        message = f"no {' or '.join(KINDS)} in it: nothing is routed; check the namespace's name"
        return [Problem(str(self), None, None, None, message)]

    def load(self) -> Loaded:
        """Read everything once, or the copy while the API server is away. It blocks.

        Raises:
            LoadError: there is neither.
        """
        try:
            require_client()
        except MissingClientError as error:
            raise self._failed(str(error)) from None
        kept = self._read_copy()
        seconds = START_SECONDS if kept is None else _START_SECONDS_WITH_COPY
        try:
            objects = run_apart(self._fetched(seconds))
        except ApiError as error:
            if kept is None:
                place = f" ({self._copy.path})" if self._copy else ""
                raise self._failed(
                    f"the Kubernetes API can't be read: {error}; and there is no copy{place} of"
                    " rules that were read before"
                ) from None
            logger.warning(
                "the Kubernetes API can't be read: %s; the rules that were last good are used",
                error,
            )
            return self._read_once(kept, {})
        return self._read_once(objects, kept or {})

    def _read_once(self, objects: Mapping[str, Object], good: Mapping[str, Object]) -> Loaded:
        read = self._load(objects, good)
        loaded = self._take(read)
        self._in_use = objects
        self._write_copy(read)
        return loaded

    async def watch(self, go_live: GoLive, refused: Callable[[], None] = lambda: None) -> None:
        """Load again whenever the objects change, until cancelled.

        Faulty objects do not keep the good ones from going live; `refused` is called if that fails.
        """
        api = Api()
        if self._loaded is None:
            self._good = self._read_copy() or {}
        self._watched = [
            Watched(
                api,
                self._collection(kind),
                _reading(kind, whole=self._writes_status),
                self._wakened.set,
                since=self._versions.get(kind, ANY),
            )
            for kind in KINDS
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for watched in self._watched:
                    group.create_task(watched.run())
                group.create_task(self._keep_live(api, go_live, refused))
        finally:
            await api.close()

    def look_again(self) -> None:
        """Tell the objects anew what came of them: a backend has come or gone."""
        self._wakened.set()

    async def _keep_live(self, api: Api, go_live: GoLive, refused: Callable[[], None]) -> None:
        writer = StatusWriter(api) if self._writes_status else None
        done = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if done else _AGAIN_SECONDS):
                    await self._wakened.wait()
            await asyncio.sleep(_DEBOUNCE_SECONDS)
            self._wakened.clear()
            if not all(watched.known for watched in self._watched):
                continue
            if self._doubts(refused):
                continue
            named = self._named()
            done = await self._reload(named, go_live, refused)
            if done and writer:
                done = await self._tell(writer, named)

    def _doubts(self, refused: Callable[[], None]) -> bool:
        """Tell whether that there are no objects of a kind is doubted: then the live rules stay.

        Who deletes the last object means it. A list with nothing in it, where there were some, may
        as well be the fault of an API server that was restored or that is another one. Each kind is
        doubted for itself: the other one may only not have been listed again yet.
        """
        before = {rule["kind"] for rule in (self._in_use or self._good).values()}
        watched = zip(KINDS, self._watched, strict=True)
        gone = [kind for kind, w in watched if kind in before and w.listed_none]
        if not gone:
            if self._doubt:
                self._in_use = None  # so that what is there now goes live, and is told
            self._doubt = None
            return False
        text = (
            f"{self}: the Kubernetes API suddenly lists no {' or '.join(gone)}; the last good"
            " rules stay; create one, or restart the proxy to go on without"
        )
        if self._doubt is None or self._doubt.text != text:
            self._doubt = Fault("refused", text, time.time())
            logger.error("%s", text)
            refused()
        return True

    async def _reload(
        self, named: Mapping[str, _Found], go_live: GoLive, refused: Callable[[], None]
    ) -> bool:
        """Let the objects go live unless they are; tell whether they are now."""
        found = {name: f.rule for name, f in named.items()}
        if found == self._in_use:
            return True
        since = self._failure.since if self._failure else time.time()
        versions = {kind: w.version for kind, w in zip(KINDS, self._watched, strict=True)}
        try:
            read = await asyncio.to_thread(self._load, found, self._good)
            await go_live(self._take(read))
        except Exception as error:
            logger.exception("the rules were not reloaded, the last good ones stay")
            text = f"{self}: the rules could not be loaded ({type(error).__name__})"
            self._failure = Fault("refused", text, since)
            self._in_use = None  # so that they are tried again, whatever they are then
            refused()
            return False
        self._in_use, self._versions = found, versions
        await asyncio.to_thread(self._write_copy, read)
        return True

    def _load(self, objects: Mapping[str, Object], good: Mapping[str, Object]) -> LoadedObjects:
        """Load objects. It changes nothing here: in a thread, it may go on when no one waits."""
        validated = self._loaded.validated if self._loaded else {}
        return load_objects(
            objects.values(), good=good, instance=self._instance, validated=validated
        )

    def _take(self, read: LoadedObjects) -> Loaded:
        """Note what is about to go live, tell what is wrong with it, and return it."""
        self._loaded, self._good, self._failure = read, read.good, None
        self._had_some = self._had_some or bool(read.good or read.refused)
        refused = [p for found in read.refused.values() for p in found]
        self._refused = noted("refused", map(str, refused), self._refused, time.time())
        problems = (*self._nothing(), *refused, *read.loaded.unresolved, *read.loaded.warnings)
        # Of what many people change, each word is told once and not with every change.
        for text in dict.fromkeys(map(str, problems)):
            if text not in self._told:
                logger.warning("%s", text)
        self._told = frozenset(map(str, problems))
        return replace(read.loaded, warnings=())

    def _read_copy(self) -> Mapping[str, Object] | None:
        kept = self._copy.read() if self._copy else None
        if self._copy and kept is not None:
            self._versions = self._copy.versions
        return kept

    def _write_copy(self, read: LoadedObjects) -> None:
        if self._copy:
            self._copy.write(read.good, self._versions)

    async def _tell(self, writer: StatusWriter, named: Mapping[str, _Found]) -> bool:
        """Tell the objects what came of them; return whether all is said."""
        try:
            return await writer.write(self._verdicts(named))
        except Exception:
            logger.exception("the objects could not be told what came of them")
            return False

    def _named(self) -> dict[str, _Found]:
        return {
            _name(found.rule): found
            for watched in self._watched
            for found in watched.items.values()
        }

    def _verdicts(self, named: Mapping[str, _Found]) -> list[tuple[Collection, Object, Verdict]]:
        """Return what is to be told of each object."""
        if self._loaded is None:
            return []
        loaded = self._loaded
        faults, doubts = [*loaded.loaded.unresolved], list[Problem]()
        if self._backends is not None:
            faults += _of_backends(loaded.loaded, self._backends.fault)
            doubts += _of_backends(loaded.loaded, self._backends.doubt)
        unresolved, unread = _by_object(faults), _by_object(doubts)
        verdicts = []
        for name, found in named.items():
            metadata = found.rule["metadata"]
            where = Collection(
                API_VERSION,
                _plural(found.rule["kind"]),
                metadata["namespace"],
                metadata["name"],
            )
            verdict = Verdict(
                loaded.refused.get(name, ()), unresolved.get(name, ()), unread.get(name, ())
            )
            verdicts.append((where, found.whole, verdict))
        return verdicts

    def _collection(self, kind: str) -> Collection:
        return Collection(API_VERSION, _plural(kind), self._namespace)

    async def _fetched(self, seconds: float) -> dict[str, Object]:
        """List both kinds, again and again until it works or the time is over."""
        until = time.monotonic() + seconds
        failure = ApiError("it does not answer in time")
        while True:
            api = Api()
            try:
                async with asyncio.timeout(max(until - time.monotonic(), 0)):
                    found, versions = {}, dict[str, str]()
                    for kind in KINDS:
                        since = self._versions.get(kind, ANY)
                        values, versions[kind] = await api.list(self._collection(kind), since)
                        read = _reading(kind)
                        for rule in (f.rule for v in values if (f := read(v)) is not None):
                            found[_name(rule)] = rule
                    self._versions = versions
                    return found
            except TimeoutError:
                raise failure from None
            except ApiError as error:
                failure = error
                if time.monotonic() + _RETRY_SECONDS > until:
                    raise
            finally:
                await api.close()
            await asyncio.sleep(_RETRY_SECONDS)

    def _failed(self, message: str) -> LoadError:
        return LoadError([Problem(str(self), None, None, None, message)])


def own_namespace(environ: Mapping[str, str] = os.environ) -> str:
    """Return the namespace that this process runs in."""
    if named := environ.get("POD_NAMESPACE"):
        return named
    with suppress(OSError, UnicodeDecodeError):
        mounted = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
        return mounted.read_text(encoding="utf-8").strip() or "default"
    return "default"


def _of_backends(loaded: Loaded, look: Callable[[Backend], str | None]) -> list[Problem]:
    """Return what is found of the backends, where they are named."""
    return [
        Problem(use.file, None, None, use.field, found)
        for use in loaded.backends
        if (found := look(use.backend)) is not None
    ]


def _by_object(problems: Iterable[Problem]) -> Mapping[str, list[Problem]]:
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.file, []).append(problem)
    return found


def _plural(kind: str) -> str:
    return f"{kind.lower()}s"


def _name(rule: Object) -> str:
    metadata = rule["metadata"]
    return f"{rule['kind']} {metadata['namespace']}/{metadata['name']}"


def _reading(kind: str, *, whole: bool = False) -> Callable[[Object], _Found | None]:
    """Return what takes an object of a kind in, without what no rule depends on.

    `whole`: with what its status depends on, so that a changed status is a change.
    """

    def read(value: Object) -> _Found | None:
        metadata = value.get("metadata")
        if not isinstance(metadata, dict):
            return None
        if not all(isinstance(metadata.get(name), str) for name in ("name", "namespace")):
            return None
        kept = {n: metadata[n] for n in ("name", "namespace", "creationTimestamp") if n in metadata}
        rule = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": kept,
            "spec": bounded(value.get("spec")),
        }
        told = {n: metadata[n] for n in ("generation", "resourceVersion") if n in metadata}
        return _Found(
            rule, {"metadata": told, "status": bounded(value.get("status"))} if whole else {}
        )

    return read


def _digest(objects: object) -> str:
    return sha256(msgspec.json.encode(objects, order="deterministic")).hexdigest()


def _texts(value: Any) -> Mapping[str, str]:
    """Return those entries of what should be a mapping that are texts."""
    given = value if isinstance(value, dict) else {}
    return {name: text for name, text in given.items() if isinstance(text, str)}


class Copy:
    """A file with the objects in use. It may hold keys, and is for its owner alone (0600).

    `versions` are those at which the objects that were last read from it had been listed, by kind.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.versions: Mapping[str, str] = {}
        self._source = source
        self._written: Mapping[str, Any] | None = None
        self._told = False

    def read(self) -> dict[str, Object] | None:
        """Return them by name; None: there is no copy of these rules that can be used."""
        try:
            with self.path.open("rb") as file:
                raw = file.read(_MAX_COPY + 1)
            content = msgspec.json.decode(raw) if len(raw) <= _MAX_COPY else None
            if isinstance(content, dict) and content.get("source") == self._source:
                objects = content["objects"]
                if content["sha256"] == _digest(objects):
                    self.versions = _texts(content.get("versions"))
                    return {_name(rule): rule for rule in objects}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return None  # not even a part of it: a host that it lacks would be let past

    def write(self, objects: Mapping[str, Object], versions: Mapping[str, str]) -> None:
        """Write them, at once or not at all."""
        if objects == self._written:
            return
        try:
            listed = list(objects.values())
            content = {
                "source": self._source,
                "versions": versions,
                "sha256": _digest(listed),
                "objects": listed,
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # `mkstemp` makes it for the owner alone.
            number, beside = mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(msgspec.json.encode(content))
                Path(beside).replace(self.path)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise
            self._written = dict(objects)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            if not self._told:
                self._told = True
                logger.warning(
                    "the copy of the rules can't be written to %s (%s): without the Kubernetes API"
                    " a restart will fail; give the proxy a confdir that it can write to",
                    self.path,
                    error.strerror if isinstance(error, OSError) else type(error).__name__,
                )
