"""What the page is told each second: what is new, and enough of it to have the whole again."""

import json
from typing import Any, Literal

from pointsman.telemetry.changes import changes, combine, continued
from pointsman.telemetry.exchange import Exchange
from pointsman.telemetry.live import LAST_EXCHANGES, ROWS, SLOT_SECONDS, Live, merge
from pointsman.telemetry.reading import Reading, TargetReading

type Json = dict[str, Any]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def exchange(request_id: str = "r", **fields: Any) -> Exchange:
    shown = {"route": "front", "rule": "split", "provider": "east", "status": 200, **fields}
    return Exchange(request_id, "front", "POST", "/", None, started=1.0, **shown)


def put_over(known: Json, changed: Json) -> Json:
    """What the page does."""
    whole = {**known, **changed}
    for name, key in ROWS.items():
        rows = {tuple(row[part] for part in key): row for row in known[name]}
        rows |= {tuple(row[part] for part in key): row for row in changed.get(name, ())}
        whole[name] = list(rows.values())
    exchanges = [*changed.get("exchanges", ()), *known["exchanges"]]
    return {**whole, "exchanges": exchanges[:LAST_EXCHANGES]}


def test_nothing_has_changed_where_only_time_has_passed() -> None:
    clock = Clock()
    live = Live(clock)
    live.record(exchange())
    before = live.snapshot()
    clock.now += 1
    assert changes(before, live.snapshot(before["cursor"])) == {}


def test_changes_make_the_same_whole() -> None:
    clock = Clock()
    live = Live(clock)
    known = live.snapshot()
    seen = json.loads(json.dumps(known))
    for number in range(300):
        clock.now += SLOT_SECONDS / 3
        live.record(exchange(str(number), provider=("east", "west", "south")[number % 3]))
        state: Literal["ejected", "healthy"] = "ejected" if number % 50 > 40 else "healthy"
        now = Reading(
            number % 4, number % 2, (TargetReading("front", "split", "east", state=state),)
        )
        found = live.snapshot(known["cursor"], now)
        changed = changes(known, found)
        assert changed
        assert len(changed["exchanges"]) == 1
        assert len(changed["slots"]) == 1
        known = combine(known, found)
        seen = put_over(seen, changed)
    whole = live.snapshot(None, now)
    seen["slots"] = seen["slots"][-len(whole["slots"]) :]
    assert seen == known == whole


def test_rows_that_have_vanished_ask_for_the_whole() -> None:
    clock = Clock()
    live = Live(clock)
    before = live.snapshot(None, Reading(targets=(TargetReading("front", "split", "east"),)))
    after = live.snapshot(
        before["cursor"], Reading(targets=(TargetReading("front", "new", "east"),))
    )
    assert changes(before, after) is None


def test_slots_may_go_by_their_time() -> None:
    clock = Clock()
    live = Live(clock)
    live.record(exchange())
    before = live.snapshot()
    clock.now += 10_000
    assert changes(before, live.snapshot(before["cursor"])) == {}


def test_a_process_that_was_silent_tells_nothing_twice() -> None:
    one, two = Live(), Live()
    one.record(exchange("a"))
    two.record(exchange("b"))
    known = merge([one.snapshot(), two.snapshot()])
    silent = continued(known, merge([one.snapshot(known["cursor"])]))
    assert silent["cursor"] == known["cursor"]
    again = merge([one.snapshot(), two.snapshot()])  # one that has lost its cursor
    assert continued(combine(known, silent), again)["exchanges"] == []
