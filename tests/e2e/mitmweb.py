"""A mitmweb with the addon, and its REST API."""

from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader

from tests.e2e.harness import DEADLINE, LOOPBACK, Json, Proxy, closed_port, eventually

PASSWORD = "letmein"


class Web:
    """A mitmweb as a process, and a client of its API: a context manager.

    What is given besides goes to `Proxy`.
    """

    def __init__(self, confdir: Path, rules: Path, *options: str, **proxy: Any) -> None:
        self.port = closed_port()
        self.proxy = Proxy(
            confdir,
            rules,
            *("--no-web-open-browser", "--web-host", LOOPBACK, "--web-port", str(self.port)),
            *("--set", f"web_password={PASSWORD}"),
            *options,
            program="mitmweb",
            **proxy,
        )
        # A forged request could not have both: mitmweb only compares them.
        self.api = httpx.Client(
            base_url=f"http://{LOOPBACK}:{self.port}",
            headers={"authorization": f"Bearer {PASSWORD}", "x-xsrftoken": "same"},
            cookies={"_mitmproxy_xsrf": "same"},
            trust_env=False,
            timeout=DEADLINE,
        )
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.api)
            stack.enter_context(self.proxy)
            eventually(self._answers, what="mitmweb answers")
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.proxy.forget()
        self._open.__exit__(kind, error, traceback)

    def _answers(self) -> bool:
        try:
            return self.api.get("/state").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def url(self) -> str:
        """The page, for a browser."""
        return f"http://{LOOPBACK}:{self.port}/?token={PASSWORD}"

    def flows(self, count: int) -> list[Json]:
        """Wait until there are this many flows and each has ended; return them in their order."""

        def look() -> list[Json]:
            flows: list[Json] = self.api.get("/flows").json()
            done = [
                f for f in flows if f.get("error") or (f.get("response") or {}).get("timestamp_end")
            ]
            return flows if len(done) == len(flows) == count else []

        return eventually(look, what=f"{count} finished flows")

    def view(self, flow: Json, message: str, name: str = "Auto") -> Json:
        """Return a body as a view shows it: `text`, `view_name`, `syntax_highlight`."""
        answer = self.api.get(f"/flows/{flow['id']}/{message}/content/{name}")
        assert answer.status_code == 200, answer.text
        shown: Json = answer.json()
        return shown

    def put(self, flow: Json, **fields: Any) -> None:
        """Change a flow, as a person does on the page."""
        assert self.api.put(f"/flows/{flow['id']}", json=fields).status_code == 200

    def post(self, path: str) -> None:
        """Do what a button does."""
        assert self.api.post(path).status_code == 200

    def dump(self, wanted: str = "") -> bytes:
        """Return the flows that a filter matches, as mitmproxy saves them."""
        answer = self.api.get("/flows/dump", params={"filter": wanted} if wanted else {})
        assert answer.status_code == 200, answer.text
        return answer.content

    def matching(self, wanted: str) -> Sequence[HTTPFlow]:
        """Return the flows that a filter matches."""
        flows = FlowReader(BytesIO(self.dump(wanted))).stream()
        return [flow for flow in flows if isinstance(flow, HTTPFlow)]
