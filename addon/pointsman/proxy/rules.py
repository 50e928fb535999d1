"""Where the rules come from, and how they change while the proxy runs.

There are two kinds of `Rules`: files here, and the objects of a cluster in `pointsman.kubernetes`.
Both are read once at the start, and then watched; what is read is loaded beside the traffic and
goes live by one assignment. What can't be used leaves the last good rules live.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol

from watchfiles import awatch

from pointsman.config.faults import Fault, noted
from pointsman.config.loading import (
    Instance,
    Later,
    Loaded,
    LoadError,
    Problem,
    fingerprint,
    load,
    load_kept,
)
from pointsman.config.resources import NAMESPACE_PATTERN
from pointsman.kubernetes.backends import ClusterBackends
from pointsman.kubernetes.rules import ClusterRules
from pointsman.locations import rules_path
from pointsman.proxy.kept_files import KeptFiles

logger = logging.getLogger(__name__)

CLUSTER = "kubernetes:"
_COPY = "pointsman-rules.json"
_NAMESPACE = re.compile(rf"{NAMESPACE_PATTERN}\Z")
# Some file systems tell of no changes (network mounts), and a swapped symlink above the directory
# is told to no one who watches below: a look at the files each second finds both.
_LOOK_EVERY_MS = 1000
_DEBOUNCE_MS = 200

_NONE_LEFT = (
    "no LLMProvider or LLMRoute is left in it; put one back, or restart the proxy to go on without"
    " rules"
)

type GoLive = Callable[[Loaded], Awaitable[None]]
type Refused = Callable[[], None]


class Rules(Protocol):
    """Where the rules are. `str` of it is what the log calls that."""

    def load(self) -> Loaded:
        """Return the rules as they are. It may block. Raises LoadError."""

    async def watch(self, go_live: GoLive, refused: Refused) -> None:
        """Load them again whenever they change, until cancelled; the good ones go live.

        Where nothing can go live, `refused` is called.
        """

    def look_again(self) -> None:
        """Tell that a backend in the cluster has come or gone."""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why what is live may not be what the rules say; empty where it is."""


def rules_of(
    option: str,
    instance: Instance,
    *,
    backends: ClusterBackends | None,
    confdir: Path,
    writes_status: bool,
) -> Rules:
    """Return the rules that `llm_rules` names: a path, or `kubernetes:` and a namespace or none.

    Raises:
        ValueError: it names no namespace that could be, or files have a status to be written.
    """
    if option.startswith(CLUSTER):
        namespace = option.removeprefix(CLUSTER)
        if namespace and not _NAMESPACE.match(namespace):
            raise ValueError(
                f"llm_rules: {namespace!r} is no namespace; write kubernetes:NAME, or kubernetes:"
                " for all namespaces"
            )
        return ClusterRules(
            namespace or None,
            instance,
            copy=confdir / _COPY,
            backends=backends,
            writes_status=writes_status,
        )
    if writes_status:
        raise ValueError("llm_status: files have no status; set llm_rules=kubernetes: or remove it")
    path = rules_path(Path(option).expanduser())
    return FileRules(path, instance, KeptFiles.of_this_run(str(path)))


class FileRules:
    """The manifests of a file or a folder.

    `kept` has those that were last good, which are used where a start finds bad ones.
    """

    def __init__(self, path: Path, instance: Instance, kept: KeptFiles | None = None) -> None:
        self.faults: tuple[Fault, ...] = ()
        self._path = path
        self._instance = instance
        self._kept = kept or KeptFiles(None, str(path))
        self._seen: object = None
        self._has_some = False

    def __str__(self) -> str:
        return str(self._path)

    def load(self) -> Loaded:
        """Return the rules as they are, or those that were last good. Raises LoadError."""
        # Before they are read: what changes while they are is found by the watch.
        self._seen = fingerprint(self._path)
        try:
            loaded = self._load_at_start()
        except LoadError as error:
            before = self._last_good()
            if before is None:
                raise
            self._has_some = _has_some(before)
            self._note(map(str, error.problems))
            logger.warning("the rules can't be used, the last good ones are live:\n%s", error)
            return before
        self._kept.write(loaded.files)
        return loaded

    def _last_good(self) -> Loaded | None:
        files = self._kept.read()
        if files is None:
            return None
        try:
            return load_kept(files, instance=self._instance)
        except LoadError:
            return None

    async def watch(self, go_live: GoLive, refused: Refused) -> None:
        """Load them again whenever the files change; a bad reload is logged."""
        while True:
            async for _ in self._ticks():
                now = await asyncio.to_thread(fingerprint, self._path)
                if now != self._seen:
                    self._seen = now
                    await self._reload(go_live, refused)

    def look_again(self) -> None:
        """Do nothing: files have no status to tell of it."""

    async def _ticks(self) -> AsyncIterator[None]:
        """Yield when files may have changed, at the least each second; end when they are gone."""
        folder = self._path if self._path.is_dir() else self._path.parent
        try:
            async for _ in awatch(
                folder,
                watch_filter=None,
                recursive=False,
                debounce=_DEBOUNCE_MS,
                step=50,
                rust_timeout=_LOOK_EVERY_MS,
                yield_on_timeout=True,
            ):
                yield
        except (OSError, RuntimeError):
            # The folder is gone for now: look again until it is back.
            await asyncio.sleep(_LOOK_EVERY_MS / 1000)
            yield

    def _read(self) -> Loaded:
        return load(self._path, instance=self._instance, later=Later.KEY_FILES)

    def _load_at_start(self) -> Loaded:
        loaded = self._read()
        if not _has_some(loaded):
            before = self._last_good()
            self._has_some = before is not None and _has_some(before)
        return self._unless_none_left(loaded)

    def _load_again(self) -> Loaded:
        return self._unless_none_left(self._read())

    def _unless_none_left(self, loaded: Loaded) -> Loaded:
        if self._has_some and not _has_some(loaded):
            # A deploy that is half done, a wrong mount: with no rules, all would pass unrouted.
            raise LoadError([Problem(str(self._path), None, None, None, _NONE_LEFT)])
        self._has_some = _has_some(loaded)
        return loaded

    async def _reload(self, go_live: GoLive, refused: Refused) -> None:
        try:
            loaded = await asyncio.to_thread(self._load_again)
            self.faults = ()
            await go_live(loaded)
            await asyncio.to_thread(self._kept.write, loaded.files)
        except LoadError as error:
            self._note(map(str, error.problems))
            logger.error("the rules were not reloaded, the last good ones stay:\n%s", error)  # noqa: TRY400
            refused()
        except Exception as error:
            self._note([f"the rules could not be loaded ({type(error).__name__})"])
            logger.exception("the rules were not reloaded, the last good ones stay")
            refused()

    def _note(self, texts: Iterable[str]) -> None:
        self.faults = noted("refused", texts, self.faults, time.time())


def _has_some(loaded: Loaded) -> bool:
    return bool(loaded.providers or loaded.routes)
