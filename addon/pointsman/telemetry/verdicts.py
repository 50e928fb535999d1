"""What counts as an error, as failed over, as chosen and as called, wherever it is told.

That is in metrics, on the page, in reports, on flows. The page's own code (`admin/page/words.js`)
says the same of errors and failovers in its language; a test compares them.
"""

from collections.abc import Iterable, Sequence

FIRST_ERROR = 400


def is_error(status: int | None, error: str | None) -> bool:
    """Tell whether a client got no good answer, or not the whole of it."""
    return status is None or status >= FIRST_ERROR or bool(error)


def has_answered(status: int | None, model: str | None) -> bool:
    """Tell whether a model has answered, and so has used tokens, whether or not they are known."""
    return bool(model) and status is not None and status < FIRST_ERROR


def is_failed_over(tried: Iterable[str]) -> bool:
    """Tell whether more than one provider was tried; more attempts at one are retries."""
    return len(set(tried)) > 1


def chosen(provider: str | None, tried: Sequence[str], *, observed: bool) -> str | None:
    """Return the provider that a rule chose first, wherever the request ended.

    It is what the configured weights are about: the split of a rule is by this. (Replays are not in
    the split: a person has chosen to send them.)
    """
    return tried[0] if tried and not observed else provider


def called(provider: str | None, tried: Sequence[str]) -> str | None:
    """Return who was called last, and so has the tokens: of what is only observed another one."""
    return tried[-1] if tried else provider
