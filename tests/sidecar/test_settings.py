"""What a sidecar's command line means, and what is refused."""

import os
from pathlib import Path

import pytest

from pointsman.sidecar import settings
from pointsman.sidecar.settings import DEFAULT_CONFDIR, Given, SettingsError, check


@pytest.fixture(autouse=True)
def _as_the_proxys_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: settings.PROXY_UID)
    monkeypatch.delenv("POINTSMAN_CONFDIR", raising=False)


def test_nothing_given_is_a_transparent_sidecar_on_loopback() -> None:
    found = check(Given())
    assert (found.workers, found.port, found.hosts, found.mode) == (1, 15001, (), "transparent")
    assert (found.confdir, found.secret) == (DEFAULT_CONFDIR, None)
    assert (found.admin, found.health, found.arguments) == ("127.0.0.1:15020", "off", ())


def test_what_the_workers_share_is_taken_from_their_arguments() -> None:
    found = check(
        Given(
            rules="my-rules",
            arguments=[
                "--set", "llm_admin=:1", "-s", "x.py", "--set=llm_health=:2",
                "--set", "llm_drain_timeout=5s",
            ],
        )
    )  # fmt: skip
    assert (found.admin, found.health) == (":1", ":2")
    assert found.arguments == (
        *("--set", "llm_rules=my-rules"),
        *("-s", "x.py", "--set", "llm_drain_timeout=5s"),
    )


def test_the_confdir_comes_from_the_option_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POINTSMAN_CONFDIR", "/var/run/conf")
    assert check(Given()).confdir == Path("/var/run/conf")
    assert check(Given(confdir="/elsewhere")).confdir == Path("/elsewhere")
    assert check(Given(confdir="relative")).confdir == Path.cwd() / "relative"


def test_auto_is_as_many_workers_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "allowed_cores", lambda: 3)
    assert check(Given(workers="auto")).workers == 3


def test_root_is_refused_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SettingsError, match="--allow-root"):
        check(Given())
    assert check(Given(allow_root=True)).workers == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Given(workers="0"), "--workers: '0' is neither 1 to 64 nor auto"),
        (Given(workers="-1"), "--workers: '-1'"),
        (Given(workers="many"), "--workers: 'many'"),
        (Given(port="65536"), "--port: '65536' is no port"),
        (Given(port="http"), "--port: 'http' is no port"),
        (Given(mode=["regular", "socks5"]), "--mode: the sidecar serves one mode"),
        (Given(mode=["transparent@15001"]), "write transparent alone; --port and --listen"),
        (Given(mode=["wireguard"]), "--mode: 'wireguard' can't be served"),
        (Given(arguments=["-p", "1"]), "-p: a sidecar takes --port in its place"),
        (Given(arguments=["-p8080"]), "-p8080: a sidecar takes --port in its place"),
        (Given(arguments=["-qp", "8080"]), "-qp: a sidecar takes --port"),
        (Given(arguments=["--listen-p=8080"]), "--listen-p=8080: a sidecar takes --port"),
        (Given(arguments=["--listen-port=1"]), "a sidecar takes --port"),
        (Given(arguments=["--listen-host", "::"]), "a sidecar takes --listen"),
        (Given(arguments=["--set", "confdir=x"]), "a sidecar takes --confdir"),
        (Given(arguments=["--set=mode=socks5"]), "a sidecar takes --mode in its place"),
        (Given(arguments=["--mode", "regular"]), "--mode: a sidecar takes --mode before the --"),
        (Given(arguments=["--mode=regular@9"]), "--mode=regular@9: a sidecar takes --mode before"),
        (Given(arguments=["-m", "regular"]), "-m: a sidecar takes --mode before the --"),
        (Given(arguments=["-qmregular"]), "-qmregular: a sidecar takes --mode before the --"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_mend(given: Given, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        check(given)
    assert said in str(refused.value)
