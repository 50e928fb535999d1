"""One collection of objects as the cluster has it, kept up to date by a list and a watch.

The rules that this module keeps:
- A watch that ends, or says nothing for long, is begun again where it ended, without a list.
- After a refusal (`410 Gone` among them) and after nonsense, something may have been missed:
  everything is listed again. A connection that broke means nothing.
- No list goes back in time: it is not older than what was seen before, be it of another API server.
- While the API server can't be asked, what is known stays. It is asked again after a pause that
  doubles, up to `_LONGEST_PAUSE`, with jitter, as thousands of others do the same.
- A fault is logged when it comes and when it is over, not each time.
- Nothing that an object says ends it: what can't be dealt with is a fault as nonsense is.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable

from pointsman.config.faults import Fault
from pointsman.kubernetes.api import (
    ANY,
    Api,
    ApiError,
    AwayError,
    Collection,
    Event,
    Object,
    heed_cancellation,
)

logger = logging.getLogger(__name__)

type Key = tuple[str, str]

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_SHORT_SECONDS = 5.0
_MOST_DOUBLINGS = 16


class Watched[T]:
    """A collection, each object as `read` returns it; what it returns None for is not kept.

    `changed` is called whenever `items` are others than before, and when they are known for the
    first time, `failed` when there is another fault. `fault` says why they may be out of date,
    None: they are not. `listed_none`: that there are none was said by a list, and not by the
    deletion of the last. `version` is the last that was seen; `since`, of an earlier time.
    """

    def __init__(  # noqa: PLR0913 (what is watched, what for, and from when on)
        self,
        api: Api,
        collection: Collection,
        read: Callable[[Object], T | None],
        changed: Callable[[], None],
        failed: Callable[[], None] = lambda: None,
        *,
        since: str = ANY,
    ) -> None:
        self.items: dict[Key, T] = {}
        self.known = False
        self.listed_none = False
        self.fault: Fault | None = None
        self.version = since
        self._api = api
        self._collection = collection
        self._read = read
        self._changed = changed
        self._failed = failed
        self._to_list = True
        self._failures = 0

    async def run(self) -> None:
        """Keep up to date, until cancelled."""
        while True:
            try:
                if self._to_list:
                    await self.fetch()
                await self._follow()
            except ApiError as error:
                if not isinstance(error, AwayError):
                    self._to_list = True
                self._tell(error)
                self._failures += 1
            except Exception as error:
                self._to_list = True
                logger.exception("what the Kubernetes API says can't be used")
                self._tell(ApiError(f"what it says can't be used ({type(error).__name__})"))
                self._failures += 1
            heed_cancellation()
            pause = min(_FIRST_PAUSE * 2 ** min(self._failures, _MOST_DOUBLINGS), _LONGEST_PAUSE)
            await asyncio.sleep(pause * (0.5 + random.random() / 2))  # noqa: S311 (no secret)

    async def fetch(self) -> None:
        """List everything, once. Raises ApiError."""
        values, self.version = await self._api.list(self._collection, self.version)
        items = {}
        for value in values:
            key = _key(value)
            if key is not None and (item := self._read(value)) is not None:
                items[key] = item
        self._to_list = False
        self.listed_none = not items
        if items != self.items or not self.known:
            self.items, self.known = items, True
            self._changed()

    async def _follow(self) -> None:
        """Follow a watch to its end. Raises ApiError."""
        began = time.monotonic()
        async for event in self._api.watch(self._collection, self.version):
            if event.kind == "OPEN":
                self._well()
                continue
            self._failures = 0
            self.version = event.version or self.version
            if event.kind != "BOOKMARK":
                self._take(event)
        # One that ends as soon as it begins, again and again, is a fault like others.
        self._failures = 0 if time.monotonic() - began > _SHORT_SECONDS else self._failures + 1

    def _take(self, event: Event) -> None:
        key = _key(event.value)
        if key is None:
            return
        self.listed_none = False
        before = self.items.get(key)
        item = None if event.kind == "DELETED" else self._read(event.value)
        if item is None:
            self.items.pop(key, None)
        else:
            self.items[key] = item
        if item != before:
            self._changed()

    def _well(self) -> None:
        if self.fault is not None:
            self.fault = None
            logger.info("the Kubernetes API can be read again: %s", self._collection)

    def _tell(self, error: ApiError) -> None:
        message = f"{error}{_MENDS.get(error.status, '')}"
        before = self.fault
        if before is None or message != before.text:
            self.fault = Fault("outdated", message, before.since if before else time.time())
            kept = "; what is known stays in use" if self.known else ""
            logger.warning(
                "the Kubernetes API can't be read (%s): %s%s", self._collection, message, kept
            )
            self._failed()


_MENDS: dict[int | None, str] = {
    403: "; give the service account the roles of docs/rules-from-the-cluster.md",
    404: "; where it does not know the kind, apply it: pointsman crds | kubectl apply -f -",
}


def _key(value: Object) -> Key | None:
    """Return namespace and name; None for what is no object of a namespace."""
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return None
    namespace, name = metadata.get("namespace"), metadata.get("name")
    if not isinstance(namespace, str) or not isinstance(name, str) or not name:
        return None
    return namespace, name
