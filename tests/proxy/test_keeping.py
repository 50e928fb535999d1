"""How much a UI keeps: flows that have ended, and messages of those that go on."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.view import View
from mitmproxy.flow import Flow
from mitmproxy.http import HTTPFlow
from mitmproxy.tcp import TCPFlow, TCPMessage
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from pointsman.proxy.keeping import KeepFlows
from pointsman.proxy.showing import MARKERS


def master(view: View | None, added: list[object]) -> Any:
    """Return as much of a program as is asked for; a real one has an event loop to close."""
    addons = SimpleNamespace(get={"view": view}.get, add=added.append)
    return SimpleNamespace(addons=addons)


class UI:
    """A view and the addon, and flows that run through both as they do in mitmweb."""

    def __init__(self, limit: int) -> None:
        self.view = View()
        self.keeping = KeepFlows()
        self.added: list[object] = []
        self.keeping.attach(master(self.view, self.added))
        self.keeping.bound(limit)

    def begin(self) -> HTTPFlow:
        flow = tflow.tflow(resp=True)
        flow.live = True
        flow.timestamp_created = 1.0
        self.view.requestheaders(flow)
        self.keeping.requestheaders(flow)
        return flow

    def end(self, flow: HTTPFlow) -> HTTPFlow:
        self.view.response(flow)
        self.keeping.response(flow)
        flow.live = False
        return flow

    def run(self, count: int) -> list[HTTPFlow]:
        return [self.end(self.begin()) for _ in range(count)]

    @property
    def kept(self) -> list[Flow]:
        return list(self.view._store.values())


def test_the_oldest_finished_flows_go_first() -> None:
    ui = UI(3)
    flows = ui.run(5)
    assert ui.kept == flows[2:]
    assert len(ui.view) == 3


def test_zero_keeps_all() -> None:
    ui = UI(0)
    flows = ui.run(50)
    assert ui.kept == flows


def test_a_lower_bound_holds_at_once_and_no_bound_is_negative() -> None:
    ui = UI(5)
    flows = ui.run(5)
    ui.keeping.bound(2)
    assert ui.kept == flows[-2:]
    with pytest.raises(exceptions.OptionsError, match="write 0 to keep all"):
        ui.keeping.bound(-1)


def test_what_is_under_way_stays_until_it_has_ended() -> None:
    ui = UI(2)
    live = ui.begin()
    flows = ui.run(4)
    assert ui.kept == [live, *flows[2:]]
    ui.end(live)
    ui.run(1)
    assert live in ui.kept  # it is the last but one to end
    ui.run(2)
    assert live not in ui.kept


def test_what_a_person_marks_stays_and_our_own_marker_is_none() -> None:
    ui = UI(2)
    ours, theirs = ui.begin(), ui.begin()
    for flow in (ours, theirs):
        flow.metadata["llm_outcome"] = "routed"
        flow.marked = MARKERS["routed"]
        ui.end(flow)
    theirs.marked = ":grapes:"
    ui.run(3)
    assert theirs in ui.kept
    assert ours not in ui.kept


def test_what_is_loaded_from_a_file_stays() -> None:
    ui = UI(1)
    loaded = [tflow.tflow(resp=True) for _ in range(5)]
    for flow in loaded:
        flow.live = False
        ui.view.requestheaders(flow)
        ui.keeping.requestheaders(flow)
        ui.end(flow)
    ui.run(3)
    assert ui.kept[:5] == loaded
    assert len(ui.kept) == 6


def test_the_flow_in_the_consoles_focus_stays_until_the_focus_moves() -> None:
    ui = UI(2)
    ui.keeping._focused = True
    first = ui.run(4)[0]
    assert ui.view.focus.flow is first
    assert first in ui.kept
    ui.view.focus.flow = ui.view[-1]
    ui.run(3)
    assert first not in ui.kept


def test_errors_killed_flows_websockets_tcp_and_dns_end_as_well() -> None:
    ui = UI(1)
    killed = ui.begin()
    killed.kill()
    ui.keeping.error(killed)
    socket = tflow.twebsocketflow()
    socket.live = True
    for ended, begin, end in (
        (socket, ui.keeping.requestheaders, ui.keeping.websocket_end),
        (tflow.ttcpflow(), ui.keeping.tcp_start, ui.keeping.tcp_end),
        (tflow.tudpflow(), ui.keeping.udp_start, ui.keeping.udp_error),
        (tflow.tdnsflow(), ui.keeping.dns_request, ui.keeping.dns_response),
    ):
        ended.live = True
        ui.view.add([ended])
        begin(ended)
        if ended is socket:
            ui.keeping.response(socket)
        ended.live = False
        end(ended)
    (last,) = ui.run(1)
    assert ui.kept == [last]
    assert not ui.keeping._begun


def test_a_flow_that_a_person_has_deleted_is_forgotten() -> None:
    ui = UI(2)
    flows = ui.run(2)
    ui.view.remove(flows)
    assert ui.kept == []
    assert len(ui.run(3)) == 3
    assert len(ui.kept) == 2


def test_a_program_without_a_view_is_left_alone() -> None:
    keeping, added = KeepFlows(), list[object]()
    keeping.attach(master(None, added))
    keeping.bound(1)
    assert added == []
    ui = UI(1)
    assert ui.added == [ui.keeping]


class TestMessages:
    """Those of connections under way, as mitmproxy's layers add and tell of them."""

    @staticmethod
    def over_websocket(sizes: Iterable[int], *, live: bool = True) -> list[int]:
        ui, flow = UI(0), tflow.twebsocketflow()
        flow.live = live
        assert flow.websocket is not None
        flow.websocket.messages.clear()
        for size in sizes:
            message = WebSocketMessage(Opcode.BINARY, from_client=False, content=bytes(size))
            flow.websocket.messages.append(message)
            ui.keeping.websocket_message(flow)
        return [len(message.content) for message in flow.websocket.messages]

    @staticmethod
    def over_tcp(sizes: Iterable[int], *, live: bool = True) -> list[int]:
        ui, flow = UI(0), TCPFlow(tflow.tclient_conn(), tflow.tserver_conn())
        flow.live = live
        for size in sizes:
            flow.messages.append(TCPMessage(from_client=True, content=bytes(size)))
            ui.keeping.tcp_message(flow)
        return [len(message.content) for message in flow.messages]

    @pytest.mark.parametrize("kept", [over_websocket, over_tcp])
    def test_the_latest_are_kept_within_bounds(self, kept: Callable[..., list[int]]) -> None:
        megabyte = 1024 * 1024
        assert kept([1, 2, 3]) == [1, 2, 3]
        assert kept(range(1500)) == list(range(500, 1500))
        assert kept([7, *[megabyte] * 16]) == [megabyte] * 16
        assert kept([1, 20 * megabyte]) == [20 * megabyte]
        assert kept([20 * megabyte, 1]) == [1]

    @pytest.mark.parametrize("kept", [over_websocket, over_tcp])
    def test_what_is_loaded_from_a_file_is_whole(self, kept: Callable[..., list[int]]) -> None:
        assert len(kept([0] * 1500, live=False)) == 1500
