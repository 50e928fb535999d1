"""How long the chunks of a stream took: counts by bucket, so that long streams cost no memory."""

from bisect import bisect_left
from dataclasses import dataclass, field

# Seconds; those that OpenTelemetry's conventions for generative AI give all durations.
SECOND_BUCKETS = tuple(round(0.01 * 2**power, 2) for power in range(14))  # 0.01 to 81.92


@dataclass(slots=True)
class ChunkTimes:
    """The times between the events of a stream, from the first with content on.

    Attributes:
        last: when the last ones came, in seconds of the exchange's clock.
        events: how many have come after the first.
        total: the sum of the times, in seconds.
        counts: how many of them are in each bucket; the last one has no upper bound.
    """

    last: float
    events: int = 0
    total: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(SECOND_BUCKETS) + 1))

    def came(self, now: float, events: int) -> None:
        """Take in how many have come by now: the next was waited for, others came along with it."""
        new = events - self.events
        if new <= 0:
            return
        waited = now - self.last
        self.last, self.events = now, events
        self.total += waited
        self.counts[bisect_left(SECOND_BUCKETS, waited)] += 1
        self.counts[0] += new - 1
