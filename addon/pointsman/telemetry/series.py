"""Where exchanges with the same labels are counted."""

from functools import cached_property

from prometheus_client import Counter, Histogram

from pointsman.telemetry.chunks import ChunkTimes
from pointsman.telemetry.exchange import Exchange
from pointsman.telemetry.families import Families, Labels


class Series:
    """The series that such exchanges count in; what they do not need is not made.

    Args:
        families: where they belong.
        requests: the labels in `pointsman_requests`.
        duration: those in `gen_ai_client_operation_duration_seconds`; None: no call of a model.
        payer: those in `pointsman_cost_usd`.
    """

    def __init__(
        self, families: Families, requests: Labels, duration: Labels | None, payer: Labels
    ) -> None:
        self._families = families
        self._duration = duration
        self._call = (duration or ())[:-1]
        self._payer = payer
        self.requests = families.requests(*requests)

    def call(self, exchange: Exchange) -> None:
        """Count a call of a model; nothing happens where it was none."""
        if self._duration is None or exchange.ended is None:
            return
        self.duration.observe(exchange.ended - exchange.started)
        if exchange.first_token is not None:
            self.first_chunk.observe(exchange.first_token - exchange.started)
        if exchange.chunk_times is not None and exchange.chunk_times.events:
            observe_all(self.chunks, exchange.chunk_times)
        usage = exchange.usage
        if usage is not None and usage.prompt_tokens is not None:
            self.input.observe(usage.prompt_tokens)
        if usage is not None and usage.completion_tokens is not None:
            self.output.observe(usage.completion_tokens)

    @cached_property
    def duration(self) -> Histogram:
        """How long calls take."""
        return self._families.duration(*(self._duration or ()))

    @cached_property
    def first_chunk(self) -> Histogram:
        """How long the first content of a stream takes."""
        return self._families.first_chunk(*self._call)

    @cached_property
    def chunks(self) -> Histogram:
        """How long what follows it takes."""
        return self._families.chunks(*self._call)

    @cached_property
    def input(self) -> Histogram:
        """Tokens of prompts."""
        return self._families.tokens(*self._call, "input")

    @cached_property
    def output(self) -> Histogram:
        """Tokens of answers."""
        return self._families.tokens(*self._call, "output")

    @cached_property
    def cost(self) -> Counter:
        """List price."""
        return self._families.cost(*self._payer)


def observe_all(histogram: Histogram, times: ChunkTimes) -> None:
    """Observe all times of a stream at once: one by one, a long one would take a second.

    There is no public way; a test compares this with `observe`.
    """
    histogram._sum.inc(times.total)  # noqa: SLF001
    for bucket, count in zip(histogram._buckets, times.counts, strict=True):  # noqa: SLF001
        if count:
            bucket.inc(count)
