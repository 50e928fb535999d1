"""The rules, from documents to a `RoutingTable`.

Every fault of every document is found in one go, each with its place, field and mend. Validation
does not depend on who loads: labels and gateways only decide what enters the table.

The manifests of a file or a folder (`load`) are all or nothing. The objects of a cluster have many
owners: `load_objects` lets each stand by itself, so that no one's fault holds up the others.
- An object that is at fault stays as it was when it was last good. One that never was is left out,
  and its host is answered with 503: no request to it gets past. (Not the host of a provider that a
  route covers: the provider would not answer there if it were good.)
- Where two claim one host, the older one has it.
- A backend that does not exist is left out of its rule, as one for other workloads is.
- A key or a certificate that is not here may be elsewhere: its provider can't be called from here.
"""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pointsman.config import calls, references
from pointsman.config.backends import Backend
from pointsman.config.calls import Later
from pointsman.config.compiling import Instance, compile_table, with_closed
from pointsman.config.documents import Document, Reading, read
from pointsman.config.files import FilesError, fingerprint, manifest_files
from pointsman.config.problems import LoadError, Problem, field_path
from pointsman.config.references import Manifest, Manifests
from pointsman.config.resources import (
    API_GROUP,
    API_VERSION,
    KINDS,
    LLMProvider,
    LLMRoute,
    host_or_wildcard,
)
from pointsman.config.table import RoutingTable
from pointsman.config.validation import Resource, extensions, validate

__all__ = [
    "BackendUse",
    "Instance",
    "Later",
    "LoadError",
    "Loaded",
    "LoadedObjects",
    "Problem",
    "fingerprint",
    "load",
    "load_kept",
    "load_objects",
]

type Object = Mapping[str, Any]
type Validate = Callable[[Document], tuple[Resource | None, list[Problem]]]

_ANY_SIDECAR = Instance()
# From this likeness on, an API group with one of our kinds is ours with a slip of the pen.
_MISSPELT = 0.9


@dataclass(frozen=True, slots=True)
class BackendUse:
    """A backend in the cluster, and which field of which document names it."""

    file: str
    field: str | None
    backend: Backend


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rules that are ready to go live.

    Attributes:
        table: what applies to this instance.
        providers: the names of all LLMProviders, whether they apply here or not.
        routes: the names of all LLMRoutes, likewise.
        warnings: what is allowed but can hardly be meant.
        skipped: the kinds of other API groups, each once: `Service`, `Deployment (apps/v1)`.
        extensions: each use of a field that is not one of ASM's own; of files alone.
        unresolved: references that lead nowhere; for files they are errors.
        backends: each reference to a server in the cluster.
        files: the text of each file that was read, for `load_kept`; it may hold keys.
    """

    table: RoutingTable
    providers: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()
    skipped: tuple[str, ...] = ()
    extensions: tuple[Problem, ...] = ()
    unresolved: tuple[Problem, ...] = ()
    backends: tuple[BackendUse, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict, repr=False)


def load(
    path: Path,
    *,
    instance: Instance = _ANY_SIDECAR,
    environ: Mapping[str, str] | None = None,
    without_keys: bool = False,
    later: Later = Later.NOTHING,
) -> Loaded:
    """Load all manifests of a file or a folder.

    Args:
        path: the file, or the folder, whose subfolders are not read.
        instance: the workload and the gateways that the table is for.
        environ: what `${NAME}` is looked up in; the process environment if None.
        without_keys: keys and certificates need not be there; the table is for looking at alone.
        later: what may be missing with a warning.

    Raises:
        LoadError: something is wrong; it has all the problems.
    """
    environ = os.environ if environ is None else environ
    if without_keys:
        environ = calls.AnyEnvironment(environ)
    try:
        readings = [read(file, API_GROUP) for file in manifest_files(path)]
    except FilesError as error:
        raise LoadError([Problem(str(path), None, None, None, str(error))]) from None
    loaded = _loaded(readings, instance, environ, later=later, without_keys=without_keys)
    warnings = (*_overlooked(path, readings), *loaded.warnings)
    return replace(
        loaded,
        warnings=tuple(_in_order(warnings, readings)),
        skipped=_skipped(readings),
        files={reading.file: reading.text for reading in readings},
    )


def load_kept(
    files: Mapping[str, str],
    *,
    instance: Instance = _ANY_SIDECAR,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """Load what files held when they were good (`Loaded.files`), whatever they hold now.

    Keys and certificates need not be there any more: their providers can't be called then.

    Raises:
        LoadError: something is wrong all the same.
    """
    readings = [read(Path(file), API_GROUP, text) for file, text in files.items()]
    environ = os.environ if environ is None else environ
    loaded = _loaded(readings, instance, environ, later=Later.KEY_FILES, kept=True)
    return replace(loaded, skipped=_skipped(readings), files=files)


def _loaded(  # noqa: PLR0913 (what is loaded, for whom, and by which rules)
    readings: Sequence[Reading],
    instance: Instance,
    environ: Mapping[str, str],
    *,
    later: Later,
    without_keys: bool = False,
    kept: bool = False,
    validate: Validate = validate,
) -> Loaded:
    """Load what has been read; `kept`: it was good once."""
    shared = later is Later.ALL  # they are the objects of a cluster, which have many owners
    manifests, faulty, problems = _validated(readings, validate)
    problems += references.check(manifests, shared=shared)
    unresolved = list(references.unknown_providers(manifests))
    if not shared:
        problems += unresolved
    if instance.backends is None:
        problems += references.pools(manifests)
    applying = [
        p for p in manifests.providers if instance.selected(p.resource.spec.workload_selector)
    ]
    resolved = [
        calls.resolve(
            provider,
            environ,
            without_keys=without_keys,
            later=Later.ALL if kept else later,
            allowed=instance.allowed if shared else None,
        )
        for provider in applying
    ]
    problems += [problem for found in resolved for problem in found.problems]
    if not shared:
        problems += [p for document in faulty for p in calls.key_faults(document, environ)]
    if problems:
        raise LoadError(_in_order(problems, readings))
    providers = [found.provider for found in resolved]
    table, left_out = compile_table(providers, manifests.routes, instance, shared=shared)
    unneeded = list(references.warn(manifests))
    missing = [problem for found in resolved for problem in found.missing]
    return Loaded(
        table=table,
        providers=tuple(p.resource.metadata.name for p in manifests.providers),
        routes=tuple(r.resource.metadata.name for r in manifests.routes),
        warnings=tuple(_in_order([*unneeded, *left_out, *missing], readings)),
        extensions=() if shared else tuple(_in_order(_extensions(manifests), readings)),
        unresolved=tuple(unresolved),
        backends=tuple(
            BackendUse(route.document.file, field_path(location), backend)
            for route, location, backend in references.cluster_backends(manifests.routes)
        ),
    )


# --- objects of a cluster -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Validated:
    """What came of an object's validation: true of this very `value`, which nobody changes."""

    value: Object = field(repr=False)
    resource: Resource | None
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class LoadedObjects:
    """What came of the objects of a cluster; objects go by `kind namespace/name`.

    Attributes:
        loaded: what can go live.
        good: the objects as they are in use; what `load_objects` wants the next time.
        refused: what is wrong with each that is not in use as it stands.
        validated: what came of each; `load_objects` wants it the next time.
    """

    loaded: Loaded
    good: Mapping[str, Object] = field(repr=False)
    refused: Mapping[str, tuple[Problem, ...]]
    validated: Mapping[str, Validated] = field(repr=False)


