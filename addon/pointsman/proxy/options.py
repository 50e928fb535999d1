"""The options that the addon adds to mitmproxy's: name, type, default, help."""

from collections.abc import Sequence
from typing import Any

from mitmproxy.addonmanager import Loader

DEFAULT_RULES = "rules"

_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    (
        "llm_rules",
        str,
        DEFAULT_RULES,
        "Directory (or file) with LLMProvider and LLMRoute manifests; read again on change.",
    ),
    (
        "llm_access_log",
        str,
        "-",
        "Where each LLM request is logged as one JSON line: - (standard output), a path, off.",
    ),
    (
        "llm_labels",
        str,
        "",
        "This workload's labels, as key=value,key=value, or the path of a Downward API file.",
    ),
    (
        "llm_gateways",
        Sequence[str],
        ["mesh"],
        "The gateway names that this instance serves routes of; mesh is the sidecar.",
    ),
    (
        "llm_body_limit",
        str,
        "32m",
        (
            "The largest request body that is read, in bytes or with k, m, g. Larger ones pass"
            " unread where they need no rewriting, and get 413 elsewhere."
        ),
    ),
    (
        "llm_observe",
        bool,
        False,
        "Decide and log where requests would go, and change nothing.",
    ),
    (
        "llm_keep_flows",
        int,
        2000,
        (
            "How many finished flows mitmweb and the console keep; the oldest go first, those that"
            " you mark stay. 0: all. mitmdump keeps none."
        ),
    ),
)


def declare(loader: Loader) -> None:
    """Add them."""
    for name, kind, default, meaning in _OPTIONS:
        loader.add_option(name, kind, default, meaning)
