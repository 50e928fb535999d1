"""The files of the page: read once, served from memory.

What clients sent is on the page: models, paths, errors. The page puts it in as text alone, and its
policy lets nothing run that is not in one of these files, makes the browser refuse markup that is
made of strings, and lets nothing be loaded from or sent to elsewhere.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)

_FOLDER = "page"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file, its media type, and what names its version."""

    content: bytes
    type: str
    etag: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return the files by the paths that they are served at; the page itself is at `/`."""
    found = dict(_read(files(__package__) / _FOLDER, f"/{_FOLDER}"))
    return {"/": found.pop(f"/{_FOLDER}/{_INDEX}"), **found}


def _read(folder: Traversable, path: str) -> Iterator[tuple[str, Asset]]:
    for each in folder.iterdir():
        where = f"{path}/{each.name}"
        if each.is_dir():
            yield from _read(each, where)
        elif kind := _TYPES.get(f".{each.name.rpartition('.')[2]}"):
            content = each.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            yield where, Asset(content, kind, f'"{digest[:32]}"')