def load_objects(
    objects: Iterable[Object],
    *,
    good: Mapping[str, Object],
    instance: Instance,
    environ: Mapping[str, str] | None = None,
    validated: Mapping[str, Validated] | None = None,
) -> LoadedObjects:
    """Load the objects of a cluster, each by itself. It raises nothing for what they say.

    Args:
        objects: as the API server gives them, of our two kinds.
        good: those of the last time that were in use, as they were then.
        instance: as for `load`; it has the namespace of the workload, and says which keys may be
            named.
        environ: as for `load`.
        validated: what came of them the last time: of thousands, few have changed.
    """
    environ = os.environ if environ is None else environ
    environ = calls.AllowedEnvironment(environ, instance.allowed)
    documents = {d.file: d for d in map(Document.of_object, sorted(objects, key=_age))}
    chosen = dict(documents)
    refused: dict[str, tuple[Problem, ...]] = {}
    found_now: dict[str, Validated] = {}
    validate = _remembering(validated or {}, found_now)
    while True:
        readings = [Reading(name, [document]) for name, document in chosen.items()]
        try:
            loaded = _loaded(readings, instance, environ, later=Later.ALL, validate=validate)
            break
        except LoadError as error:
            # Each turn takes something back, so there is an end to it.
            for name in dict.fromkeys(problem.file for problem in error.problems):
                found = tuple(p for p in error.problems if p.file == name)
                refused.setdefault(name, found)
                before = good.get(name)
                if before is not None and chosen[name] is documents[name]:
                    chosen[name] = Document.of_object(before)
                else:
                    del chosen[name]
    left_out = [documents[name] for name in refused if name not in chosen]
    closed = {
        host: f"{document.file} is at fault: its status, or the log, says why"
        for document in left_out
        if _may_apply(document, instance)
        for host in _hosts(document, instance.namespace)
        if document.kind == "LLMRoute" or loaded.table.lookup(host) is None
    }
    table = with_closed(loaded.table, closed)
    in_use = {name: document.value for name, document in chosen.items()}
    return LoadedObjects(replace(loaded, table=table), in_use, refused, found_now)


def _remembering(before: Mapping[str, Validated], now: dict[str, Validated]) -> Validate:
    """Return what validates each object that was not validated before, and notes all in `now`."""

    def validated(document: Document) -> tuple[Resource | None, list[Problem]]:
        known = now.get(document.file) or before.get(document.file)
        if known is None or known.value is not document.value:
            known = Validated(document.value, *validate(document))
        now[document.file] = known
        return known.resource, known.problems

    return validated


