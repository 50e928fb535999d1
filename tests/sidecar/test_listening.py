"""The sockets that stay open while workers come and go."""

import errno
import socket

import pytest

from pointsman.sidecar import listening
from pointsman.sidecar.listening import describe, open_sockets

HAS_IPV6 = socket.has_ipv6


def closed(sockets: list[socket.socket]) -> list[str]:
    found = describe(sockets)
    for each in sockets:
        each.close()
    return found


def test_loopback_is_listened_on_at_one_port_for_both_families() -> None:
    first, *others = closed(open_sockets((), 0))
    host, _, port = first.rpartition(":")
    assert host == "127.0.0.1"
    assert others in ([f"[::1]:{port}"], [])


def test_all_is_every_address() -> None:
    first, *others = closed(open_sockets(("all",), 0))
    host, _, port = first.rpartition(":")
    assert host == "0.0.0.0"
    assert others in ([f"[::]:{port}"], [])


def test_given_addresses_are_the_only_ones() -> None:
    assert len(closed(open_sockets(("127.0.0.1",), 0))) == 1


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_ipv6_may_be_absent_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened = listening._open

    def without_ipv6(address: str, port: int) -> socket.socket:
        if ":" in address:
            raise OSError(number, "absent")
        return opened(address, port)

    monkeypatch.setattr(listening, "_open", without_ipv6)
    assert len(closed(open_sockets((), 0))) == 1
    assert len(closed(open_sockets(("all",), 0))) == 1
    with pytest.raises(OSError, match=r"::1 port \d+ can't be listened on"):
        open_sockets(("127.0.0.1", "::1"), 0)


def test_a_port_in_use_is_told_with_the_mend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use; end the process that has it") as refused:
            open_sockets((), port)
    assert str(refused.value.strerror).startswith(f"127.0.0.1 port {port} can't be listened on")


def test_an_address_of_another_machine_and_a_name_are_refused() -> None:
    with pytest.raises(OSError, match="give --listen an address of this machine"):
        open_sockets(("192.0.2.1",), 0)
    with pytest.raises(OSError, match="'localhost' is no IP address"):
        open_sockets(("localhost",), 0)
