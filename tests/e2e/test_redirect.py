"""scripts/redirect: what is led to the proxy's port, what is not, and what a failure leaves."""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pointsman.redirect_probe import original_destination
from tests.e2e.harness import DEADLINE, RawServer, eventually, read_head
from tests.e2e.namespaces import (
    APP,
    METADATA,
    OUTSIDE,
    POD,
    PROXY,
    PROXY_PORT,
    REDIRECT,
    SITES,
    FamilyName,
    Namespaces,
    in_namespace,
    network,
    run,
)

pytestmark = pytest.mark.e2e

COMMANDS = ("apply", "remove", "check", "print")
BACKENDS = ("nft", "iptables")
FAMILIES: tuple[FamilyName, ...] = ("ipv4", "ipv6")
PORTS = (53, 80, 443, 8080)

root = pytest.mark.root
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def redirect(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script as anyone, where it may load nothing."""
    return subprocess.run(
        [str(REDIRECT), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_tells_the_usage(command: str) -> None:
    done = redirect(*filter(None, [command, "--help"]))
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: redirect {command}")
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "say what to do: apply, remove, check or print"),
        ("start", "start is no command"),
        ("apply 15001", "15001 is no option"),
        ("apply --proxy-prt 15001", "--proxy-prt is no option"),
        ("apply -p", "-p: a value is missing"),
        ("apply -p 0", "0 is no port"),
        ("apply -p 65536", "65536 is no port"),
        ("apply -p 015001", "015001 is no port"),
        ("apply -p 99999999999999999999999", "is no port"),
        ("apply -p 15002-15001", "the range 15002-15001 ends before it starts; write 15001-15002"),
        ("apply -p 15001-15002-15003", "is no port"),
        ("apply --random", "--random: 15001 is one port"),
        ("apply --proxy-port=x", "--proxy-port: x is no port"),
        ("apply -u root", "-u: root is not understood"),
        ("apply -u bad", "-u: bad is no id; give a number (`id -u NAME`"),
        ("apply -u 4294967295", "4294967295 is no id"),
        ("apply -g -1", "-1 is no id"),
        ("apply -g none,1337", "-g: none is not understood"),
        ("apply -u none", "-u: none is not understood"),
        ("apply -q 80,,443", "-q: 80,,443 has an empty entry"),
        ("apply -q 80,443,", "has an empty entry"),
        ("apply -q http", "-q: http is not understood"),
        ("apply -o 1-70000", "1-70000 is no port"),
        ("apply -o *", "-o: * is not understood"),
        ("apply -i 10.0.0.0/33", "10.0.0.0/33 is neither an address nor a network"),
        ("apply -i 10.0.0/8", "10.0.0/8 is neither"),
        ("apply -i 10.0.0.256", "10.0.0.256 is neither"),
        ("apply -i 10.0.0.0/", "10.0.0.0/ is neither"),
        ("apply -i 10.0.0.0/8/8", "10.0.0.0/8/8 is neither"),
        ("apply -x 1:2:3", "1:2:3 is neither"),
        ("apply -x fd00::1::2/64", "fd00::1::2/64 is neither"),
        ("apply -x fd00::/129", "fd00::/129 is neither"),
        ("apply -x :fd00::", ":fd00:: is neither"),
        ("apply -x fd00:::1", "fd00:::1 is neither"),
        ("apply -x 1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8:9 is neither"),
        ("apply -x fd00::12345", "fd00::12345 is neither"),
        ("apply -x ::ffff:10.0.0.1", "::ffff:10.0.0.1 is neither"),
        ("apply --cluster-cidrs demo-llm-server", "--cluster-cidrs: demo-llm-server is not"),
        ("apply --backend ipvs", "--backend: ipvs is none; choose auto, nft or iptables"),
        ("apply --ipv4-only -i fd00::/8", "-i names no IPv4 network"),
        ("apply --probe 192.0.2.1", "--probe belongs to check"),
        ("check --backend nft", "--backend has no meaning for check"),
        ("check --probe 192.0.2.0/24", "192.0.2.0/24 is a network"),
        ("check -i 10.0.0.0/8", "with -i, name an address in it: --probe ADDRESS"),
        ("remove -p 15001", "remove takes no options, not even -p"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_touched(arguments: str, message: str) -> None:
    done = redirect(*arguments.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("option", ["-p", "-u", "-g", "-q", "-o", "-i", "-x", "--cluster-cidrs"])
@pytest.mark.parametrize(
    "value",
    ["80; flush ruleset", "80\n}\nflush ruleset", "80\nCOMMIT", "$(id)", "`id`", "80 443", "80}"],
)
def test_nothing_can_be_smuggled_into_the_rules(option: str, value: str) -> None:
    done = redirect("print", option, value)
    assert done.returncode == 2
    assert f"redirect: {option}: " in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("option", ["-q", "-i"])
@pytest.mark.parametrize("value", ["", ","])
def test_redirecting_nothing_is_a_mistake(option: str, value: str) -> None:
    assert redirect("print", option, value).returncode == 2


def test_print_shows_the_transaction_of_nft() -> None:
    done = redirect(
        *(
            "print",
            "--backend",
            "nft",
            "-p",
            "15001-15002",
            "-u",
            "1337,1338",
            "-q",
            "80,8000-8010",
        ),
        *("-o", "8005", "-i", "0.0.0.0/0,fd00::/8", "-x", "203.0.113.0/24"),
        *("--cluster-cidrs", "10.96.0.0/12,fd12::/64"),
    )
    assert done.stderr == ""
    assert (
        done.stdout
        == """\
# nft -f -
table inet pointsman {}
delete table inet pointsman
table inet pointsman {
    chain to_proxy {
        tcp dport 80 redirect to :15001-15002 random
        tcp dport 8000-8010 redirect to :15001-15002 random
    }
    chain output {
        type nat hook output priority -110; policy accept;
        meta l4proto != tcp return
        meta skuid 1337 return
        meta skuid 1338 return
        meta skgid 1337 return
        oifname "lo" return
        ip daddr 127.0.0.0/8 return
        ip daddr 203.0.113.0/24 return
        ip daddr 169.254.0.0/16 return
        ip daddr 100.100.100.200 return
        ip daddr 168.63.129.16 return
        ip daddr 10.96.0.0/12 return
        ip6 daddr ::1 return
        ip6 daddr fe80::/10 return
        ip6 daddr fd00:ec2::/32 return
        ip6 daddr fd20:ce::254 return
        ip6 daddr fd12::/64 return
        tcp dport 8005 return
        meta nfproto ipv4 jump to_proxy
        ip6 daddr fd00::/8 jump to_proxy
    }
}
"""
    )


def test_print_shows_the_transactions_of_iptables() -> None:
    done = redirect(
        *("print", "--backend", "iptables", "--no-default-excludes", "-q", "*", "-o", "9000-9010")
    )
    assert done.stderr == ""
    same = """\
:POINTSMAN_OUTPUT - [0:0]
:POINTSMAN_REDIRECT - [0:0]
-A POINTSMAN_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A POINTSMAN_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A POINTSMAN_OUTPUT -o lo -j RETURN
-A POINTSMAN_OUTPUT -d {loopback} -j RETURN
-A POINTSMAN_OUTPUT -p tcp --dport 9000:9010 -j RETURN
-A POINTSMAN_OUTPUT -p tcp --dport 53 -j RETURN
-A POINTSMAN_OUTPUT -d {all} -j POINTSMAN_REDIRECT
-A POINTSMAN_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-I OUTPUT 1 -p tcp -j POINTSMAN_OUTPUT
COMMIT
"""
    assert done.stdout == (
        "# ip6tables-restore --noflush\n*nat\n"
        + same.format(loopback="::1", all="::/0")
        + "# iptables-restore --noflush\n*nat\n"
        + same.format(loopback="127.0.0.0/8", all="0.0.0.0/0")
    )


def test_an_option_may_be_empty_where_that_means_none() -> None:
    plain = redirect("print", "--backend", "nft")
    empty = redirect("print", "--backend", "nft", "-o", "", "-x=", "--cluster-cidrs", "")
    assert empty.returncode == 2  # a short option takes no sign
    empty = redirect("print", "--backend=nft", "-o", "", "-x", "", "--cluster-cidrs=")
    assert empty.stdout == plain.stdout


# --- the rules that are loaded --------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Iterator[Namespaces]:
    with network() as names:
        yield names


@pytest.fixture
def pod(shared: Namespaces) -> Iterator[Namespaces]:
    """A pod without rules."""
    yield shared
    done = shared.redirect("remove")
    assert done.returncode == 0, done.stderr


def snapshot(names: Namespaces) -> str:
    """Return all rules there are; the chains that the kernel itself brings are no rules."""
    found = [run(*names.in_pod, tool, "-t", "nat", "-S") for tool in ("iptables", "ip6tables")]
    tables = run(*names.in_pod, "nft", "list", "tables").splitlines()
    own = [table for table in tables if table not in ("table ip nat", "table ip6 nat")]
    found += [run(*names.in_pod, "nft", "-s", "list", *table.split()) for table in own]
    return "".join(found)


@root
@every_backend
def test_applying_twice_is_applying_once(pod: Namespaces, backend: str) -> None:
    pod.apply("--backend", backend)
    once = snapshot(pod)
    assert "15001" in once
    pod.apply("--backend", backend)
    assert snapshot(pod) == once


@root
@every_backend
@pytest.mark.parametrize("earlier", BACKENDS)
def test_applying_takes_the_place_of_earlier_rules(
    pod: Namespaces, backend: str, earlier: str
) -> None:
    pod.apply("--backend", backend)
    once = snapshot(pod)
    assert pod.redirect("remove").returncode == 0
    pod.apply("--backend", earlier, "-p", "16000-16003", "-q", "1-1024", "-x", "10.0.0.0/8")
    pod.apply("--backend", backend)
    assert snapshot(pod) == once


@root
@every_backend
def test_removing_leaves_what_others_loaded(pod: Namespaces, backend: str) -> None:
    theirs = ("OUTPUT", "-p", "tcp", "--dport", "81", "-j", "RETURN")
    run(*pod.in_pod, "iptables", "-t", "nat", "-A", *theirs)
    run(*pod.in_pod, "nft", "add", "table", "inet", "theirs")
    try:
        before = snapshot(pod)
        pod.apply("--backend", backend)
        assert snapshot(pod) != before
        removed = pod.redirect("remove")
        assert removed.returncode == 0
        assert "redirect: removed from " in removed.stderr
        assert snapshot(pod) == before
        again = pod.redirect("remove")
        assert (again.returncode, again.stderr) == (0, "redirect: nothing to remove\n")
        assert snapshot(pod) == before
    finally:
        run(*pod.in_pod, "iptables", "-t", "nat", "-D", *theirs)
        run(*pod.in_pod, "nft", "delete", "table", "inet", "theirs")


@root
@every_backend
def test_print_shows_what_apply_loads_and_loads_nothing(pod: Namespaces, backend: str) -> None:
    before = snapshot(pod)
    printed = pod.redirect("print", "--backend", backend, "-x", "10.9.9.9")
    assert snapshot(pod) == before
    for part in printed.stdout.split("# ")[1:]:
        command, _, text = part.partition("\n")
        subprocess.run([*pod.in_pod, *command.split()], input=text, text=True, check=True)
    by_hand = snapshot(pod)
    assert by_hand != before
    pod.apply("--backend", backend, "-x", "10.9.9.9")
    assert snapshot(pod) == by_hand


@root
def test_who_applies_or_removes_waits_for_others_that_do(pod: Namespaces) -> None:
    """The lock is the namespace itself."""
    with ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*pod.in_pod, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            return stack.enter_context(process)

        holding = start("sh", "-c", "exec 9</proc/self/ns/net; flock 9; echo held; read -r _")
        assert holding.stdout
        assert holding.stdout.readline() == "held\n"
        waiting = [start(str(REDIRECT), command) for command in ("apply", "remove")]
        inode = Path("/run/netns", pod.pod).stat().st_ino

        def both_wait() -> bool:
            locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
            return sum(f":{inode} " in line and " -> " in line for line in locks) == 2

        eventually(both_wait, what="two that wait")
        assert "15001" not in snapshot(pod)
        holding.communicate("\n", timeout=DEADLINE)
        for process in waiting:
            assert process.wait(DEADLINE) == 0


@root
def test_many_that_apply_at_once_leave_the_rules_of_one(pod: Namespaces) -> None:
    pure = set()
    for backend in BACKENDS:
        pod.apply("--backend", backend)
        pure.add(snapshot(pod))
    done: list[int] = []

    def apply_by(backend: str) -> None:
        done.append(pod.redirect("apply", "--backend", backend).returncode)

    for _ in range(3):
        threads = [threading.Thread(target=apply_by, args=[each]) for each in BACKENDS * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert snapshot(pod) in pure
    assert done == [0] * 18


def broken(folder: Path, *tools: str) -> Mapping[str, str]:
    """Return the environment in which these tools can read and not write."""
    for tool in tools:
        real = run("sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin command -v {tool}").strip()
        fake = folder / tool
        fake.write_text(
            "#!/bin/sh\n"
            f'case "$0 $*" in *restore*|*" -f -") cat >&2; echo "{tool} is broken" >&2; exit 4 ;; '
            f'esac\nexec {real} "$@"\n',
            encoding="utf-8",
        )
        fake.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@root
@pytest.mark.parametrize("earlier", [None, *BACKENDS])
@pytest.mark.parametrize(
    ("backend", "tools"),
    [
        ("nft", ["nft"]),
        ("iptables", ["iptables-restore"]),
        ("iptables", ["ip6tables-restore"]),
        ("auto", ["nft", "iptables-restore"]),
        ("auto", ["nft", "ip6tables-restore"]),
    ],
    ids=str,
)
def test_a_failed_apply_leaves_everything_as_it_was(
    pod: Namespaces, tmp_path: Path, backend: str, tools: list[str], earlier: str | None
) -> None:
    if earlier:
        pod.apply("--backend", earlier, "-p", "16000", "-q", "8080")
    before = snapshot(pod)
    done = pod.redirect("apply", "--backend", backend, env=broken(tmp_path, *tools))
    assert done.returncode == 1
    assert "redirect: not applied, nothing is changed:" in done.stderr
    for tool in tools:
        assert f"{tool} is broken" in done.stderr
    assert snapshot(pod) == before


@root
@pytest.mark.parametrize(("earlier", "backend"), [("nft", "iptables"), ("iptables", "nft")])
def test_rules_that_cannot_be_replaced_stay_alone(
    pod: Namespaces, tmp_path: Path, earlier: str, backend: str
) -> None:
    """The new rules are in already when the old ones, of the other backend, turn out to stay."""
    pod.apply("--backend", earlier, "-p", "16000")
    before = snapshot(pod)
    stuck = "nft" if earlier == "nft" else "ip6tables-restore"
    done = pod.redirect("apply", "--backend", backend, env=broken(tmp_path, stuck))
    assert done.returncode == 1
    assert f"{stuck} is broken" in done.stderr
    assert snapshot(pod) == before


@root
def test_auto_takes_iptables_where_nft_does_not_work(pod: Namespaces, tmp_path: Path) -> None:
    done = pod.redirect("apply", env=broken(tmp_path, "nft"))
    assert done.returncode == 0
    assert "nft is broken" in done.stderr
    assert "redirect: applied by iptables: TCP to ports 80 443 goes to 15001" in done.stderr
    found = snapshot(pod)
    assert found.count("-A OUTPUT -p tcp -j POINTSMAN_OUTPUT") == 2
    printed = pod.redirect("print", env=broken(tmp_path, "nft"))
    assert printed.stdout.startswith("# ip6tables-restore")


@root
def test_auto_takes_nft_where_iptables_has_no_ipv6(pod: Namespaces, tmp_path: Path) -> None:
    done = pod.redirect("apply", env=broken(tmp_path, "ip6tables-restore"))
    assert done.returncode == 0
    assert "redirect: applied by nft" in done.stderr


@root
def test_ipv4_alone_is_redirected_only_where_there_is_no_ipv6(tmp_path: Path) -> None:
    env = broken(tmp_path, "ip6tables-restore")
    with network() as names:
        refused = names.redirect("apply", "--backend", "iptables", env=env)
        assert refused.returncode == 1
        wanted = names.redirect("apply", "--backend", "iptables", "--ipv4-only", env=env)
        assert wanted.returncode == 0
        assert "IPv6 is not redirected: who uses it goes past the proxy" in wanted.stderr
        assert "POINTSMAN" in run(*names.in_pod, "iptables", "-t", "nat", "-S")
        assert names.redirect("remove").returncode == 0
        names.switch_ipv6_off()
        alone = names.redirect("apply", "--backend", "iptables", env=env)
        assert alone.returncode == 0
        assert "no IPv6 here" in alone.stderr
        assert "POINTSMAN" in run(*names.in_pod, "iptables", "-t", "nat", "-S")


@root
@pytest.mark.parametrize("command", ["apply", "remove"])
def test_without_the_right_to_load_the_reason_is_told(pod: Namespaces, command: str) -> None:
    prefix = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
    before = snapshot(pod)
    done = pod.redirect(command, prefix=prefix)
    assert done.returncode == 1
    assert "ermi" in done.stderr  # (Operation not) permitted, Permission denied
    assert "NET_ADMIN for this container" in done.stderr
    assert snapshot(pod) == before


# --- what is redirected ---------------------------------------------------------------------------


def answer(conn: socket.socket, text: str) -> None:
    """Answer a request of HTTP with this text; a probe makes none."""
    if not conn.recv(1):
        return
    read_head(conn)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    conn.sendall((head + text).encode())


def outside(conn: socket.socket) -> None:
    answer(conn, f"outside, from {conn.getpeername()[0]}")


def proxy(conn: socket.socket) -> None:
    """Be the proxy: tell the original destination."""
    host, port = original_destination(conn)
    answer(conn, f"proxy {conn.getsockname()[1]}, for {host} {port}")


@contextmanager
def serving(
    name: str, serve: Callable[[socket.socket], None], *addresses: tuple[str, int]
) -> Iterator[None]:
    """Answer at these addresses of a namespace."""
    with ExitStack() as stack:
        for host, port in addresses:

            def listen(host: str = host, port: int = port) -> RawServer:
                return RawServer(serve, host=host, port=port)

            stack.enter_context(in_namespace(name, listen))
        yield


@pytest.fixture(scope="module")
def world(shared: Namespaces) -> Iterator[Namespaces]:
    """The pod, with servers outside it, and nobody on the proxy's port."""
    addresses = [
        (address, port)
        for place in (OUTSIDE, SITES[0], METADATA)
        for address in place.both()
        for port in PORTS
    ]
    with serving(shared.outside, outside, *addresses):
        yield shared


@pytest.fixture
def listening(world: Namespaces, pod: Namespaces) -> Iterator[Namespaces]:
    """The same, with someone on the proxy's port."""
    with serving(world.pod, proxy, ("127.0.0.1", PROXY_PORT), ("::1", PROXY_PORT)):
        yield world


def url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def direct(family: FamilyName) -> str:
    """Return what an outside server says to one whom nobody redirected."""
    return f"outside, from {POD.of(family)}"


@root
@every_backend
@every_family
def test_the_applications_web_traffic_arrives_at_the_proxy(
    listening: Namespaces, backend: str, family: FamilyName
) -> None:
    host = OUTSIDE.of(family)
    assert listening.curl(url(host, 80)) == direct(family)
    listening.apply("--backend", backend)
    for port in (80, 443):
        assert listening.curl(url(host, port)) == f"proxy {PROXY_PORT}, for {host} {port}"
        assert listening.curl(url(host, port), uid=0).startswith("proxy")
    assert listening.curl(url(host, 8080)) == direct(family)
    assert listening.redirect("remove").returncode == 0
    assert listening.curl(url(host, 80)) == direct(family)


@root
@every_backend
@every_family
def test_the_proxys_user_and_group_are_left_alone(
    listening: Namespaces, backend: str, family: FamilyName
) -> None:
    host = OUTSIDE.of(family)
    listening.apply("--backend", backend)
    for port in (80, 443):
        assert listening.curl(url(host, port), uid=PROXY) == direct(family)
        assert listening.curl(url(host, port), uid=PROXY, gid=APP) == direct(family)
        assert listening.curl(url(host, port), uid=APP, gid=PROXY) == direct(family)


@root
@every_backend
@every_family
def test_without_a_group_the_proxys_user_alone_is_left_alone(
    listening: Namespaces, backend: str, family: FamilyName
) -> None:
    """Or else a program that is setgid would do, and a volume's group can be anyone's."""
    host = OUTSIDE.of(family)
    done = listening.redirect("apply", "--backend", backend, "-g", "none")
    assert done.stderr.endswith("goes to 15001, except from uid 1337\n")
    for port in (80, 443):
        through = f"proxy {PROXY_PORT}, for {host} {port}"
        assert listening.curl(url(host, port), uid=PROXY) == direct(family)
        assert listening.curl(url(host, port), uid=PROXY, gid=APP) == direct(family)
        assert listening.curl(url(host, port), uid=APP, gid=PROXY) == through
    checked = listening.redirect("check", "-g", "none")
    assert checked.returncode == 0, checked.stderr


@root
@every_backend
@every_family
def test_without_a_proxy_connections_are_refused(
    world: Namespaces, pod: Namespaces, backend: str, family: FamilyName
) -> None:
    pod.apply("--backend", backend)
    for port in (80, 443):
        with pytest.raises(OSError, match=r"curl: \(7\)"):  # could not connect
            pod.curl(url(OUTSIDE.of(family), port))
        assert pod.curl(url(OUTSIDE.of(family), port), uid=PROXY) == direct(family)


@root
@every_backend
@every_family
def test_loopback_and_the_pods_own_address_are_left_alone(
    listening: Namespaces, backend: str, family: FamilyName
) -> None:
    own = ["127.0.0.1" if family == "ipv4" else "::1", POD.of(family)]
    if family == "ipv4":
        own.append("127.9.9.9")
    listening.apply("--backend", backend, "-q", "*")

    def here(conn: socket.socket) -> None:
        answer(conn, "in the pod")

    with serving(listening.pod, here, *((address, port) for address in own for port in (80, 443))):
        for address in own:
            for port in (80, 443):
                assert listening.curl(url(address, port)) == "in the pod"


@root
@every_backend
@every_family
def test_udp_and_dns_are_left_alone(
    listening: Namespaces, backend: str, family: FamilyName
) -> None:
    """Every port is redirected here, and still no datagram and no DNS over TCP."""
    host = OUTSIDE.of(family)
    number = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    listening.apply("--backend", backend, "-q", "*")

    def open_socket() -> socket.socket:
        opened = socket.socket(number, socket.SOCK_DGRAM)
        opened.settimeout(DEADLINE)
        return opened

    for port in (53, 443):
        with (
            in_namespace(listening.outside, open_socket) as server,
            in_namespace(listening.pod, open_socket) as client,
        ):
            server.bind((host, port))
            client.sendto(b"question", (host, port))
            question, peer = server.recvfrom(100)
            server.sendto(b"answer", peer)
            reply, sender = client.recvfrom(100)
            assert (question, peer[0]) == (b"question", POD.of(family))
            assert (reply, sender[:2]) == (b"answer", (host, port))
    assert listening.curl(url(host, 53)) == direct(family)
    assert listening.curl(url(host, 8080)) == f"proxy {PROXY_PORT}, for {host} 8080"


@root
@every_backend
@every_family
def test_metadata_addresses_are_left_alone_unless_asked_for(
    listening: Namespaces, backend: str, family: FamilyName
) -> None:
    host = METADATA.of(family)
    listening.apply("--backend", backend)
    assert listening.curl(url(host, 80)) == direct(family)
    listening.apply("--backend", backend, "--no-default-excludes")
    assert listening.curl(url(host, 80)) == f"proxy {PROXY_PORT}, for {host} 80"


@root
@every_backend
@every_family
@pytest.mark.parametrize("option", ["-x", "--cluster-cidrs"])
def test_excluded_networks_are_left_alone(
    listening: Namespaces, backend: str, family: FamilyName, option: str
) -> None:
    networks = "10.79.0.3/32,10.79.0.128/25,fd79::3"
    listening.apply("--backend", backend, option, networks)
    assert listening.curl(url(SITES[0].of(family), 80)) == direct(family)
    assert listening.curl(url(OUTSIDE.of(family), 80)).startswith("proxy")


@root
@every_backend
@every_family
def test_only_included_networks_and_ports_are_redirected(
    listening: Namespaces, backend: str, family: FamilyName
) -> None:
    included = ("-i", "10.79.0.3,fd79::3/128", "-q", "80,8000-8100", "-o", "80")
    listening.apply("--backend", backend, *included)
    site = SITES[0].of(family)
    assert listening.curl(url(OUTSIDE.of(family), 8080)) == direct(family)
    assert listening.curl(url(site, 80)) == direct(family)
    assert listening.curl(url(site, 443)) == direct(family)
    assert listening.curl(url(site, 8080)) == f"proxy {PROXY_PORT}, for {site} 8080"


@root
@every_backend
@every_family
def test_a_range_of_ports_shares_connections_among_workers(
    world: Namespaces, pod: Namespaces, backend: str, family: FamilyName
) -> None:
    pod.apply("--backend", backend, "-p", "15001-15002")
    here = "127.0.0.1" if family == "ipv4" else "::1"
    host = OUTSIDE.of(family)
    with serving(pod.pod, proxy, (here, 15001), (here, 15002)):
        # One curl, a connection for each URL: 40 times the same of two has odds of one in 2^39.
        said = pod.curl(*[url(host, 80)] * 40)
    assert said.count("proxy 15001") + said.count("proxy 15002") == 40
    assert 0 < said.count("proxy 15001") < 40


# --- check ----------------------------------------------------------------------------------------


@root
@every_backend
@pytest.mark.parametrize("ports", ["15001", "15001-15003"])
def test_check_confirms_the_original_destination(pod: Namespaces, backend: str, ports: str) -> None:
    pod.apply("--backend", backend, "-p", ports, "-q", "443")
    done = pod.redirect("check", "-p", ports, "-q", "443")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("ok: 192.0.2.1:443 arrived at port 1500")
    assert second.startswith("ok: [2001:db8::1]:443 arrived at port 1500")
    assert first.endswith(" with its original destination")
    assert second.endswith(" with its original destination")


@root
def test_check_finds_a_running_proxy(listening: Namespaces) -> None:
    listening.apply()
    done = listening.redirect("check")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "ok: 192.0.2.1:80 arrived at port 15001, where the proxy listens\n"
        "ok: [2001:db8::1]:80 arrived at port 15001, where the proxy listens\n"
        "ok: 192.0.2.1:443 arrived at port 15001, where the proxy listens\n"
        "ok: [2001:db8::1]:443 arrived at port 15001, where the proxy listens\n"
    )


