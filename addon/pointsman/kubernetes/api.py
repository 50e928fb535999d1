"""The Kubernetes API, as much of it as is needed here: lists, watches, the status of an object.

kr8s finds the cluster and its credentials (a kubeconfig, or the pod's service account) and renews
them; what is listed and watched is told from here, as only so a watch can be resumed where it broke
off. Errors are mapped to `ApiError`, whose words are for an operator. Answers are bounded.
"""

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from pointsman.config.documents import MAX_DEPTH

if TYPE_CHECKING:
    import httpx
    from kr8s.asyncio import Api as Client

type Object = Mapping[str, Any]
type Listed = tuple[list[Object], str]

# What a list may be not older than: `ANY`, as the API server has it in memory, which may lag and
# which thousands of proxies may ask; `NOW`, as it is in etcd.
ANY = "0"
NOW = ""

_MAX_LIST = 64 * 1024 * 1024
_MOST_PAGES = 1000
_MAX_EVENT = 4 * 1024 * 1024  # etcd has no object of half that size
_MAX_ERROR = 64 * 1024
# So deep is what is kept of an answer that is nested too deep to be decoded at once: far deeper
# than an object of ours may be, so that it is told of that.
_DEPTH = 4 * MAX_DEPTH
_JSON_PART = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_OPENING, _CLOSING = (b"[", b"{"), (b"]", b"}")
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 20.0
# Until the cluster has been found, and until an answer begins: kr8s has no bounds of its own.
_FIND_SECONDS = 10.0
_ANSWER_SECONDS = 20.0
# Watches end by themselves, not all at once, and are begun anew where they ended.
_SHORTEST_WATCH = 240
_LONGEST_WATCH = 480
# As long a watch may say nothing: bookmarks come about each minute. A server that is gone without a
# word (a node that died, a network that broke) would not be noticed before the watch's end.
_SILENT_SECONDS = 90.0


class ApiError(Exception):
    """The API server can't be asked, or refuses. `status` is None where it has not answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AwayError(ApiError):
    """The API server can't be reached, or has gone away: what was seen of it still holds."""


class _VersionError(ApiError):
    """The API server does not have the version: too old, newer than all it has, or no version."""


class MissingClientError(Exception):
    """kr8s is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "the Kubernetes API is read with kr8s, which is not installed: pip install kr8s"
        )


@dataclass(frozen=True, slots=True)
class Collection:
    """What is listed and watched.

    `api` is `v1` or `group/version`; `namespace` None means all of them. `name` is for a single
    object, `labels` a selector.
    """

    api: str
    plural: str
    namespace: str | None = None
    name: str | None = None
    labels: str | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """The query that selects it."""
        query = {}
        if self.name is not None:
            query["fieldSelector"] = f"metadata.name={self.name}"
        if self.labels is not None:
            query["labelSelector"] = self.labels
        return query

    def __str__(self) -> str:
        group = self.api.rpartition("/")[0]
        what = f"{self.plural}.{group}" if group else self.plural
        one = f" {self.name}" if self.name else ""
        return f"{what}{one} in {self.namespace or 'all namespaces'}"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a watch: `ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`, and the object.

    The first of each watch is our own: `OPEN`, the server has accepted it.
    """

    kind: str
    value: Object

    @property
    def version(self) -> str | None:
        """From where a watch goes on after this."""
        return resource_version(self.value)


