"""Rules that change while the proxy runs: watched, loaded beside the traffic, then made live."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from watchfiles import awatch

from pointsman.config.loading import Instance, Loaded, LoadError, fingerprint, load
from pointsman.config.problems import Problem

logger = logging.getLogger(__name__)

# Some file systems tell of no changes (network mounts), and a swapped symlink above the directory
# is told to no one who watches below: a look at the files each second finds both.
_LOOK_EVERY_MS = 1000
_DEBOUNCE_MS = 200


async def watch_rules(
    path: Path,
    instance: Instance,
    go_live: Callable[[Loaded], None],
    seen: object,
    refused: Callable[[Sequence[Problem]], None] = lambda _: None,
) -> None:
    """Load the rules again whenever they change, until cancelled.

    `seen` is their fingerprint from before they were loaded. A bad reload keeps what is live, logs
    every error and gives them to `refused`.
    """
    while True:
        async for _ in _ticks(path):
            now = await asyncio.to_thread(fingerprint, path)
            if now == seen:
                continue
            seen = now
            await _reload(path, instance, go_live, refused)


async def _ticks(path: Path) -> AsyncIterator[object]:
    """Yield when files may have changed, at the least each second; end when the folder is gone."""
    folder = path if path.is_dir() else path.parent  # noqa: ASYNC240 (one stat a second)
    try:
        async for changes in awatch(
            folder,
            watch_filter=None,
            recursive=False,
            debounce=_DEBOUNCE_MS,
            step=50,
            rust_timeout=_LOOK_EVERY_MS,
            yield_on_timeout=True,
        ):
            yield changes
    except (OSError, RuntimeError):
        # The folder is gone for now: look again until it is back.
        await asyncio.sleep(_LOOK_EVERY_MS / 1000)
        yield None


async def _reload(
    path: Path,
    instance: Instance,
    go_live: Callable[[Loaded], None],
    refused: Callable[[Sequence[Problem]], None],
) -> None:
    try:
        loaded = await asyncio.to_thread(load, path, instance=instance)
    except LoadError as error:
        logger.error("the rules were not reloaded, the last good ones stay:\n%s", error)  # noqa: TRY400
        refused(error.problems)
    except Exception:
        logger.exception("the rules were not reloaded, the last good ones stay")
        refused([Problem(str(path), None, None, None, "a fault of Pointsman's: see the log")])
    else:
        go_live(loaded)
