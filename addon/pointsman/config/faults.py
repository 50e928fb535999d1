"""Why what is live may not be what the rules say: of what kind that is, in words, since when."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

type Kind = Literal["refused", "outdated"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason.

    Attributes:
        kind: `refused`: what someone has written is not in use, and has to be mended. `outdated`:
            what is live can't be brought up to date just now; nobody has written anything wrong.
        text: what is wrong and how to mend it, for an operator.
        since: Unix time, in seconds.
    """

    kind: Kind
    text: str
    since: float


def noted(
    kind: Kind, texts: Iterable[str], before: Iterable[Fault], now: float
) -> tuple[Fault, ...]:
    """Return a fault for each text; those that were there before keep their time."""
    known = {fault.text: fault.since for fault in before}
    return tuple(Fault(kind, text, known.get(text, now)) for text in texts)
