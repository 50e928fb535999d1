"""The options that the addon adds to mitmproxy's: name, type, default, help; what values mean."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mitmproxy import exceptions
from mitmproxy.addonmanager import Loader

from pointsman.config.credentials import KEY_FOLDER, KEY_VARIABLES, Allowed
from pointsman.config.resources import parse_duration
from pointsman.proxy.bodies import share_of_memory
from pointsman.sidecar import handover

DEFAULT_RULES = "rules"
DEFAULT_ADMIN = "127.0.0.1:15020"

_SIZE = re.compile(r"(?P<number>\d+)(?P<unit>[kmg]?)\Z", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}

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
        "llm_body_memory",
        str,
        "auto",
        (
            "How many bytes the request bodies of all requests may hold together, in bytes or with"
            " k, m, g; past it requests get 503. auto: a sixth of the memory."
        ),
    ),
    (
        "llm_observe",
        bool,
        False,
        "Decide and log where requests would go, and change nothing.",
    ),
    (
        "llm_admin",
        str,
        DEFAULT_ADMIN,
        (
            "Where the admin endpoint listens: host:port, unix:/path, off. It shows the rules and"
            " takes a drain, and is for this machine alone."
        ),
    ),
    (
        "llm_health",
        str,
        "off",
        (
            "host:port of a second listener that serves /healthz, /readyz and /metrics alone, for"
            " probes from outside; off."
        ),
    ),
    (
        "llm_drain_timeout",
        str,
        "75s",
        (
            "How long the requests under way may take to end after SIGTERM or POST /drain; shorter"
            " than terminationGracePeriodSeconds."
        ),
    ),
    (
        "llm_otel",
        bool,
        False,
        (
            "Send metrics and traces by OTLP over HTTP; where to and how is said by the standard"
            " OTEL_* environment variables."
        ),
    ),
    (
        "llm_metrics",
        bool,
        True,
        "Count LLM requests, tokens and times for Prometheus.",
    ),
    (
        "llm_passthrough",
        Sequence[str],
        [],
        (
            "Hosts that are left alone even if rules name them, as names or *.suffix: for"
            " applications that pin certificates or present their own."
        ),
    ),
    (
        "llm_unknown",
        str,
        "pass",
        "What is done with known LLM hosts that no rule names: pass, or deny (403, TLS closed).",
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
    (
        "llm_key_dirs",
        Sequence[str],
        [str(KEY_FOLDER)],
        (
            "The folders below which objects of a cluster may name key files; files of rules may"
            " name any."
        ),
    ),
    (
        "llm_key_variables",
        Sequence[str],
        [KEY_VARIABLES],
        (
            "The environment variables that objects of a cluster may name, with * for any part;"
            " files of rules may name any."
        ),
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


def parse_size(name: str, text: str) -> int:
    """Return a number of bytes from `1048576`, `512k`, `32m` or `1g`.

    Raises:
        OptionsError: it is none of these; `name` is the option's.
    """
    match = _SIZE.match(text.strip())
    if not match or not int(match["number"]):
        raise exceptions.OptionsError(
            f"{name}: {text!r} is not a size; write bytes, or a number with k, m or g"
        )
    return int(match["number"]) * _UNITS[match["unit"].lower()]


def body_memory(text: str) -> int:
    """Return how many bytes the bodies of all requests may hold.

    Raises:
        OptionsError: it is neither `auto` nor a size.
    """
    if text.strip() == "auto":
        return share_of_memory(handover.workers())
    return parse_size("llm_body_memory", text)


def allowed_keys(folders: Sequence[str], variables: Sequence[str]) -> Allowed:
    """Return where objects of a cluster may take keys from; commas may part what is given.

    Raises:
        OptionsError: a folder has no absolute path.
    """
    paths = tuple(map(Path, _parts(folders)))
    for path in paths:
        if not path.is_absolute():
            raise exceptions.OptionsError(
                f"llm_key_dirs: {str(path)!r} is no absolute path; write such as {KEY_FOLDER}"
            )
    return Allowed(paths, tuple(_parts(variables)))


def _parts(texts: Sequence[str]) -> Iterator[str]:
    return (part.strip() for text in texts for part in text.split(",") if part.strip())


def drain_timeout(text: str) -> float:
    """Return the seconds of a duration.

    Raises:
        OptionsError: it is none.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise exceptions.OptionsError(f"llm_drain_timeout: {error}") from None


def workload_name(labels: dict[str, str]) -> str | None:
    """Return what the access log calls this workload."""
    named: Any = os.environ.get("WORKLOAD_NAME")
    return named or labels.get("app.kubernetes.io/name") or labels.get("app")
