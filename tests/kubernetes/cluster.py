"""An API server to test against: kmock's emulator, on a socket, with what a real one has besides.

That is: resource versions and generations, watches that go on from a version, `410 Gone` for one
that is too old, the refusal of a list that is newer than all there is, label and field selectors,
conflicts, bookmarks; and trouble on demand.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml
from aiohttp import web
from kmock import KubernetesEmulator, KubernetesError, Request, ResourceInfo, Server, action

type Json = dict[str, Any]

DEADLINE = 20.0
OURS = "apis/istio.alibabacloud.com/v1beta1"
PATHS = {
    "LLMProvider": (OURS, "llmproviders"),
    "LLMRoute": (OURS, "llmroutes"),
    "InferencePool": ("apis/inference.networking.k8s.io/v1", "inferencepools"),
    "Service": ("api/v1", "services"),
    "Pod": ("api/v1", "pods"),
}
type Trouble = Callable[[web.BaseRequest], web.StreamResponse | None]


class ApiServer(KubernetesEmulator):
    """The emulator itself; lives in the loop of its thread."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.version = 100
        self.compacted = 0
        self.log: list[tuple[int, Request, Json]] = []
        self.grown = asyncio.Condition()
        self.trouble: Trouble | None = None
        self.held = False
        self.watches: dict[int, web.BaseRequest] = {}
        self.seen: list[tuple[str, str]] = []
        self["get /version/"] << {"major": "1", "minor": "31", "gitVersion": "v1.31.0"}
        for path, plural in PATHS.values():
            self.resources[f"{path.partition('/')[2]}/{plural}"] = ResourceInfo()

    async def __call__(self, raw_request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((raw_request.method, raw_request.path_qs))
        if self.held:
            await asyncio.sleep(DEADLINE)
        answer = self.trouble(raw_request) if self.trouble else None
        if answer is not None:
            return answer
        watching = raw_request.query.get("watch") == "true"
        if watching:
            self.watches[id(raw_request)] = raw_request
        try:
            return await super().__call__(raw_request)
        finally:
            self.watches.pop(id(raw_request), None)

    async def _handle(self, request: Request) -> web.StreamResponse:
        if request.action in {action.CREATE, action.UPDATE}:
            self._version_of(request)
        answer = await super()._handle(request)
        if request.action in {action.CREATE, action.UPDATE, action.DELETE}:
            await self._record(request)
        return answer

    def _version_of(self, request: Request) -> None:
        """Count, and refuse what was made from an older version."""
        metadata = request.data.setdefault("metadata", {})
        kept: Json = {}
        if request.action == action.UPDATE:
            kept = self.objects[self._key(request)].raw["metadata"]
            given = metadata.get("resourceVersion")
            if given is not None and given != kept["resourceVersion"]:
                raise KubernetesError(status=409, reason="Conflict", message="it has changed")
            if request.subresource == "status":
                for name in [n for n in request.data if n not in {"metadata", "status"}]:
                    del request.data[name]
        else:
            metadata.setdefault("creationTimestamp", f"2026-01-01T00:{self.version % 60:02}:00Z")
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        changed = 0 if request.subresource == "status" else 1
        metadata["generation"] = kept.get("generation", 0) + changed

    async def _record(self, request: Request) -> None:
        if request.action == action.DELETE:
            self.version += 1
            value = dict(self.objects[self._key(request)].last.raw)
            value["metadata"] = {**value["metadata"], "resourceVersion": str(self.version)}
        else:
            value = json.loads(json.dumps(dict(self.objects[self._key(request)].raw)))
        async with self.grown:
            kinds = {"CREATE": "ADDED", "DELETE": "DELETED"}
            done = request.action.value if request.action else ""
            event = {"type": kinds.get(done, "MODIFIED"), "object": value}
            self.log.append((self.version, request, event))
            self.grown.notify_all()

    def _key(self, request: Request) -> Any:
        name = request.name or request.data["metadata"]["name"]
        return (request.resource, request.namespace, name)

    async def _serve_list(self, request: Request) -> Json:
        since = request.params.get("resourceVersion") or "0"
        if not since.isdigit():
            raise KubernetesError(status=400, message="invalid resource version")
        if int(since) > self.version:
            details = {"causes": [{"reason": "ResourceVersionTooLarge", "message": "too large"}]}
            raise KubernetesError(status=504, reason="Timeout", details=details)
        answer: Any = await super()._serve_list(request)
        items = [item for item in answer["items"] if _selected(request, item)]
        return {"kind": "List", "metadata": {"resourceVersion": str(self.version)}, "items": items}

    async def _serve_watch(self, request: Request) -> AsyncIterator[Any]:
        since = int(request.params["resourceVersion"])
        if since < self.compacted:
            status = {"kind": "Status", "code": 410, "message": "too old resource version"}
            yield {"type": "ERROR", "object": status}
            return
        yield b""
        position = 0
        while True:
            async with self.grown:
                while len(self.log) == position:
                    await self.grown.wait()
                news, position = self.log[position:], len(self.log)
            for version, made, event in news:
                same = made.resource == request.resource
                here = request.namespace in {None, event["object"]["metadata"]["namespace"]}
                if version > since and same and here and _selected(request, event["object"]):
                    yield event


def _selected(request: Request, value: Json) -> bool:
    labels = value["metadata"].get("labels", {})
    wanted = filter(None, request.params.get("labelSelector", "").split(","))
    named = request.params.get("fieldSelector", "").partition("metadata.name=")[2]
    return all(labels.get(w.partition("=")[0]) == w.partition("=")[2] for w in wanted) and (
        not named or value["metadata"]["name"] == named
    )


class Cluster:
    """The API server on a socket of its own: a context manager, used from the test's thread."""

    def __init__(self, folder: Path) -> None:
        self.kubeconfig = folder / "kubeconfig"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._handler: ApiServer
        self._server: Server
        self._port: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        self.start()
        self._client = httpx.Client(base_url=self.url, trust_env=False, timeout=DEADLINE)
        user = {"name": "u", "user": {"token": "t0ken"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [user],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()
        if self._handler.servers:
            self.stop()
        self._do(self._handler.__aexit__(None, None, None))
        self._do(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    async def _open(self) -> None:
        self._handler = ApiServer()
        await self._handler.__aenter__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find this cluster."""
        return {"KUBECONFIG": str(self.kubeconfig)}

    # --- the server -------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = Server(self._handler, port=self._port)
        self._do(self._server.__aenter__())
        self._port = self._server.port

    def stop(self) -> None:
        """Go away: every connection breaks, none is taken."""
        self.cut()
        self._do(self._server.__aexit__(None, None, None))

    def cut(self) -> None:
        """Break all watches."""

        async def abort() -> None:
            for request in list(self._handler.watches.values()):
                if request.transport is not None:
                    request.transport.abort()

        self._do(abort())

    def compact(self) -> None:
        """Forget what was: watches that go on from before now are answered with 410."""
        self._handler.compacted = self._handler.version + 1
        self._handler.version += 1

    def lag(self, kind: str, namespace: str = "default") -> None:
        """Answer lists of any age (version 0) as the objects are now, as one that lags does."""
        path = self._path(kind, namespace)
        now = self._client.get(path).text

        def answer(request: web.BaseRequest) -> web.Response | None:
            hit = request.path == path and request.query.get("resourceVersion") == "0"
            old = hit and "watch" not in request.query
            return web.Response(text=now, content_type="application/json") if old else None

        self.trouble(answer)

    def restore(self) -> None:
        """Count versions from far below again, as after etcd was restored from a backup."""
        self._handler.version = 50
        self._handler.compacted = 0

    def trouble(self, trouble: Trouble | None) -> None:
        """Let a function answer requests in the server's stead; None: no more trouble."""
        self._handler.trouble = trouble

    def refuse(self, status: int, *, path: str = "", method: str = "", body: str = "") -> None:
        """Answer what has this in its path and query with a status."""
        text = body or json.dumps({"kind": "Status", "code": status, "message": "as the test says"})

        def answer(request: web.BaseRequest) -> web.Response | None:
            hit = path in request.path_qs and method in request.method
            kind = "application/json"
            return web.Response(status=status, text=text, content_type=kind) if hit else None

        self.trouble(answer)

    def hold(self) -> None:
        """Take connections and requests, and never answer."""
        self._handler.held = True

    @property
    def watching(self) -> list[str]:
        """The paths of the watches that are open."""
        return sorted(request.path for request in list(self._handler.watches.values()))

    @property
    def seen(self) -> list[tuple[str, str]]:
        """Method and path of all requests so far."""
        return list(self._handler.seen)

    # --- the objects ------------------------------------------------------------------------------

    def apply(self, *values: Json, namespace: str = "default") -> None:
        """Create or replace objects, as `kubectl apply` does."""
        for value in values:
            metadata = {"namespace": namespace, **value["metadata"]}
            wanted = {**value, "metadata": metadata}
            path = self._path(value["kind"], metadata["namespace"])
            found = self._client.get(f"{path}/{metadata['name']}")
            if found.status_code == 404:
                self._client.post(path, json=wanted).raise_for_status()
                continue
            before = found.json()
            patch: Json = {
                part: _difference(before.get(part), wanted[part])
                for part in ("spec", "status")
                if part in wanted
            }
            patch["metadata"] = {"labels": metadata.get("labels", {})}
            self._client.patch(f"{path}/{metadata['name']}", json=patch).raise_for_status()

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete an object."""
        self._client.delete(f"{self._path(kind, namespace)}/{name}").raise_for_status()

    def get(self, kind: str, name: str, namespace: str = "default") -> Json:
        """Return an object."""
        found: Json = self._client.get(f"{self._path(kind, namespace)}/{name}").json()
        return found

    def conditions(self, kind: str, name: str, namespace: str = "default") -> dict[str, Json]:
        """Return an object's conditions by their type."""
        status = self.get(kind, name, namespace).get("status", {})
        return {c["type"]: c for c in status.get("conditions", [])}

    def _path(self, kind: str, namespace: str) -> str:
        api, plural = PATHS[kind]
        return f"/{api}/namespaces/{namespace}/{plural}"


def _difference(before: Any, after: Any) -> Any:
    """Return the merge patch that makes one of the other."""
    if not isinstance(before, dict) or not isinstance(after, Mapping):
        return after
    patch = {name: _difference(before.get(name), value) for name, value in after.items()}
    return {**dict.fromkeys(set(before) - set(after)), **patch}


# --- objects --------------------------------------------------------------------------------------


def service(name: str, address: str, **ports: int) -> Json:
    """Return a Service with a cluster IP and named ports."""
    listed = [{"name": name, "port": port} for name, port in ports.items()]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"type": "ClusterIP", "clusterIP": address, "ports": listed},
    }


def pool(name: str, port: int, **labels: str) -> Json:
    """Return an InferencePool of the pods with these labels."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "targetPorts": [{"number": port}]},
    }


def pod(name: str, address: str, *, ready: bool = True, **labels: str) -> Json:
    """Return a pod."""
    condition = {"type": "Ready", "status": str(ready)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {"phase": "Running", "podIP": address, "conditions": [condition]},
    }
