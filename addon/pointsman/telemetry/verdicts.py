"""What counts as an error and as failed over, in metrics, on the page, in reports, on flows.

The page's own code (`admin/page/words.js`) says the same in its language; a test compares them.
"""

from collections.abc import Iterable

FIRST_ERROR = 400


def is_error(status: int | None, error: str | None) -> bool:
    """Tell whether a client got no good answer, or not the whole of it."""
    return status is None or status >= FIRST_ERROR or bool(error)


def is_failed_over(tried: Iterable[str]) -> bool:
    """Tell whether more than one provider was tried; more attempts at one are retries."""
    return len(set(tried)) > 1
