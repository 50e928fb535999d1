"""What differs between two snapshots of `telemetry.live`: what the page is told each second.

A change has the shape of a snapshot, with the rows and values alone that are new or others, and
always `time`. The page puts it over what it has, row by row (`ROWS` says what names a row).
"""

from typing import Any

from pointsman.telemetry.live import LAST_EXCHANGES, ROWS

type Json = dict[str, Any]

_ALWAYS = "time"
_EXCHANGES = "exchanges"
_MAX_CURSOR = 64  # processes; those that have died give way


def combine(known: Json, found: Json) -> Json:
    """Return the whole snapshot, from one and a later one that has the new exchanges alone."""
    exchanges = [*found[_EXCHANGES], *known[_EXCHANGES]]
    return {**found, _EXCHANGES: exchanges[:LAST_EXCHANGES]}


def continued(known: Json, found: Json) -> Json:
    """Return a later snapshot with the places of those that are silent, and nothing told twice.

    A process that is silent for a while is not in `found`, and will be heard again.
    """
    seen = {_name_of(one) for one in known[_EXCHANGES]}
    new = [one for one in found[_EXCHANGES] if _name_of(one) not in seen]
    cursor = {**known["cursor"], **found["cursor"]}
    if len(cursor) > _MAX_CURSOR:
        cursor = found["cursor"]
    return {**found, "cursor": cursor, _EXCHANGES: new}


def _name_of(exchange: Json) -> tuple[Any, ...]:
    return exchange["timestamp"], exchange["request_id"], exchange.get("mirror")


def changes(known: Json, found: Json) -> Json | None:
    """Return what a later snapshot, with the new exchanges alone, says anew; empty: nothing.

    None: rows have vanished, which no change can tell. Slots do not count: they go by their time.
    """
    changed: Json = {
        name: value
        for name, value in found.items()
        if name not in ROWS and name not in (_ALWAYS, _EXCHANGES) and value != known.get(name)
    }
    for name, key in ROWS.items():
        before = {tuple(row[part] for part in key): row for row in known[name]}
        after = {tuple(row[part] for part in key): row for row in found[name]}
        if name != "slots" and not before.keys() <= after.keys():
            return None
        if rows := [row for place, row in after.items() if row != before.get(place)]:
            changed[name] = rows
    if found[_EXCHANGES]:
        changed[_EXCHANGES] = found[_EXCHANGES]
    return changed and {**changed, _ALWAYS: found[_ALWAYS]}
