"""`pointsman run`: mitmdump with the addon and the defaults that a sidecar wants."""

import sys
from collections.abc import Sequence

from mitmproxy.tools.main import mitmdump

from pointsman.locations import addon_script

_DEFAULTS = (
    "flow_detail=0",
    "termlog_verbosity=warn",
    "connection_strategy=lazy",
    # A pod's own address may be a public one, and its callers are in the pod.
    "block_global=false",
)


def run(rules: str, arguments: Sequence[str]) -> int:
    """Run mitmdump until it ends and return its exit status; later options win over ours."""
    own = [part for default in _DEFAULTS for part in ("--set", default)]
    command = ["-s", str(addon_script()), *own, "--set", f"llm_rules={rules}", *arguments]
    try:
        mitmdump(command)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return stop.code or 0
    return 0
