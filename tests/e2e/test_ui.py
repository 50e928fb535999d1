"""mitmweb by its REST API: what it shows of LLM calls, what it keeps, what can be searched for."""

import contextlib
import fcntl
import gzip
import json
import os
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx
import pytest
import yaml
from mitmproxy.utils.emoji import emoji

from pointsman.demo.provider import Reply
from pointsman.proxy.showing import MARKERS
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    ADDON,
    DEADLINE,
    LOOPBACK,
    PROGRAMS,
    Far,
    Json,
    assert_refused,
    chat,
    closed_port,
    eventually,
    llm_route,
    said,
    sse,
    write_rules,
)
from tests.e2e.mitmweb import Web

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"
URL = f"https://api.openai.com{CHAT}"
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
STREAM = [("content-type", "text/event-stream")]
OWN = "sk-application-own-7d21"

type StartWeb = Callable[..., Web]


@pytest.fixture
def rules(tmp_path: Path, openai: Far, moonshot: Far, dashscope: Far) -> Path:
    """A route that fails over from OpenAI to Moonshot, and one that takes known tenants only."""
    hosts = [far.provider.host for far in (openai, moonshot)]
    refs = [{"providerHost": host, "priority": tier} for tier, host in enumerate(hosts)]
    picky = {
        "name": "tenants",
        "matches": [{"headers": {"x-tenant": {}}}],
        "backendRefs": [{"providerHost": dashscope.provider.host}],
    }
    return write_rules(
        tmp_path / "rules",
        *(far.manifest() for far in (openai, moonshot, dashscope)),
        llm_route("main", "api.openai.com", {"name": "everyone", "backendRefs": refs}),
        llm_route("picky", "llm.internal", picky),
    )


@pytest.fixture
def start_web(confdir: Path, rules: Path) -> Iterator[StartWeb]:
    """Start mitmwebs for one test: `start_web(*options, **more)`."""
    with ExitStack() as stack:
        yield lambda *options, **more: stack.enter_context(
            Web(confdir, rules, *options, **{"env": KEYS, **more})
        )


@pytest.fixture
def web(start_web: StartWeb) -> Web:
    return start_web()


def shown(web: Web, flow: Json, message: str, name: str = "Auto") -> Json:
    """Return what the view LLM, which has to be the one, shows of a body."""
    view = web.view(flow, message, name)
    assert (view["view_name"], view["syntax_highlight"]) == ("LLM", "yaml")
    told: Json = yaml.safe_load(view["text"])
    return told


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_calls_are_shown_with_their_way(web: Web, openai: Far, moonshot: Far, http2: bool) -> None:
    own = {"authorization": f"Bearer {OWN}"}
    with web.proxy.client(http2=http2, headers=own) as client:
        assert said(client.post(URL, json=chat(model="m", top_p=0.5)))
        openai.provider.replies.append(Reply.json({"error": {"message": "busy"}}, status=503))
        assert sse(client.post(URL, json=chat(model="m", stream=True)).content)
        refused = client.post(f"https://llm.internal{CHAT}", json=chat(model="m"))
        assert_refused(refused, 404, "no_route")
    plain, moved, none = web.flows(3)

    request = shown(web, plain, "request")
    assert request["conversation"] == [{"user": "Hello there"}]
    assert request["parameters"] == {"top_p": 0.5}
    assert request["route"]["rules"] == [
        {"✓ everyone": "it has no matches, so it takes every request"}
    ]
    headers = request["route"]["rewritten"]["headers"]
    assert headers == {"authorization": f"Bearer ...7d21 → Bearer ...{KEYS['OPENAI_API_KEY'][-4:]}"}
    answer = shown(web, plain, "response")
    assert answer["usage"]["prompt"] == 2
    assert answer["finish"] == "stop"

    way = shown(web, moved, "request", "LLM")["route"]
    assert way["outcome"] == "failed-over"
    first, second = way["attempts"]
    assert first["1 openai"].startswith("status 503, ")
    assert second["2 moonshot"].startswith("status 200, ")
    assert way["rewritten"]["host"] == "api.openai.com → api.moonshot.cn"
    streamed = shown(web, moved, "response")
    assert "events" in streamed["stream"]
    assert streamed["answer"][0]["assistant"]
    # It was asked for on our own account, and taken out of the stream again.
    assert streamed["usage"]["prompt"] == 2

    assert shown(web, none, "request")["route"]["rules"] == [
        {"✗ tenants": "header x-tenant is absent (wanted: present)"}
    ]
    assert shown(web, none, "response")["error"]["code"] == "no_route"
    for flow, entry in zip((plain, moved, none), web.proxy.logged(3), strict=True):
        overhead = shown(web, flow, "request", "LLM")["route"]["overhead"]
        assert overhead == f"{entry['overhead_ms']:.1f} ms in Pointsman"
    markers = [emoji[MARKERS[ended]] for ended in ("routed", "failed-over", "refused")]
    assert [flow["marked"] for flow in (plain, moved, none)] == markers

    everything = web.dump() + web.api.get("/flows").content
    for flow in (plain, moved, none):
        for message in ("request", "response"):
            everything += web.view(flow, message)["text"].encode()
    assert not [key for key in (OWN, *KEYS.values()) if key.encode() in everything]


