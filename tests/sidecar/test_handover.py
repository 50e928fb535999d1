"""What a worker inherits."""

import socket

import pytest

from pointsman.sidecar import handover


def test_a_worker_finds_the_sockets_that_it_was_given() -> None:
    ours, theirs = socket.socketpair()
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    wanted = [each.getsockname() for each in opened]
    variables = handover.environment(opened, theirs)
    for each in (*opened, theirs):
        each.detach()  # as a worker has them: numbers alone
    taken, line = handover.take(variables)
    with ours, line, taken[0], taken[1]:
        assert [each.getsockname() for each in taken] == wanted
        assert not any(each.get_inheritable() for each in (*taken, line))
        line.sendall(handover.READY)
        assert ours.recv(1) == handover.READY


def test_a_worker_knows_the_admin_endpoints_port_where_it_has_one() -> None:
    assert handover.admin_port({handover.ADMIN_PORT: "15020"}) == 15020
    assert handover.admin_port({handover.ADMIN_PORT: "/run/admin.sock"}) is None
    assert handover.admin_port({}) is None


@pytest.mark.parametrize(
    "variables", [{}, {"POINTSMAN_LISTENING_FDS": "", "POINTSMAN_SUPERVISOR_FD": "3"}]
)
def test_a_worker_without_a_supervisor_says_how_it_is_started(variables: dict[str, str]) -> None:
    with pytest.raises(LookupError, match="run `pointsman run --sidecar`"):
        handover.take(variables)
