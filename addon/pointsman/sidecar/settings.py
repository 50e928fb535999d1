"""What `pointsman run --sidecar` is told, checked before anything starts."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pointsman.cgroups import allowed_cores

DEFAULT_CONFDIR = Path("/var/lib/pointsman")
DEFAULT_PORT = "15001"
DEFAULT_ADMIN = "127.0.0.1:15020"
OFF = "off"
PROXY_UID = 1337

_HIGHEST_PORT = 65535
_MOST_WORKERS = 64

# Those over TCP; what comes by a network device or by UDP can't be handed to workers.
_MODES = ("transparent", "regular", "socks5", "upstream:", "reverse:")

# mitmdump's options that are not its own in a sidecar, and what to write.
_TAKEN = {
    "-p": "--port in its place",
    "--listen-port": "--port in its place",
    "--listen-host": "--listen in its place",
    "listen_port": "--port in its place",
    "listen_host": "--listen in its place",
    "-m": "--mode before the -- alone",
    "--mode": "--mode before the -- alone",
    "mode": "--mode in its place",
    "confdir": "--confdir in its place",
}
# As argparse takes them: behind flags, with a value at their end.
_SHORT = re.compile(r"-[qvnk]*([pm])")
_LONG = ("--listen-host", "--listen-port")
_SHORTEST = len("--listen-h")


class SettingsError(Exception):
    """The command line can't be used. The message tells what to write."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """The command line, as text; empty where nothing was given."""

    rules: str = ""
    workers: str = "1"
    port: str = DEFAULT_PORT
    listen: Sequence[str] = ()
    mode: Sequence[str] = ()
    confdir: str = ""
    ca: str = ""
    allow_root: bool = False
    arguments: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to run.

    Attributes:
        workers: how many processes.
        port: where they all listen; 0 lets the system choose.
        hosts: at which addresses; none means loopback.
        mode: mitmproxy's, without a port.
        confdir: mitmproxy's directory, and the only one that is written to.
        secret: the directory of a mounted Secret with the certificate authority.
        admin: the address of the admin endpoint, or `off`.
        health: the address of the endpoint that probes see, or `off`.
        arguments: further arguments of mitmdump.
    """

    workers: int
    port: int
    hosts: tuple[str, ...]
    mode: str
    confdir: Path
    secret: Path | None
    admin: str
    health: str
    arguments: tuple[str, ...]


def check(given: Given) -> Settings:
    """Return what a command line means.

    Raises:
        SettingsError: it can't be used.
    """
    if os.geteuid() == 0 and not given.allow_root:
        raise SettingsError(
            "the sidecar does not run as root: a redirect tells its connections from the"
            f" application's by their user; run it as user {PROXY_UID} (in Kubernetes: runAsUser),"
            " or give --allow-root"
        )
    arguments, admin = _take_setting(given.arguments, "llm_admin", DEFAULT_ADMIN)
    arguments, health = _take_setting(arguments, "llm_health", OFF)
    _refuse_taken(arguments)
    if given.rules:
        arguments = ["--set", f"llm_rules={given.rules}", *arguments]
    confdir = given.confdir or os.environ.get("POINTSMAN_CONFDIR")
    return Settings(
        workers=_workers(given.workers),
        port=_port(given.port),
        hosts=tuple(given.listen),
        mode=_mode(given.mode),
        confdir=Path(confdir).expanduser().absolute() if confdir else DEFAULT_CONFDIR,
        secret=Path(given.ca).expanduser() if given.ca else None,
        admin=admin,
        health=health,
        arguments=tuple(arguments),
    )


def _workers(text: str) -> int:
    if text == "auto":
        return min(allowed_cores(), _MOST_WORKERS)
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_WORKERS:
        raise SettingsError(f"--workers: {text!r} is neither 1 to {_MOST_WORKERS} nor auto")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _HIGHEST_PORT:
        raise SettingsError(f"--port: {text!r} is no port; write 1 to {_HIGHEST_PORT}")
    return int(text)


def _mode(modes: Sequence[str]) -> str:
    if len(modes) > 1:
        raise SettingsError("--mode: the sidecar serves one mode; give it once")
    mode = modes[0] if modes else "transparent"
    if not mode.startswith(_MODES):
        raise SettingsError(f"--mode: {mode!r} can't be served; write one of {', '.join(_MODES)}")
    if "@" in mode:
        raise SettingsError(
            f"--mode: write {mode.partition('@')[0]} alone; --port and --listen say where"
        )
    return mode


def _take_setting(arguments: Sequence[str], name: str, default: str) -> tuple[list[str], str]:
    """Take `--set name=value` out of mitmdump's arguments; return the others and the value."""
    left: list[str] = []
    found = default
    rest = iter(arguments)
    for argument in rest:
        parts = [argument, next(rest, "")] if argument == "--set" else [argument]
        key, _, value = parts[-1].removeprefix("--set=").partition("=")
        is_setting = len(parts) > 1 or argument.startswith("--set=")
        if is_setting and key == name:
            found = value
        else:
            left += parts
    return left, found


def _refuse_taken(arguments: Sequence[str]) -> None:
    before = ""
    for argument in arguments:
        setting = before == "--set" or argument.startswith("--set=")
        word = argument.removeprefix("--set=").partition("=")[0]
        if not setting:
            word = _whole(word)
        if word in _TAKEN and setting != word.startswith("-"):
            raise SettingsError(f"{argument}: a sidecar takes {_TAKEN[word]}")
        before = argument


def _whole(option: str) -> str:
    """Return the option that argparse understands by a shortened or a glued one."""
    if short := _SHORT.match(option):
        return f"-{short[1]}"
    if len(option) >= _SHORTEST:
        return next((name for name in _LONG if name.startswith(option)), option)
    return option