def test_filters_find_calls_by_their_decision(web: Web, openai: Far) -> None:
    with web.proxy.client() as client:
        assert said(client.post(URL, json=chat(model="m")))
        openai.provider.replies.append(Reply.json({"error": {"message": "busy"}}, status=503))
        assert said(client.post(URL, json=chat(model="other")))
        assert client.post("https://llm.internal/", json=chat(model="m")).status_code == 404
    web.flows(3)
    for wanted, found in (
        ('~meta "llm_provider: moonshot"', [1]),
        ('~meta "llm_outcome: routed"', [0]),
        ('~meta "llm_attempts: [2-9]"', [1]),
        ('~meta "llm_model: other"', [1]),
        ('~meta "llm_flags: NR"', [2]),
        ('~meta "llm_rule: everyone" & !~marker hook', [0]),
        ("~comment no_route", [2]),
    ):
        flows = web.api.get("/flows").json()
        matching = [flow.id for flow in web.matching(wanted)]
        assert matching == [flows[index]["id"] for index in found], wanted
    assert web.api.put("/options", json={"view_filter": "~meta llm_provider:.moonshot"}).is_success
    assert len(web.api.get("/flows").json()) == 1


def test_what_mitmdump_has_saved_is_shown_by_mitmweb(
    start_proxy: StartProxy, start_web: StartWeb, rules: Path, openai: Far, tmp_path: Path
) -> None:
    file = tmp_path / "flows.mitm"
    dump = start_proxy(rules, "-w", str(file))
    with dump.client() as client:
        assert said(client.post(URL, json=chat(model="m")))
        openai.provider.replies.append(Reply.json({"error": {"message": "busy"}}, status=503))
        assert sse(client.post(URL, json=chat(model="m", stream=True)).content)
    dump.logged(2)
    dump.stop()

    web = start_web("-r", str(file), "--set", "llm_keep_flows=1")
    plain, moved = web.flows(2)  # what a person loads is not counted
    assert re.fullmatch("moonshot · [0-9]+ tok · .* ← everyone", moved["comment"])
    assert shown(web, plain, "request")["route"]["outcome"] == "routed"
    assert shown(web, plain, "response")["usage"]["prompt"] == 2
    assert shown(web, moved, "request")["route"]["outcome"] == "failed-over"
    assert shown(web, moved, "response")["answer"][0]["assistant"]


def test_what_mitmdump_prints_of_a_flow_shows_the_mask_as_it_is(
    start_proxy: StartProxy, rules: Path
) -> None:
    dump = start_proxy(rules, "--set", "flow_detail=2")
    with dump.client(headers={"authorization": f"Bearer {OWN}"}) as client:
        assert said(client.post(URL, json=chat(model="m")))
    dump.logged(1)
    dump.says("authorization: ...7d21")
    assert OWN not in dump.printed