@root
def test_check_fails_where_one_port_is_not_redirected(listening: Namespaces) -> None:
    listening.apply("-o", "443")
    done = listening.redirect("check")
    assert done.returncode == 1
    assert "ok: 192.0.2.1:80" in done.stdout
    assert ":443" in done.stderr
    assert listening.redirect("check", "-o", "443").returncode == 0
    assert listening.redirect("check", "-o", "441-445").returncode == 0


@pytest.mark.parametrize(
    ("options", "tried"),
    [
        ("", "80 443"),
        ("-q *", "80 443"),
        ("-q * -o 80", "443"),
        ("-o 441-445", "80"),
        ("-o 80 -q 80-90", "81 90"),
        ("-o 80-84,85,89-100 -q 80-90", "86 88"),
        ("-o 80-82,84-90 -q 80-90", "83"),
        ("-o 1-79,81-65535 -q 1-65535", "80"),
        ("-o 8-9 -q 80,90", "80 90"),
        ("-o 80-90 -q 80-90,443", "443"),
        ("-q 53", "53"),
    ],
)
def test_check_tries_the_ports_that_are_redirected(options: str, tried: str) -> None:
    done = redirect("check", *options.split(), PYTHON="echo")
    ports = [line.partition(" --port ")[2].split()[0] for line in done.stdout.splitlines()]
    assert ports == tried.split()