class Api:
    """One API server, connected to when it is first asked. For one event loop."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def list(self, collection: Collection, since: str = ANY) -> Listed:
        """Return all objects of a collection, and the version that a watch goes on from.

        Args:
            collection: which objects.
            since: the version that they are not older than. Where the server does not have it (it
                was restored, say), they are as they are `NOW`, as client-go lists them then.

        Raises:
            ApiError: the server can't be asked, refuses, or answers nonsense.
        """
        try:
            return await self._list(collection, since)
        except _VersionError:
            return await self._list(collection, NOW)

    async def _list(self, collection: Collection, since: str) -> Listed:
        found: list[Object] = []
        first = None
        size = 0
        query = {"resourceVersion": since}
        for _ in range(_MOST_PAGES):
            asked = {**collection.parameters, **query}
            async with self._asked(collection, asked, _READ_SECONDS) as response:
                text = await _read(response, _MAX_LIST)
            size += len(text)
            if size > _MAX_LIST:
                raise _too_large(_MAX_LIST)
            answer = await _decoded(text)
            items, version = answer.get("items"), resource_version(answer)
            if not isinstance(items, list) or version is None:
                raise ApiError("its answer is no list of objects")
            found += [item for item in items if isinstance(item, dict)]
            first = first or version
            following = answer["metadata"].get("continue")
            if not isinstance(following, str) or not following:
                return found, first
            # Which version the other pages are of is in this; it may not be asked for besides.
            query = {"continue": following}
        raise ApiError(f"its list has more than {_MOST_PAGES} pages")

    async def watch(self, collection: Collection, version: str) -> AsyncIterator[Event]:
        """Yield what happens to a collection after a version, until the server ends it.

        One that says nothing for long ends too: whether the server is still there, or only sends no
        bookmarks, turns out when the watch is begun anew.

        Raises:
            AwayError: the connection broke; the watch may go on where it was.
            ApiError: as for `list`; status 410: the version is too old.
        """
        require_client()
        import httpx  # noqa: PLC0415 (comes with kr8s, an extra)

        query = {
            **collection.parameters,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(random.randint(_SHORTEST_WATCH, _LONGEST_WATCH)),  # noqa: S311
        }
        async with self._asked(collection, query, _SILENT_SECONDS) as response:
            yield Event("OPEN", {})
            with suppress(httpx.ReadTimeout):
                async for line in _lines(response):
                    yield _event(await _decoded(line))

    async def patch_status(self, collection: Collection, patch: Object) -> None:
        """Merge a patch into the status of the one object that the collection names.

        Raises:
            ApiError: as for `list`; status 409: someone was faster.
        """
        headers = {"content-type": "application/merge-patch+json"}
        content = msgspec.json.encode(patch)
        url = f"{collection.plural}/{collection.name}/status"
        async with self._called(
            "PATCH", collection, url, _READ_SECONDS, content=content, headers=headers
        ) as response:
            await _read(response, _MAX_EVENT)

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    @asynccontextmanager
    async def _asked(
        self, collection: Collection, query: Mapping[str, str], seconds: float
    ) -> "AsyncIterator[httpx.Response]":
        async with self._called(
            "GET", collection, collection.plural, seconds, params=dict(query)
        ) as response:
            yield response

    @asynccontextmanager
    async def _called(
        self, method: str, collection: Collection, url: str, seconds: float, **more: Any
    ) -> "AsyncIterator[httpx.Response]":
        try:
            # An expired token is renewed by kr8s, which closes all connections for that: it is let
            # to only for 401. (It would do so for 403 as well, which no token mends.)
            for renew in (False, True):
                async with self._response(
                    method, collection, url, seconds, raise_for_status=renew, **more
                ) as response:
                    if response.status_code == HTTPStatus.UNAUTHORIZED and not renew:
                        continue
                    await _refuse_error(response)
                    yield response
                    return
        except (ApiError, MissingClientError):
            raise
        except Exception as error:  # noqa: BLE001 (kr8s raises its own, httpx's, anyio's, ssl's)
            raise _mapped(error) from None

    @asynccontextmanager
    async def _response(
        self, method: str, collection: Collection, url: str, seconds: float, **more: Any
    ) -> "AsyncIterator[httpx.Response]":
        import httpx  # noqa: PLC0415 (comes with kr8s, an extra)

        # One at a time: kr8s would make a session for each, and forget all but the last.
        async with self._connecting:
            if self._client is None:
                self._client = await _connected()
            client = self._client
        heed_cancellation()
        asked = client.call_api(
            method,
            version=collection.api,
            namespace=collection.namespace,
            url=url,
            stream=True,
            timeout=httpx.Timeout(_CONNECT_SECONDS, read=seconds),
            **more,
        )
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(_ANSWER_SECONDS):
                response = await stack.enter_async_context(asked)
            heed_cancellation()
            yield response


def heed_cancellation() -> None:
    """Raise CancelledError if this task has been cancelled, and something has swallowed that.

    While it connects, anyio does so now and then; who then goes on keeps the process from its end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def run_apart[T](work: Coroutine[Any, Any, T]) -> T:
    """Run something to its end in a thread and an event loop of its own, and return its result."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def require_client() -> None:
    """Raise MissingClientError unless kr8s can be imported."""
    try:
        import kr8s.asyncio  # noqa: F401, PLC0415 (an extra, and slow to import)
    except ImportError:
        raise MissingClientError from None


def resource_version(value: Object) -> str | None:
    """Return an object's or a list's `metadata.resourceVersion`."""
    metadata = value.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return version if isinstance(version, str) and version else None


async def _connected() -> "Client":
    require_client()
    from kr8s.asyncio import Api as Client  # noqa: PLC0415 (an extra)

    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request
    # Past the factory, which gives the same to all who ask: this one is closed when we are done.
    client = Client(bypass_factory=True)
    try:
        async with asyncio.timeout(_FIND_SECONDS):
            await client  # finds the cluster, and asks for its version
    except BaseException:
        await _close(client)
        raise
    return client


async def _close(client: "Client") -> None:
    if client._session is not None:  # noqa: SLF001 (kr8s has no other way to it)
        await client._session.aclose()  # noqa: SLF001


async def _read(response: "httpx.Response", most: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(f"its answer is larger than {most // 1024 // 1024} MiB")


async def _lines(response: "httpx.Response") -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in filter(bytes.strip, lines):
            yield line
        if len(rest) > _MAX_EVENT:
            raise ApiError(f"an event is larger than {_MAX_EVENT // 1024 // 1024} MiB")
    if rest.strip():
        yield rest


async def _decoded(text: bytes) -> dict[str, Any]:
    try:
        try:
            value = msgspec.json.decode(text)
        except RecursionError:
            # One object in a list must not keep all others from being read.
            value = msgspec.json.decode(await asyncio.to_thread(shallow, text))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError("its answer is not JSON") from None
    if not isinstance(value, dict):
        raise ApiError("its answer is no object")
    return value


def shallow(text: bytes) -> bytes:
    """Return JSON with null in place of what is nested too deep: who looks at it finds it so."""
    kept: list[bytes] = []
    depth = done = 0
    for match in _JSON_PART.finditer(text):
        if match[0] in _OPENING:
            depth += 1
            if depth == _DEPTH + 1:
                kept += (text[done : match.start()], b"null")
        elif match[0] in _CLOSING:
            if depth == _DEPTH + 1:
                done = match.end()
            depth -= 1
    return b"".join((*kept, text[done:]))


def _event(value: Object) -> Event:
    kind, inner = value.get("type"), value.get("object")
    if not isinstance(kind, str) or not isinstance(inner, dict):
        raise ApiError("its answer is no event")
    if kind == "ERROR":
        raise _error(inner.get("code"), inner)
    return Event(kind, inner)


async def _refuse_error(response: "httpx.Response") -> None:
    """Raise ApiError unless the answer is a good one."""
    if not response.is_error:
        return
    told: Object = {}
    with suppress(ApiError):
        told = await _decoded(await _read(response, _MAX_ERROR))
    raise _error(response.status_code, told)


def _error(status: object, told: Object) -> ApiError:
    """Return the error of an answer's status and what it tells (a `Status` of Kubernetes)."""
    code, message = status if isinstance(status, int) else None, told.get("message")
    said = f": {message}" if isinstance(message, str) and message else ""
    kind = _VersionError if _lacks_version(code, told) else ApiError
    return kind(f"it answers {code}{said}" if code else f"it ends the watch{said}", code)


def _lacks_version(code: int | None, told: Object) -> bool:
    if code == HTTPStatus.GATEWAY_TIMEOUT:
        details = told.get("details")
        causes = details.get("causes") if isinstance(details, dict) else None
        return any(
            isinstance(cause, dict) and cause.get("reason") == "ResourceVersionTooLarge"
            for cause in (causes if isinstance(causes, list) else ())
        )
    return code in {HTTPStatus.GONE, HTTPStatus.BAD_REQUEST}


def _mapped(error: Exception) -> ApiError:
    """Put what kr8s, httpx and the system raise into words."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return _error(status, {})
    name = type(error).__name__
    if isinstance(error, ValueError) and "credentials" in str(error):
        return ApiError("there is neither a kubeconfig nor a service account to ask it with")
    if "Timeout" in name:
        return AwayError("it does not answer in time")
    if "Connect" in name or isinstance(error, OSError):
        return AwayError(f"it can't be reached ({str(error) or name})")
    if name in {"ClosedResourceError", "ReadError", "RemoteProtocolError", "WriteError"}:
        return AwayError("it has closed the connection")
    return ApiError(f"it can't be asked ({name})")
