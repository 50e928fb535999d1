"""The rules, from a file or a folder to a `RoutingTable`: all or nothing.

Every fault of every file is found in one go, each with its file, line, resource, field and mend.
Validation does not depend on who loads: labels and gateways only decide what enters the table.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pointsman.config import calls, references
from pointsman.config.compiling import Instance, compile_table
from pointsman.config.documents import Document, Reading, read
from pointsman.config.files import FilesError, fingerprint, manifest_files
from pointsman.config.problems import LoadError, Problem
from pointsman.config.references import Manifest, Manifests
from pointsman.config.resources import API_GROUP, API_VERSION, KINDS, LLMProvider, LLMRoute
from pointsman.config.table import RoutingTable
from pointsman.config.validation import extensions, validate

__all__ = ["Instance", "LoadError", "Loaded", "Problem", "fingerprint", "load"]

_ANY_SIDECAR = Instance()
# From this likeness on, an API group with one of our kinds is ours with a slip of the pen.
_MISSPELT = 0.9


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rules that are ready to go live.

    Attributes:
        table: what applies to this instance.
        providers: the names of all LLMProviders, whether they apply here or not.
        routes: the names of all LLMRoutes, likewise.
        warnings: what is allowed but can hardly be meant.
        skipped: the kinds of other API groups, each once: `Service`, `Deployment (apps/v1)`.
        extensions: each use of a field that is not one of ASM's own.
    """

    table: RoutingTable
    providers: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()
    skipped: tuple[str, ...] = ()
    extensions: tuple[Problem, ...] = ()


def load(
    path: Path,
    *,
    instance: Instance = _ANY_SIDECAR,
    environ: Mapping[str, str] | None = None,
    without_keys: bool = False,
) -> Loaded:
    """Load all manifests of a file or a folder.

    Args:
        path: the file, or the folder, whose subfolders are not read.
        instance: the workload and the gateways that the table is for.
        environ: what `${NAME}` is looked up in; the process environment if None.
        without_keys: keys and certificates need not be there; the table is for looking at alone.

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
    manifests, faulty, problems = _validated(readings)
    problems += references.check(manifests)
    applying = [
        p for p in manifests.providers if instance.selected(p.resource.spec.workload_selector)
    ]
    resolved = [
        calls.resolve(provider, environ, without_keys=without_keys) for provider in applying
    ]
    problems += [problem for _, found in resolved for problem in found]
    problems += [p for document in faulty for p in calls.key_faults(document, environ)]
    if problems:
        raise LoadError(_in_order(problems, readings))
    providers = [provider for provider, _ in resolved]
    table, left_out = compile_table(providers, manifests.routes, instance)
    warnings = [*_overlooked(path, readings), *references.warn(manifests), *left_out]
    return Loaded(
        table=table,
        providers=tuple(p.resource.metadata.name for p in manifests.providers),
        routes=tuple(r.resource.metadata.name for r in manifests.routes),
        warnings=tuple(_in_order(warnings, readings)),
        skipped=_skipped(readings),
        extensions=tuple(_in_order(_extensions(manifests), readings)),
    )


def _validated(
    readings: Iterable[Reading],
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