def test_what_is_saved_is_chosen_by_the_decision(
    start_proxy: StartProxy, start_web: StartWeb, rules: Path, openai: Far, tmp_path: Path
) -> None:
    file = tmp_path / "flows.mitm"
    moved_only = 'save_stream_filter=~meta "llm_attempts: [2-9]"'
    dump = start_proxy(rules, "-w", str(file), "--set", moved_only)
    with dump.client() as client:
        assert said(client.post(URL, json=chat(model="plain")))
        openai.provider.replies.append(Reply.json({"error": {"message": "busy"}}, status=503))
        assert said(client.post(URL, json=chat(model="moved")))
    dump.logged(2)
    dump.stop()
    web = start_web("-r", str(file))
    (moved,) = web.flows(1)
    assert shown(web, moved, "request")["route"]["outcome"] == "failed-over"


def test_no_more_finished_flows_are_kept_than_asked_for(start_web: StartWeb) -> None:
    web = start_web("--set", "llm_keep_flows=4")
    with web.proxy.client() as client:
        for number in range(3):
            assert said(client.post(URL, json=chat(model=f"m{number}")))
        marked = web.flows(3)[0]
        web.put(marked, marked=":red_circle:")
        for number in range(3, 9):
            assert said(client.post(URL, json=chat(model=f"m{number}")))

    def kept() -> bool:
        flows = web.api.get("/flows").json()
        return [flow["id"] == marked["id"] for flow in flows] == [True, *[False] * 4]

    eventually(kept, what="the marked flow and the last four")
    assert "m8" in web.api.get("/flows").json()[-1]["comment"]
    refused = web.api.put("/options", json={"llm_keep_flows": -1})
    assert refused.status_code == 400
    assert "write 0 to keep all" in refused.text


def test_what_a_person_has_marked_and_written_stays(start_web: StartWeb) -> None:
    web = start_web("--set", "intercept=~q & ~d api.openai.com")
    answers: list[httpx.Response] = []

    def call() -> None:
        with web.proxy.client() as client:
            answers.append(client.post(URL, json=chat(model="m")))

    calling = threading.Thread(target=call)
    calling.start()

    def intercepted() -> Json | None:
        flows = web.api.get("/flows").json()
        return next((flow for flow in flows if flow["intercepted"]), None)

    flow = eventually(intercepted, what="an intercepted flow")
    assert flow is not None
    assert flow["comment"] == "openai ← everyone"
    assert shown(web, flow, "request")["route"]["outcome"] == "under way"
    web.put(flow, marked=":grapes:", comment="look at this one")
    web.post(f"/flows/{flow['id']}/resume")
    calling.join()
    assert said(answers[0])
    (flow,) = web.flows(1)
    assert (flow["marked"], flow["comment"]) == (emoji[":grapes:"], "look at this one")
    assert shown(web, flow, "request")["route"]["outcome"] == "routed"


def test_of_a_stream_that_broke_off_the_beginning_is_kept(web: Web, openai: Far) -> None:
    openai.provider.replies.append(
        Reply(headers=STREAM, body=[EVENT] * 3, chunk_delay=0.01, drop="mid_body")
    )
    with web.proxy.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.post(URL, json=chat(model="m", stream=True))
    (flow,) = web.flows(1)
    assert flow["marked"] == emoji[MARKERS["failed"]]
    answer = shown(web, flow, "response")
    assert answer["answer"] == [{"assistant": "word word word"}]
    assert "cut short" in answer["stream"]


