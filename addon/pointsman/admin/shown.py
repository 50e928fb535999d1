"""The live table as JSON, for people: what goes where, how it is called, with every key masked."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from pointsman.config.credentials import Credential, CredentialError, KeyFile, mask
from pointsman.config.problems import shown_field
from pointsman.config.resources import authority
from pointsman.config.table import (
    CallConfig,
    CompiledMatch,
    Condition,
    Route,
    RoutingTable,
    Rule,
    Target,
)
from pointsman.routing.masking import mask_query

type Json = dict[str, Any]
type Extra = Callable[[Target], Json]

_FINGERPRINT_DIGITS = 16


def show_table(table: RoutingTable, extra: Extra = lambda _: {}) -> list[Json]:
    """Return each route with its rules; `extra` adds to each target what changes while it runs.

    A value that is not set is left out.
    """
    names: dict[int, tuple[Route, list[str]]] = {}
    hosts = [*table.exact.items(), *((f"*{suffix}", route) for suffix, route in table.wildcards)]
    for host, route in hosts:
        names.setdefault(id(route), (route, []))[1].append(host)
    found = [
        {
            "host": route.host,
            "also": sorted(host for host in hosts if host != route.host),
            "route": route.name,
            "rules": [_rule(rule, extra) for rule in route.rules],
        }
        for route, hosts in names.values()
    ]
    return sorted((_set(route) for route in found), key=lambda route: str(route["host"]))


def fingerprint(table: RoutingTable) -> str:
    """Return a text that two instances share if they route alike; keys do not count."""
    whole = msgspec.json.encode(show_table(table), order="deterministic", enc_hook=str)
    return hashlib.sha256(whole).hexdigest()[:_FINGERPRINT_DIGITS]


def show_key(credential: Credential | None) -> Json:
    """Return what may be known of a key: its end, its file, and why it can't be had."""
    if credential is None:
        return {}
    shown: Json = {"keyFile": str(credential.path)} if isinstance(credential, KeyFile) else {}
    try:
        return {"key": mask(credential.reveal()), **shown}
    except CredentialError as error:
        return {"key": None, "keyProblem": str(error), **shown}


def _rule(rule: Rule, extra: Extra) -> Json:
    retry = rule.retry
    return _set(
        {
            "name": rule.name,
            "matches": [_match(match) for match in rule.matches],
            "observe": rule.observe or None,
            "affinity": rule.affinity.model_dump(by_alias=True, exclude_none=True)
            if rule.affinity
            else None,
            "retry": _set(
                {
                    "attempts": retry.attempts,
                    "retryOn": sorted(retry.on),
                    "perTryTimeoutSeconds": retry.per_try_timeout,
                    "backoffSeconds": retry.backoff,
                }
            ),
            "mirror": {"percent": rule.mirror.percent, "target": _target(rule.mirror.target, extra)}
            if rule.mirror
            else None,
            "targets": [_target(target, extra) for target in rule.targets],
        }
    )


def _match(match: CompiledMatch) -> str:
    """Return a match as a reader wants it: `header user-type = subscriber and method = POST`."""
    told = " and ".join(map(_condition, match.conditions)) or "anything"
    return f"{told} (never here: {match.excluded})" if match.excluded else told


def _condition(condition: Condition) -> str:
    what = f"header {shown_field(condition.name)}" if condition.kind == "header" else condition.kind
    return f"{what} {condition.text}"


def _target(target: Target, extra: Extra) -> Json:
    limits, ejection, tls = target.limits, target.ejection, target.tls
    return _set(
        {
            "provider": target.provider,
            "host": target.host,
            "weight": target.weight,
            "priority": target.priority,
            "scheme": target.scheme,
            "port": target.port,
            "address": authority(*target.address) if target.address else None,
            "path": mask_query(target.path) if target.path else None,
            "tls": _set(
                {"caFile": tls.ca_file, "sni": tls.sni, "verify": None if tls.verify else False}
            ),
            "timeoutSeconds": _set(
                {
                    "connect": limits.connect,
                    "firstByte": limits.first_byte,
                    "idle": limits.idle,
                }
            ),
            "outlierDetection": {
                "consecutiveFailures": ejection.consecutive_failures,
                "baseEjectionSeconds": ejection.base,
                "maxEjectionSeconds": ejection.most,
            },
            "streamUsage": target.stream_usage,
            "call": _call(target.config) if target.config else None,
            **extra(target),
        }
    )


def _call(config: CallConfig) -> Json:
    return _set(
        {
            "model": config.model,
            "stream": config.stream,
            "modelMapping": dict(config.model_mapping),
            # Any of them may be a key, and so may what stands where a name belongs.
            "headers": {shown_field(name): mask(value) for name, value in config.headers.items()},
            "params": _set(
                {"set": dict(config.params_set), "default": dict(config.params_default)}
            ),
        }
    )


def _set(fields: Json) -> Json:
    """Leave out what is not set."""
    return {name: value for name, value in fields.items() if value not in (None, {}, [])}
