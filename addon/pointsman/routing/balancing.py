"""Which of a rule's targets a request goes to.

By weight: share = weight / sum. The draws of a rule follow a low-discrepancy sequence (add the
golden ratio, modulo 1): of 10 requests under a 50/50 rule, 4 to 6 go to each target, and of 1000
499 to 501, where independent draws would often be 3 to 7 and 480 to 520.
By affinity: weighted rendezvous hashing, so that one value keeps its target and, when targets come
and go, only the values of those move.
"""

import hashlib
import math
from collections.abc import Sequence
from itertools import accumulate

from pointsman.config.resources import Affinity
from pointsman.config.table import Target
from pointsman.routing.request import ClientRequest

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_HASH_BITS = 52  # so that neither 0 nor 1 can come out by rounding
_BELOW_ONE = math.nextafter(1.0, 0.0)


class NoWeightError(ValueError):
    """None of the targets has a weight, so none can be chosen."""


class DrawSequence:
    """The draws of one rule: numbers in [0, 1), evenly spread at every length."""

    __slots__ = ("_value",)

    def __init__(self, start: float) -> None:
        self._value = start % 1.0

    def draw(self) -> float:
        """Return the next number."""
        self._value = (self._value + GOLDEN_RATIO) % 1.0
        return self._value


def place(weights: Sequence[int], r: float) -> tuple[int, float]:
    """Return which interval of the weights holds `r`, and where in it `r` lies.

    Both `r` and the place are numbers in [0, 1). Over all `r` of one interval the places are spread
    as the draws are over the whole, so that a place can serve as the draw for what comes next.

    Raises:
        NoWeightError: there is no weight.
    """
    total = sum(weights)
    if total <= 0:
        raise NoWeightError
    threshold = r * total
    index, end = next((i, end) for i, end in enumerate(accumulate(weights)) if threshold < end)
    start = end - weights[index]
    return index, min((threshold - start) / weights[index], _BELOW_ONE)


def rank_by_hash(targets: Sequence[Target], value: str) -> list[Target]:
    """Return the targets that have a weight, the one that this value belongs to first.

    Over all values the order is a drawing by weight without replacement. It stays as it is when
    targets come or go, so the second is where the value goes without the first.
    """

    def score(target: Target) -> float:
        return target.weight / -math.log(_unit(target.host, value))

    return sorted((target for target in targets if target.weight > 0), key=score, reverse=True)


def _unit(host: str, value: str) -> float:
    """Hash to a number in (0, 1), the same in every process."""
    data = f"{host}\0{value}".encode("utf-8", "surrogatepass")
    bits = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> (64 - _HASH_BITS)
    return (bits + 0.5) / (1 << _HASH_BITS)


def affinity_value(affinity: Affinity | None, request: ClientRequest) -> str | None:
    """Return what the request's target is kept by, or None: then it is drawn."""
    if affinity is None:
        return None
    if affinity.header is not None:
        return request.header_values.get(affinity.header) or None
    if affinity.cookie is not None:
        return request.cookie(affinity.cookie) or None
    assert affinity.body_field is not None  # noqa: S101 (the resource has exactly one)
    return request.body.string(*affinity.body_field.split("."))