def test_of_a_stream_that_the_client_has_left_the_beginning_is_kept(web: Web, openai: Far) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(2000):
            yield EVENT

    openai.provider.replies.append(Reply(headers=STREAM, body=pieces(), chunk_delay=0.01))
    body = chat(model="m", stream=True)
    with web.proxy.client() as client, client.stream("POST", URL, json=body) as answer:
        next(answer.iter_bytes())
    (flow,) = web.flows(1)
    assert shown(web, flow, "response")["answer"][0]["assistant"].startswith("word")


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_huge_answer_is_kept_in_part_and_says_so(
    web: Web, moonshot: Far, openai: Far, coding: str
) -> None:
    letters = json.dumps({"choices": [{"index": 0, "delta": {"content": "x " * 50_000}}]})
    events = b"data: %b\n\n" % letters.encode() * 180
    body = events if coding == "identity" else gzip.compress(events, compresslevel=0)
    headers = [*STREAM, ("content-encoding", coding)]
    # Without an `inject` of ours, the client's coding is the provider's.
    pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]
    openai.provider.replies.append(Reply(headers=headers, body=pieces))
    asked = chat(model="m", stream=True, stream_options={"include_usage": True})
    with web.proxy.client() as client:
        assert len(client.post(URL, json=asked).content) == len(events)
    (flow,) = web.flows(1)
    answer = shown(web, flow, "response")
    assert answer["cut"] == "the first 16.8 MB of 18.0 MB were kept"
    assert "in the first" in answer["stream"]


def test_bodies_that_are_none_of_an_llm_have_their_own_views(web: Web, openai: Far) -> None:
    with web.proxy.client() as client:
        assert client.get("https://api.openai.com/v1/models").status_code == 200
        openai.provider.replies.append(Reply.json({"id": "file-1"}))
        upload = {"file": ("a.txt", b"text")}
        assert client.post("https://api.openai.com/v1/files", files=upload).status_code == 200
    models, files = web.flows(2)
    assert web.view(models, "response")["view_name"] == "JSON"
    assert web.view(files, "request")["view_name"] == "Multipart Form"
    assert "route" in web.view(models, "request", "LLM")["text"]
    assert models["marked"] == emoji[MARKERS["routed"]]


def test_mitmdump_does_no_work_for_what_no_one_sees(
    start_proxy: StartProxy, rules: Path, tmp_path: Path, openai: Far
) -> None:
    for options, saved in (((), False), (("-w", str(tmp_path / "flows.mitm")), True)):
        proxy = start_proxy(rules, *options, scripts=["metadata.py"])
        with proxy.client() as client:
            assert said(client.post(URL, json=chat(model="m")))
        proxy.entry()
        proxy.says("METADATA llm_api")
        assert ("llm_way" in proxy.printed) is saved
        proxy.stop()


# --- the console ----------------------------------------------------------------------------------


class Console:
    """mitmproxy's console in a terminal: a context manager. `seen` is all that it has written."""

    _ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>78])")

    def __init__(self, confdir: Path, rules: Path) -> None:
        self.port = closed_port()
        self.confdir = confdir
        self._master, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 120, 0, 0))
        options = [f"confdir={confdir}", f"llm_rules={rules}", "console_flowlist_layout=list"]
        options.append("llm_admin=off")  # its port may be another's
        self._process = subprocess.Popen(
            [
                *(str(PROGRAMS / "mitmproxy"), "-s", str(ADDON)),
                *("--listen-host", LOOPBACK, "--listen-port", str(self.port)),
                *(part for option in options for part in ("--set", option)),
            ],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(confdir),
                "TERM": "xterm-256color",
                **KEYS,
            },
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the terminal's end
            while data := os.read(self._master, 65536):
                self._written += data

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        os.close(self._master)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def shows(self, text: str) -> None:
        try:
            eventually(lambda: text in self.seen, what=f"{text!r} on the screen")
        except AssertionError as error:
            error.add_note(self.seen[-4000:])
            raise

    @property
    def seen(self) -> str:
        return self._ESCAPES.sub("", self._written.decode(errors="replace"))


def test_the_console_shows_the_same(confdir: Path, rules: Path, openai: Far) -> None:
    with Console(confdir, rules) as console:
        proxy = f"http://{LOOPBACK}:{console.port}"
        with httpx.Client(proxy=proxy, trust_env=False, timeout=DEADLINE) as client:

            def answered() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    url = f"http://api.openai.com{CHAT}"
                    return client.post(url, json=chat(model="m")).status_code == 200
                return False

            eventually(answered, what="an answer through the console's proxy")
        console.shows(CHAT)
        console.press("\r")
        console.shows("outcome: routed")
        console.shows("user: Hello there")
        console.press("\x1b[C")  # to the right: the response
        console.shows("finish: stop")
        assert not [key for key in KEYS.values() if key in console.seen]