def _age(value: Object) -> tuple[str, str, str]:
    """Sort by age: where two claim one thing, the older has it (as in the Gateway API)."""
    metadata = value.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    made, namespace, name = map(named.get, ("creationTimestamp", "namespace", "name"))
    return str(made), str(namespace), str(name)


def _may_apply(document: Document, instance: Instance) -> bool:
    """Tell whether an object at fault may be for this instance: unless it says that it is not.

    What its matches say is not looked at: a good route has its host even where none can match.
    """
    if not instance.has(_labels(document.at("spec", "workloadSelector", "labels"))):
        return False
    return document.kind != "LLMRoute" or _may_serve(document.at("spec", "gateways"), instance)


def _labels(value: Any) -> Mapping[str, str]:
    """Return those labels of an object at fault that can be read."""
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(v, str)}


def _may_serve(gateways: Any, instance: Instance) -> bool:
    """Tell whether gateways may be served here: they are, or can't be read."""
    if gateways is None:
        return instance.serves(())
    if not isinstance(gateways, list) or not all(isinstance(name, str) for name in gateways):
        return True
    return instance.serves(gateways)


def _hosts(document: Document, home: str) -> tuple[str, ...]:
    """Return the hosts that an object at fault has, as far as they can be read."""
    try:
        host = host_or_wildcard(document.text("spec", "host") or "")
    except ValueError:
        return ()
    if document.kind != "LLMRoute":
        return (host,)
    namespace = document.text("metadata", "namespace") or references.DEFAULT_NAMESPACE
    forms = references.forms(host, namespace)
    return (host, *forms) if not forms or namespace == home else forms


def _validated(
    readings: Iterable[Reading], validate: Validate
) -> tuple[Manifests, list[Document], list[Problem]]:
    """Return the valid manifests, the documents of faulty providers, and all problems."""
    providers: list[Manifest[LLMProvider]] = []
    routes: list[Manifest[LLMRoute]] = []
    documents: list[Document] = []
    faulty: list[Document] = []
    problems: list[Problem] = []
    for reading in readings:
        problems += reading.problems
        problems += map(_misspelt_group, filter(_is_misspelt, reading.documents))
        for document in filter(_is_ours, reading.documents):
            documents.append(document)
            resource, found = validate(document)
            problems += found
            if isinstance(resource, LLMProvider):
                providers.append(Manifest(document, resource))
            elif resource is not None:
                routes.append(Manifest(document, resource))
            elif document.kind == "LLMProvider":
                faulty.append(document)
    complete = all(
        reading.complete and not any(map(_is_misspelt, reading.documents)) for reading in readings
    )
    return Manifests(documents, providers, routes, complete), faulty, problems


def _is_ours(document: Document) -> bool:
    return _group(document) == API_GROUP


def _group(document: Document) -> str:
    return document.api_version.partition("/")[0]


def _is_misspelt(document: Document) -> bool:
    """Tell whether the group is meant to be ours; what such a document says has not been read."""
    if document.kind not in KINDS or _is_ours(document):
        return False
    group = _group(document).lower()
    return bool(difflib.get_close_matches(group, [API_GROUP], n=1, cutoff=_MISSPELT))


def _misspelt_group(document: Document) -> Problem:
    message = f'unknown API group "{_group(document)}"; did you mean "{API_VERSION}"?'
    return document.problem(("apiVersion",), message)


def _skipped(readings: Iterable[Reading]) -> tuple[str, ...]:
    names = {
        document.kind
        if document.api_version == "v1"
        else f"{document.kind} ({document.api_version})"
        for reading in readings
        for document in reading.documents
        if not _is_ours(document)
    }
    return tuple(sorted(names))


def _overlooked(path: Path, readings: Iterable[Reading]) -> Iterable[Problem]:
    """Yield warnings about what was read and is not ours, though it may have been meant to be."""
    documents = [document for reading in readings for document in reading.documents]
    if not any(map(_is_ours, documents)):
        message = f"no {' or '.join(KINDS)} in it: nothing is routed"
        yield Problem(str(path), None, None, None, message)
    for document in documents:
        if document.kind in KINDS and not _is_ours(document):
            message = f"skipped: {document.api_version} is another API group than {API_VERSION}"
            yield document.problem(("apiVersion",), message)


def _extensions(manifests: Manifests) -> Iterable[Problem]:
    for provider in manifests.providers:
        yield from extensions(provider.resource, provider.document)
    for route in manifests.routes:
        yield from extensions(route.resource, route.document)


def _in_order(problems: Iterable[Problem], readings: Iterable[Reading]) -> list[Problem]:
    """Sort by file, as they were read, and line."""
    order = {reading.file: index for index, reading in enumerate(readings)}
    return sorted(problems, key=lambda p: (order.get(p.file, -1), p.line or 0))
