"""`pointsman run`: mitmdump with the addon and the defaults that a sidecar wants."""

import logging
import sys
from collections.abc import Sequence
from typing import override

from mitmproxy.tools.main import mitmdump

from pointsman import open_files
from pointsman.locations import addon_script

_DEFAULTS = {
    "flow_detail": "0",
    "termlog_verbosity": "warn",
    "connection_strategy": "lazy",
    # A pod's own address may be a public one, and its callers are in the pod.
    "block_global": "false",
}


# Those whose lines tell that the proxy is there: what is live, and where it listens.
_TELLING = {
    "mitmproxy.proxy.mode_servers",
    "pointsman.proxy.addon",
    "pointsman.proxy.endpoint",
}
_VERBOSITY = ("-q", "--quiet", "-v", "--verbose", "termlog_verbosity=", "--set=termlog_verbosity=")


class StartLines(logging.Filter):
    """Lets through what tells a person at a terminal that the proxy has started."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno == logging.INFO and record.name in _TELLING


def tell_of_the_start(arguments: Sequence[str]) -> None:
    """Write such lines to standard error, unless the user has chosen what is shown.

    Standard output is for the access log, and of mitmproxy's messages for those that matter.
    """
    if any(argument.startswith(_VERBOSITY) for argument in arguments):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(StartLines())
    handler.setFormatter(logging.Formatter("pointsman: %(message)s"))
    logging.getLogger().addHandler(handler)


def command_line(rules: str | None, arguments: Sequence[str]) -> list[str]:
    """Return mitmdump's arguments: what the user sets takes the place of our defaults."""
    settings = dict(_DEFAULTS)
    if rules is not None:
        settings["llm_rules"] = rules
    for argument in arguments:
        settings.pop(argument.removeprefix("--set=").partition("=")[0], None)
    own = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["-s", str(addon_script()), *own, *arguments]


def run(rules: str | None, arguments: Sequence[str]) -> int:
    """Run mitmdump until it ends and return its exit status."""
    open_files.raise_limit()
    tell_of_the_start(arguments)
    try:
        mitmdump(command_line(rules, arguments))
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return stop.code or 0
    return 0
