"""Where the demo plays: two providers, a mitmdump with the addon, and a client that has no key.

All of it is made for one run, in a temporary directory, and gone after it.
"""

import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointsman import locations
from pointsman.demo.authority import Authority
from pointsman.demo.play_clients import Client, HttpxClient
from pointsman.demo.play_processes import Journal, Json, Process, StageError
from pointsman.demo.play_providers import Settings
from pointsman.demo.play_rules import Examples, RuleSet, RulesFolder, Written

START_SECONDS = 20.0
RELOAD_SECONDS = 5.0
REASON_SECONDS = 0.3
REASON_LINES = 6
CHUNK_SECONDS = 0.06

DASHSCOPE = "dashscope.aliyuncs.com"
MOONSHOT = "api.moonshot.cn"
PROVIDERS = {DASHSCOPE: "dashscope", MOONSHOT: "moonshot"}
KEY_VARIABLES = {DASHSCOPE: "DASHSCOPE_API_KEY", MOONSHOT: "MOONSHOT_API_KEY"}

KEYS = "each refuses every key but its own, made up just now"
ADDED = "to the embedded providers"

_LISTENING = re.compile(r"[Pp]roxy listening at \S*?:(\d+)")
_LIVE = re.compile(r"rules live from .*?: (\d+) providers?, (\d+) routes?")


@dataclass(frozen=True)
class Stage:
    """What the scenes play on.

    Attributes:
        notes: what stands where, as label and text, for the person who watches.
        keys: the key that each provider's host insists on.
        log: the proxy's access log.
    """

    notes: Sequence[tuple[str, str]]
    keys: Mapping[str, str]
    client: Client
    providers: Process
    proxy: Process
    rules: RulesFolder
    log: Journal

    def change_rules(self, rules: RuleSet) -> Written:
        """Change the rules on disk and wait until they are live.

        Raises:
            StageError: they do not go live.
        """
        said = len(self.proxy.lines)
        written = self.rules.put(rules)
        live = self.proxy.wait_for(
            lambda line: _live(line, written),
            after=said,
            timeout=RELOAD_SECONDS,
            what=f"reload of {rules.example}",
        )
        if not live:
            time.sleep(REASON_SECONDS)  # the reason is said in the lines that follow
            said_last = self.proxy.lines.last(REASON_LINES)
            raise StageError("\n  ".join(["mitmdump did not take the rules:", *said_last]))
        return written

    def call_after(self, seen: int, *, timeout: float) -> Json | None:
        """Return the first call that a provider told of after its line `seen`."""
        return self.providers.lines.find(_call, after=seen, timeout=timeout)

    def calls(self) -> int:
        """Return how many calls the providers have told of."""
        return sum(_call(line) is not None for line in self.providers.lines.all())


def _call(line: str) -> Json | None:
    if not line.startswith("{"):
        return None
    said: Json = json.loads(line)
    return said if "path" in said else None


def _live(line: str, written: Written) -> bool | None:
    """Tell whether a line says that these rules are live, or (False) that they are refused."""
    if "rules were not reloaded" in line:
        return False
    found = _LIVE.search(line)
    return True if found and found.groups() == written.counts else None


# --- what both kinds of stage are made of ---------------------------------------------------------


def make_keys() -> dict[str, str]:
    """Return a new key for each provider's host."""
    return {host: f"sk-{name}-{secrets.token_hex(12)}" for host, name in PROVIDERS.items()}


@contextmanager
def workshop() -> Iterator[Path]:
    """Make a temporary directory; its folder `public` can be read by everyone."""
    with tempfile.TemporaryDirectory(prefix="pointsman-demo-") as name:
        directory = Path(name)
        for folder in ("public", "authority", "mitmproxy"):
            (directory / folder).mkdir(mode=0o700)
        (directory / "public").chmod(0o755)
        directory.chmod(0o711)
        yield directory


@contextmanager
def providers(
    authority: Authority,
    keys: Mapping[str, str],
    *,
    listen: tuple[str, int],
    prefix: Sequence[str] = (),
) -> Iterator[tuple[Process, int]]:
    """Run the providers, both on one port, and yield them and that port."""
    certificate = authority.issue(*PROVIDERS)
    settings = Settings(
        host=listen[0],
        port=listen[1],
        chain=str(certificate.chain),
        key=str(certificate.key),
        providers=[
            {"name": name, "host": host, "key": keys[host], "chunk_delay": CHUNK_SECONDS}
            for host, name in PROVIDERS.items()
        ],
    )
    source = str(Path(locations.__file__).resolve().parents[1])
    command = [*prefix, sys.executable, "-P", "-m", "pointsman.demo.play_providers"]
    env = os.environ | {"PYTHONPATH": source}
    with Process("the providers", command, env=env, first_line=settings.dump()) as process:
        port = process.wait_for(
            lambda line: json.loads(line)["port"] if line.startswith('{"port"') else None,
            timeout=START_SECONDS,
            what="port to call",
        )
        yield process, port