def test_check_says_that_nothing_is_left() -> None:
    done = redirect("check", "-q", "80-90", "-o", "80-85,86-90", PYTHON="echo")
    assert (done.returncode, done.stdout) == (2, "")
    assert "every port is excluded" in done.stderr


@root
def test_applying_again_puts_the_jump_first_again(listening: Namespaces) -> None:
    listening.apply("--backend", "iptables")
    run(
        *("ip", "netns", "exec", listening.pod, "iptables", "-t", "nat", "-I", "OUTPUT", "1"),
        *("-p", "tcp", "--dport", "443", "-j", "ACCEPT"),
    )
    assert listening.redirect("check").returncode == 1
    listening.apply("--backend", "iptables")
    assert listening.redirect("check").returncode == 0


@root
def test_check_fails_without_rules(world: Namespaces, pod: Namespaces) -> None:
    """What answers is another host, or nobody."""
    addresses = ",".join(OUTSIDE.both())
    done = pod.redirect("check", "--probe", addresses)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "failed: a connection to 10.79.0.2:80 arrived, but at another host" in done.stderr
    assert "failed: a connection to [fd79::2]:80 arrived, but at another host" in done.stderr
    done = pod.redirect("check", "--probe", addresses, "-q", "81")
    assert done.returncode == 1
    assert "did not arrive at the proxy (Connection refused): no rules are loaded" in done.stderr


