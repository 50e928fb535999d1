"""What the cluster is told of its objects: `status.conditions`, as Gateway API has them.

`Accepted`: the object is in use as it stands. `ResolvedRefs`: all that it names is there. What
differs from proxy to proxy (keys, certificates, labels) is no part of it: whoever writes it, it
comes out the same.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pointsman.config.problems import Problem
from pointsman.kubernetes.api import Api, ApiError, AwayError, Collection, Object, resource_version

logger = logging.getLogger(__name__)

type Condition = Mapping[str, Any]

ACCEPTED = "Accepted"
RESOLVED = "ResolvedRefs"
_MAX_MESSAGE = 2000
_TOLD = ("status", "reason", "message", "observedGeneration")
# Not what this writer has seen: another one, begun later, has seen less and would write otherwise.
_INSTEAD = (
    "A version that was good before stays in use where it was seen; elsewhere requests to its host"
    " are answered with 503, unless another object has the host."
)
# An API server has others to serve: so long is the pause between two writes.
_WRITE_PAUSE = 0.05
_CONFLICT = 409
# So many refusals in one round are enough; those objects come last in the next.
_MOST_REFUSALS = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What has been found of one object.

    Attributes:
        refused: what is wrong with it.
        unresolved: what it names and is not there, or can't be called.
        unread: what it names and may be there: that can't be told.
    """

    refused: Sequence[Problem] = ()
    unresolved: Sequence[Problem] = ()
    unread: Sequence[Problem] = ()


def conditions(value: Object, verdict: Verdict, now: datetime) -> list[Condition] | None:
    """Return an object's new conditions, those of others unchanged; None if ours are as they were.

    A condition's `lastTransitionTime` is `now` only where its status is another one.
    """
    metadata, status = value.get("metadata"), value.get("status")
    generation = metadata.get("generation") if isinstance(metadata, dict) else None
    listed = status.get("conditions") if isinstance(status, dict) else None
    before = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
    ours = [_accepted(verdict), _resolved(verdict)]
    changed = False
    for condition in ours:
        if isinstance(generation, int):
            condition["observedGeneration"] = generation
        old = next((c for c in before if c.get("type") == condition["type"]), {})
        same = old.get("status") == condition["status"] and "lastTransitionTime" in old
        condition["lastTransitionTime"] = old["lastTransitionTime"] if same else _time(now)
        changed = changed or any(old.get(name) != condition.get(name) for name in _TOLD)
    if not changed:
        return None
    others = [c for c in before if c.get("type") != ACCEPTED and c.get("type") != RESOLVED]
    return [*others, *ours]


def _accepted(verdict: Verdict) -> dict[str, Any]:
    if not verdict.refused:
        return _condition(ACCEPTED, "True", "Accepted", "in use")
    return _condition(ACCEPTED, "False", "Invalid", f"{_told(verdict.refused)}. {_INSTEAD}")


def _resolved(verdict: Verdict) -> dict[str, Any]:
    if verdict.refused:
        return _condition(RESOLVED, "Unknown", "Invalid", "not looked at: the object is at fault")
    if verdict.unresolved:
        return _condition(RESOLVED, "False", "BackendNotFound", _told(verdict.unresolved))
    if verdict.unread:
        return _condition(RESOLVED, "Unknown", "BackendNotRead", _told(verdict.unread))
    return _condition(RESOLVED, "True", "ResolvedRefs", "all that it names is there")


def _condition(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message[:_MAX_MESSAGE]}


def _told(problems: Iterable[Problem]) -> str:
    return "; ".join(f"{p.field}: {p.message}" if p.field else p.message for p in problems)


def _time(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class StatusWriter:
    """Writes conditions, only where they change. What can't be written is tried the next time."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._told: set[str] = set()
        self._refused: set[Collection] = set()

    async def write(self, objects: Iterable[tuple[Collection, Object, Verdict]]) -> bool:
        """Write what has changed; each collection names its object. Tell whether all is said.

        One object whose status is refused does not keep the others from theirs.
        """
        refused: set[Collection] = set()
        for where, value, verdict in sorted(objects, key=lambda o: o[0] in self._refused):
            found = conditions(value, verdict, datetime.now(UTC))
            if found is None:
                continue
            patch: dict[str, Any] = {"status": {"conditions": found}}
            if version := resource_version(value):
                # Someone faster has seen more: what they changed comes by the watch.
                patch["metadata"] = {"resourceVersion": version}
            try:
                await self._api.patch_status(where, patch)
            except ApiError as error:
                if error.status != _CONFLICT:
                    self._tell(where, error)
                    refused.add(where)
                    if isinstance(error, AwayError) or len(refused) >= _MOST_REFUSALS:
                        break
            await asyncio.sleep(_WRITE_PAUSE)
        self._refused = refused
        return not refused

    def _tell(self, where: Collection, error: ApiError) -> None:
        said = f"{where.plural}: {error.status}"
        if said not in self._told:
            self._told.add(said)
            logger.warning("the status of the %s could not be written: %s", where, error)
