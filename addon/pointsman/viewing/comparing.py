"""Two answers to one request beside each other: for a replay through another provider."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.protocols.api import Api
from pointsman.viewing.bodies import said
from pointsman.viewing.outline import Node
from pointsman.viewing.route import Way
from pointsman.viewing.texts import clip, line

type Row = list[str]  # what, before, after

_UNKNOWN = "unknown"
_MAX_TEXT = 20_000


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as a flow has it; `seconds` from the request's first byte to the answer's last."""

    way: Way | None
    status: int | None
    api: Api | None
    body: bytes
    event_stream: bool
    seconds: float | None


def compare(before: Answered, after: Answered) -> list[Row]:
    """Return what was, what is now, by its name; the last row has the texts."""
    rows = [[what, get(before), get(after)] for what, get in _ROWS]
    return [*rows, ["answer", _text(before), _text(after)]]


def _provider(one: Answered) -> str:
    attempts = one.way.attempts if one.way else []
    return attempts[-1].provider if attempts else _UNKNOWN


def _tokens(one: Answered) -> str:
    usage = one.way.usage if one.way else {}
    if "prompt" not in usage:
        return _UNKNOWN
    return f"{usage['prompt']}+{usage.get('completion', 0)}"


def _cost(one: Answered) -> str:
    cost = one.way.cost_usd if one.way else None
    return _UNKNOWN if cost is None else f"${cost:.6f}"


def _first_token(one: Answered) -> str:
    first = one.way.first_token_ms if one.way else None
    return "not streamed" if first is None else f"{first:.0f} ms"


def _duration(one: Answered) -> str:
    return _UNKNOWN if one.seconds is None else f"{one.seconds * 1000:.0f} ms"


_ROWS = (
    ("provider", _provider),
    ("status", lambda one: str(one.status or "none")),
    ("tokens", _tokens),
    ("cost", _cost),
    ("first token", _first_token),
    ("duration", _duration),
)


def _text(one: Answered) -> str:
    found = said(one.body, one.api, event_stream=one.event_stream)
    return clip(found)[:_MAX_TEXT] if found else "(nothing)"


def section(data: Any) -> dict[str, Node]:
    """Return what `compare` gave for an outline; nothing if it is something else."""
    if not (isinstance(data, Sequence) and all(_is_row(row) for row in data)):
        return {}
    told: dict[str, Node] = {}
    for what, before, after in data:
        several = what == "answer"
        told[line(what)] = (
            {"original": clip(before), "this one": clip(after)}
            if several
            else line(f"{before} → {after}")
        )
    return told


def _is_row(row: Any) -> bool:
    wanted = 3
    return (
        isinstance(row, list | tuple)
        and len(row) == wanted
        and all(isinstance(cell, str) for cell in row)
    )