@root
def test_check_fails_where_one_family_goes_past_the_proxy(
    world: Namespaces, pod: Namespaces
) -> None:
    pod.apply("--ipv4-only")
    done = pod.redirect("check", "--probe", ",".join(OUTSIDE.both()))
    assert done.returncode == 1
    assert done.stdout.startswith("ok: 10.79.0.2:80")
    assert "[fd79::2]:80 arrived, but at another host" in done.stderr
    assert pod.redirect("check", "--ipv4-only").returncode == 0


@root
def test_check_fails_where_rules_lead_elsewhere(world: Namespaces, pod: Namespaces) -> None:
    pod.apply("-p", "15009")
    done = pod.redirect("check")
    assert done.returncode == 1
    assert "did not arrive at the proxy (Connection refused)" in done.stderr
    with serving(pod.pod, proxy, ("127.0.0.1", 15009), ("::1", 15009)):
        done = pod.redirect("check")
    assert done.returncode == 1
    assert "arrived, but at port 15009 and not at the proxy's port" in done.stderr


@root
def test_check_fails_where_the_proxy_listens_in_part(pod: Namespaces) -> None:
    pod.apply("-p", "15001-15002")
    with serving(pod.pod, proxy, ("127.0.0.1", 15001)):
        done = pod.redirect("check", "-p", "15001-15002")
    assert done.returncode == 1
    assert "failed: IPv4: nobody listens on port 15002" in done.stderr
    pod.apply()
    with serving(pod.pod, proxy, ("127.0.0.1", 15001)):
        done = pod.redirect("check")
    assert done.returncode == 1
    assert "the proxy listens for one of IPv4 and IPv6 alone" in done.stderr


