"""Token counts, as the provider reported them.

Rules: unknown is None and never 0; a count of a type that cannot be one is unknown, not an error.
`prompt_tokens` includes the cached tokens, whatever the provider's own convention.
"""

from dataclasses import dataclass
from typing import Any

_MOST = 2**40  # no call has that many: past it, sums and prices would make no sense


@dataclass(frozen=True, slots=True)
class Usage:
    """What one response cost, in tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


def usage_of(  # noqa: PLR0913  one argument for each count
    *,
    prompt: int | None,
    completion: int | None,
    total: int | None,
    cached: int | None = None,
    cache_write: int | None = None,
    reasoning: int | None = None,
) -> Usage | None:
    """Return the counts as a Usage, None if not one of them is known.

    A total that was not reported is the sum, when both its parts are known.
    """
    if total is None and prompt is not None and completion is not None:
        total = prompt + completion
    counts = (prompt, completion, total, cached, cache_write, reasoning)
    return Usage(*counts) if any(n is not None for n in counts) else None


def count(value: Any) -> int | None:
    """Return the JSON value as a token count, None if it is not one, or one that can't be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return None
    return int(value) if value == int(value) else None


def first_count(*values: Any) -> int | None:
    """Return the first of the values that is a token count."""
    return next((n for n in map(count, values) if n is not None), None)


def sum_counts(*values: Any) -> int | None:
    """Return the sum of those values that are token counts, None if not one of them is."""
    counts = [n for n in map(count, values) if n is not None]
    return sum(counts) if counts else None
