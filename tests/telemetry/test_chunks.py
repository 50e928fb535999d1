from pointsman.telemetry.chunks import SECOND_BUCKETS, ChunkTimes


def buckets(times: ChunkTimes) -> dict[float | None, int]:
    """Return the counts that are not 0, by their bucket's upper bound."""
    bounds = (*SECOND_BUCKETS, None)
    return {bound: n for bound, n in zip(bounds, times.counts, strict=True) if n}


def test_each_event_after_the_first_is_timed_from_the_one_before() -> None:
    times = ChunkTimes(10.0)
    times.came(10.015, 1)
    times.came(10.515, 2)
    times.came(200.0, 3)
    assert buckets(times) == {0.02: 1, 0.64: 1, None: 1}
    assert round(times.total, 6) == 190.0


def test_events_that_come_together_were_not_waited_for() -> None:
    times = ChunkTimes(10.0)
    times.came(10.0, 2)
    times.came(11.0, 5)
    assert buckets(times) == {0.01: 4, 1.28: 1}
    assert times.events == 5
    assert times.total == 1.0


def test_a_chunk_that_completes_no_event_is_not_counted() -> None:
    times = ChunkTimes(10.0)
    times.came(10.5, 0)
    times.came(11.0, 1)
    assert buckets(times) == {1.28: 1}


def test_a_long_stream_takes_no_more_room() -> None:
    times = ChunkTimes(0.0)
    room = len(times.counts)
    for number in range(1, 100_001):
        times.came(number * 0.02, number)
    assert len(times.counts) == room
    assert sum(times.counts) == times.events == 100_000
