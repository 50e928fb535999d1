"""What is looked at in raw bytes, and what is held back."""

import pytest
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import TCPLayer
from mitmproxy.test.tflow import tclient_conn

from pointsman.config.table import Route, RoutingTable
from pointsman.proxy.egress import Refused
from pointsman.proxy.raw import Head, WatchedTCP, watch_raw
from pointsman.proxy.router import Router
from pointsman.telemetry.exchange import Exchange

ODD = b" POST /x HTTP/1.1\r\n"


@pytest.fixture
def seen() -> list[Exchange]:
    return []


@pytest.fixture
def router(seen: list[Exchange]) -> Router:
    router = Router()
    router.go_live(RoutingTable({"llm.test": Route("r", "llm.test", ())}))
    router.sinks.put("test", seen.append)
    return router


@pytest.fixture
def around() -> Context:
    found = Context(tclient_conn(), Options())
    found.server.address = ("192.0.2.1", 80)
    return found


@pytest.mark.parametrize(
    "field",
    [
        b"Host: llm.test",
        b" \thost\t:llm.test:80",
        b"HOST: user@LLM.TEST",
        b"Host: other.test, llm.test",
        b"Host:\r\n llm.test",
        b"\0Host: \0llm.test\0",
        b" GET http://llm.test/x",
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_host_is_found_however_it_is_written(field: bytes, end: bytes, size: int) -> None:
    whole = b"\r\n" + ODD + b"A: b\r\n" + field + end
    head = Head()
    found = [host for at in range(0, len(whole), size) for host in head.feed(whole[at : at + size])]
    assert found[-1].lower() == "llm.test"


@pytest.mark.parametrize(
    "said",
    [
        ODD + b"Referer: http://llm.test/x\r\n",
        ODD + b"X-Host: llm.test\r\n",
        ODD + b"Host: llm.test",  # its line may go on
        ODD + b"\r\nHost: llm.test\r\n",
        b"a host: llm.test\r\n",
    ],
)
def test_what_names_no_host_is_not_taken_for_one(said: bytes) -> None:
    assert "llm.test" not in Head().feed(said)


@pytest.mark.parametrize(
    "said", [ODD + b"A: b\r\n", ODD + b"A: b\r\nHos", ODD + b"Ho", b"\0\r\n" + ODD + b"A: b\r\n"]
)
def test_an_unfinished_head_is_known(said: bytes) -> None:
    head = Head()
    head.feed(said)
    assert head.unfinished


@pytest.mark.parametrize(
    "said",
    [
        b"PING\r\n",
        b"*2\r\n$3\r\nGET\r\n$6\r\nuser:1\r\n",
        b"set k 0 0 5\r\ns:3:a\r\n",
        b"\x00\x01\x02\xff",
        b"SSH-2.0-x\r\n\0\0",
        ODD,
        ODD + b"A: b\r\n\r\n",
        ODD + b"\0\1\2",
        ODD + b"A: " + b"x" * 70_000,
    ],
)
def test_nothing_else_is_held_back(said: bytes) -> None:
    head = Head()
    head.feed(said)
    assert not head.unfinished


def test_who_names_our_host_at_once_is_refused_before_anyone_is_called(
    router: Router, around: Context, seen: list[Exchange]
) -> None:
    refusing = watch_raw(router, around, ODD + b"Host: llm.test\r\n\r\n", TCPLayer(around))
    assert isinstance(refusing, Refused)
    assert around.layers == [refusing]
    answer, close = refusing.handle_event(events.Start())
    assert isinstance(answer, commands.SendData)
    assert answer.data.startswith(b"HTTP/1.1 400 ")
    assert isinstance(close, commands.CloseConnection)
    [record] = seen
    assert (record.host, record.flags, record.status) == ("llm.test", ["DPE"], 400)


def test_who_only_observes_records_once_and_relays(
    router: Router, around: Context, seen: list[Exchange]
) -> None:
    router.observe = True
    relayed = watch_raw(router, around, ODD + b"Host: llm.test\r\n\r\n", TCPLayer(around))
    assert type(relayed) is TCPLayer
    [record] = seen
    assert (record.flags, record.status, record.error) == (["DPE", "OB"], None, None)


def opened(router: Router, around: Context) -> WatchedTCP:
    """Return the layer of a connection whose server is connected."""
    layer = watch_raw(router, around, b"", TCPLayer(around, ignore=True))
    assert isinstance(layer, WatchedTCP)
    around.server.timestamp_start = 1.0
    assert not list(layer.handle_event(events.Start()))
    return layer


def said_to_the_server(around: Context, done: list[commands.Command]) -> bytes:
    sent = (one for one in done if isinstance(one, commands.SendData))
    return b"".join(one.data for one in sent if one.connection is around.server)


def test_a_head_is_held_until_it_ends_or_time_is_up(router: Router, around: Context) -> None:
    layer = opened(router, around)
    from_client = [ODD, b"A: b\r\n", b"Hos", b"t: other.test\r\n", b"\r\nbody"]
    done: list[list[commands.Command]] = [
        list(layer.handle_event(events.DataReceived(around.client, data))) for data in from_client
    ]
    assert said_to_the_server(around, done[0]) == ODD
    [timer] = done[1]
    assert isinstance(timer, commands.RequestWakeup)
    assert done[2:4] == [[], []]
    assert said_to_the_server(around, done[4]) == b"".join(from_client[1:])
    assert not list(layer.handle_event(events.Wakeup(timer)))


def test_what_the_server_answers_ends_the_watch(
    router: Router, around: Context, seen: list[Exchange]
) -> None:
    layer = opened(router, around)
    list(layer.handle_event(events.DataReceived(around.server, b"220 hello\r\n")))
    host = events.DataReceived(around.client, b"Host: llm.test\r\n")
    assert said_to_the_server(around, list(layer.handle_event(host))) == b"Host: llm.test\r\n"
    assert not seen


def test_what_is_held_is_dropped_with_its_host_also_after_the_time(
    router: Router, around: Context, seen: list[Exchange]
) -> None:
    layer = opened(router, around)
    [timer] = list(layer.handle_event(events.DataReceived(around.client, ODD + b"A: b\r\n")))
    assert isinstance(timer, commands.RequestWakeup)
    done = list(layer.handle_event(events.Wakeup(timer)))
    assert said_to_the_server(around, done) == ODD + b"A: b\r\n"
    more = list(layer.handle_event(events.DataReceived(around.client, b"B: c\r\n")))
    assert said_to_the_server(around, more) == b"B: c\r\n"
    end = list(layer.handle_event(events.DataReceived(around.client, b"Host: llm.test\r\n")))
    assert not said_to_the_server(around, end)
    assert len(seen) == 1
    assert not list(layer.handle_event(events.Wakeup(timer)))