@root
def test_check_is_made_as_someone_who_is_redirected(pod: Namespaces) -> None:
    pod.apply("-u", "0,1337", "-g", "0,1337")
    assert pod.redirect("check", "-u", "0,1337", "-g", "0,1337").returncode == 0
    prefix = ("setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-setuid,-setgid", "--")
    done = pod.redirect("check", "-u", "0,1337", prefix=prefix)
    assert done.returncode == 1
    assert "user 0, group 0 is never redirected: run the check as another user" in done.stderr


@root
def test_check_says_what_it_could_not_check() -> None:
    with network() as names:
        names.apply()
        run("ip", "-n", names.pod, "-6", "route", "delete", "default")
        done = names.redirect("check")
        assert done.returncode == 0, done.stderr
        assert "ok: 192.0.2.1:80" in done.stdout
        assert "not checked: no route to [2001:db8::1]:80" in done.stdout
        names.switch_ipv6_off()
        done = names.redirect("check")
        assert done.returncode == 0, done.stderr
        assert "ok: 192.0.2.1:80" in done.stdout
        assert "not checked: there is no IPv6 here" in done.stdout
        done = names.redirect("check", "--probe", "2001:db8::1")
        assert done.returncode == 1
        assert "nothing could be checked; name an address by --probe" in done.stderr


@root
def test_check_fails_where_loopback_lacks_a_family_that_can_leave() -> None:
    with network() as names:
        names.apply()
        switch = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"
        run(*names.in_pod, "sh", "-c", f"echo 1 >{switch}")
        done = names.redirect("check")
        assert done.returncode == 1
        assert "ok: 192.0.2.1:80" in done.stdout
        assert (
            "failed: IPv6: connections can leave, and redirected ones are led to ::1" in done.stderr
        )
        assert "net.ipv6.conf.lo.disable_ipv6=0" in done.stderr
        run(*names.in_pod, "sh", "-c", f"echo 0 >{switch}")
        assert names.redirect("check").returncode == 0
