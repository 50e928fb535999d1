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
        (
            "Directory (or file) with LLMProvider and LLMRoute manifests, or kubernetes:NAMESPACE"
            " for the objects of a cluster (kubernetes: for all of them); read again on change."
        ),
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
        "llm_kubernetes",
        bool,
        False,
        (
            "Read the Services and InferencePools that rules name from the Kubernetes API; always"
            " on with llm_rules=kubernetes:."
        ),
    ),
    (
        "llm_status",
        bool,
        False,
        (
            "Write status.conditions of the LLMProvider and LLMRoute objects; for one instance of"
            " a cluster, with llm_rules=kubernetes:."
        ),
    ),
)


def declare(loader: Loader) -> None:
    """Add them."""
    for name, kind, default, meaning in _OPTIONS:
        loader.add_option(name, kind, default, meaning)