@contextmanager
def proxy(
    directory: Path,
    keys: Mapping[str, str],
    rules: RulesFolder,
    *,
    options: Sequence[str],
    prefix: Sequence[str] = (),
) -> Iterator[tuple[Process, int]]:
    """Run mitmdump with the addon and yield it and the port that it listens on."""
    settings = {
        "confdir": directory / "mitmproxy",
        "llm_rules": rules.path,
        "llm_access_log": directory / "access.jsonl",
        "flow_detail": 0,
        "llm_admin": "off",
        "termlog_verbosity": "info",
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [*prefix, str(mitmdump()), "-s", str(locations.addon_script()), *options, *sets]
    given = {variable: keys[host] for host, variable in KEY_VARIABLES.items()}
    env = os.environ | given | {"PYTHONUNBUFFERED": "1"}
    with Process("mitmdump", command, env=env) as process:
        # A proxy that refuses its rules listens for a moment before it ends.
        process.wait_for(_LIVE.search, timeout=START_SECONDS, what="live rules")
        port = process.wait_for(
            lambda line: int(found[1]) if (found := _LISTENING.search(line)) else None,
            timeout=START_SECONDS,
            what="port to listen on",
        )
        yield process, port


def mitmdump() -> Path:
    """Return the mitmdump of this Python.

    Raises:
        StageError: there is none.
    """
    beside = mitmdump_beside()
    found = beside if beside.exists() else shutil.which("mitmdump")
    if not found:
        raise StageError("there is no mitmdump beside this Python: pip install mitmproxy")
    return Path(found)


def mitmdump_beside() -> Path:
    """Return where this Python's mitmdump would be."""
    return Path(sys.executable).with_name("mitmdump")


def public_copy(directory: Path, certificate: Path) -> Path:
    """Return a copy of a certificate that every user may read."""
    copy = directory / "public" / "pointsman-demo-ca.pem"
    copy.write_bytes(certificate.read_bytes())
    copy.chmod(0o644)
    return copy


def mitmproxy_certificate(directory: Path) -> Path:
    """Return the certificate of the authority that mitmproxy has made for itself."""
    return directory / "mitmproxy" / "mitmproxy-ca-cert.pem"


def shown(path: Path) -> str:
    """Return a path as a person would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# --- the stage that needs no root -----------------------------------------------------------------


@contextmanager
def local_stage(first: RuleSet, examples: Examples) -> Iterator[Stage]:
    """Set up everything on loopback, with a proxy setting in the client.

    Raises:
        StageError: something does not start.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(workshop())
        authority = Authority(directory / "authority")
        keys = make_keys()
        called, called_port = stack.enter_context(
            providers(authority, keys, listen=("127.0.0.1", 0))
        )
        patch: dict[str, Any] = {
            "address": f"127.0.0.1:{called_port}",
            "tls": {"caFile": str(authority.certificate)},
        }
        rules = RulesFolder(directory / "rules", examples, patch)
        rules.put(first)
        log = Journal(directory / "access.jsonl")
        stack.callback(log.close)
        options = ["--listen-host", "127.0.0.1", "--listen-port", "0"]
        process, port = stack.enter_context(proxy(directory, keys, rules, options=options))
        client = HttpxClient(f"http://127.0.0.1:{port}", mitmproxy_certificate(directory))
        stack.callback(client.close)
        script = shown(locations.addon_script())
        yield Stage(
            notes=[
                ("proxy", f"mitmdump -s {script}, on 127.0.0.1:{port}"),
                (
                    "providers",
                    f"{DASHSCOPE} and {MOONSHOT}, both on https://127.0.0.1:{called_port};",
                ),
                ("", KEYS),
                ("client", "httpx, with a proxy setting and no key"),
                ("rules", f"rules/examples; {ADDED} spec.address and spec.tls.caFile are added"),
            ],
            keys=keys,
            client=client,
            providers=called,
            proxy=process,
            rules=rules,
            log=log,
        )
