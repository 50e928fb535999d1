"""What differs between two snapshots of `telemetry.live`: what the page is told each second.

A change has the shape of a snapshot, with the rows and values alone that are new or others, and
always `time`. The page puts it over what it has, row by row (`ROWS` says what names a row).
"""

from typing import Any

from pointsman.telemetry.live import LAST_EXCHANGES, ROWS

type Json = dict[str, Any]

_ALWAYS = "time"
_EXCHANGES = "exchanges"


def combine(known: Json, found: Json) -> Json:
    """Return the whole snapshot, from one and a later one that has the new exchanges alone."""
    exchanges = [*found[_EXCHANGES], *known[_EXCHANGES]]
    return {**found, _EXCHANGES: exchanges[:LAST_EXCHANGES]}


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
