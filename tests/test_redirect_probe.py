"""What `scripts/redirect check` runs, where no rules are loaded. The rest is end to end."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pointsman import redirect_probe
from pointsman.redirect_probe import Excluded, Family, ProbeError

NO_ONE = Excluded(frozenset(), frozenset())
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp is Linux's")
every_family = pytest.mark.parametrize(
    "family", [redirect_probe.IPV4, redirect_probe.IPV6], ids=["ipv4", "ipv6"]
)


@contextmanager
def listening(family: Family) -> Iterator[int]:
    try:
        listener = socket.create_server((family.loopback, 0), family=family.number)
    except OSError as error:
        pytest.skip(f"{family.name} is not there: {error}")
    with listener:
        yield listener.getsockname()[1]


@LINUX
@every_family
def test_the_other_end_of_a_connection_is_found_among_the_kernels_sockets(family: Family) -> None:
    with listening(family) as port, socket.socket(family.number) as client:
        client.connect((family.loopback, port))
        here = client.getsockname()[:2]
        sockets = family.sockets.read_text("ascii")
        assert redirect_probe.local_port_of(here, sockets) == port
        assert redirect_probe.local_port_of((here[0], 1), sockets) is None


@LINUX
@every_family
def test_a_connection_that_arrives_elsewhere_fails_the_probe(family: Family) -> None:
    with listening(family) as elsewhere, listening(family) as proxy:
        target = (family.loopback, elsewhere)
        with pytest.raises(ProbeError, match=f"arrived, but at port {elsewhere} and not at the"):
            redirect_probe.probe(target, [proxy], NO_ONE)


@LINUX
def test_a_connection_to_the_proxys_own_port_has_no_original_destination() -> None:
    family = redirect_probe.IPV4
    with listening(family) as port, socket.socket(family.number) as client:
        client.connect((family.loopback, port))
        with pytest.raises(OSError):
            redirect_probe.original_destination(client)


@every_family
def test_whoever_listens_on_the_ports_is_the_proxy(family: Family) -> None:
    with listening(family) as taken, ExitStack() as stack:
        assert redirect_probe.listen(family, [taken], stack) == []


@every_family
def test_a_range_with_one_worker_missing_is_refused(family: Family) -> None:
    with listening(family) as taken, ExitStack() as stack:
        with listening(family) as free:
            pass
        with pytest.raises(ProbeError, match=f"nobody listens on port {free}"):
            redirect_probe.listen(family, [taken, free], stack)


def test_one_who_is_redirected_stays_who_he_is() -> None:
    before = os.geteuid(), os.getegid()
    with redirect_probe.as_redirected_user(NO_ONE):
        assert (os.geteuid(), os.getegid()) == before
    assert (os.geteuid(), os.getegid()) == before


@pytest.mark.parametrize(
    ("current", "excluded", "taken"),
    [
        (1000, set(), 1000),
        (1000, {1000}, 65534),
        (1000, {1000, 65534}, 65533),
        (65534, {65534}, 65533),
        (65533, {65533, 65534}, 65532),
        (0, {0, 65534, 65532}, 65533),
    ],
)
def test_one_who_is_not_becomes_the_highest_that_is(
    current: int, excluded: set[int], taken: int
) -> None:
    assert redirect_probe._first_free(current, frozenset(excluded)) == taken


def test_one_who_is_not_becomes_another_or_says_that_he_may_not() -> None:
    before = os.geteuid(), os.getegid()
    excluded = Excluded(frozenset({before[0], 65534}), frozenset({before[1]}))
    if before[0] == 0:
        with redirect_probe.as_redirected_user(excluded):
            assert (os.geteuid(), os.getegid()) == (65533, 65534)
    else:
        with (
            pytest.raises(ProbeError, match="run the check as another user"),
            redirect_probe.as_redirected_user(excluded),
        ):
            pass
    assert (os.geteuid(), os.getegid()) == before


def test_the_exit_status_is_a_failures(capsys: pytest.CaptureFixture[str]) -> None:
    family = redirect_probe.IPV4
    with listening(family) as refused, listening(family) as proxy:
        pass
    arguments = ["--proxy-ports", str(proxy), "--port", str(refused), "--probes", "127.0.0.1"]
    assert redirect_probe.main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"failed: a connection to 127.0.0.1:{refused} did not arrive")
