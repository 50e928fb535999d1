"""Sums of tokens and money as people read them: unknown is never 0, and `+` means more."""

import math

UNKNOWN = "\N{EN DASH}"
_LEAST = 0.000001
# From so many dollars on, so many decimals: a small sum is not rounded away.
_DECIMALS = ((100.0, 2), (1.0, 4), (0.0, 6))


def dollars(value: float) -> str:
    """Return an amount of US dollars; `$0` is none at all."""
    if value == 0:
        return "$0"
    if value < _LEAST:
        return f"< ${_LEAST:.6f}"
    places = next(places for least, places in _DECIMALS if value >= least)
    return f"${value:,.{places}f}"


def short_dollars(value: float) -> str:
    """Return an amount of US dollars where room is scarce: cents, or two digits of what is less."""
    if value == 0 or value < _LEAST:
        return dollars(value)
    if value >= 1:
        return f"${value:,.2f}"
    return f"${value:.{max(2, 1 - math.floor(math.log10(value)))}f}"


def some(shown: str, *, known: bool, more: bool) -> str:
    """Return a sum of what is known, where something is; `more` has been used than that."""
    if not known:
        return UNKNOWN
    return f"{shown}+" if more else shown


def several(count: int, what: str) -> str:
    """Return a count with what is counted, in the singular where it is one."""
    return f"{count:,} {what}{'' if count == 1 else 's'}".replace(",", " ")
