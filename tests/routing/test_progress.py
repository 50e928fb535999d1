import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.config.table import RetryCondition, RetryPolicy, Target
from pointsman.routing.planning import LONGEST_BACKOFF, Plan
from pointsman.routing.progress import Progress

NOW = 100.0


def progress(
    targets: int = 2,
    attempts: int | None = None,
    policy: RetryPolicy | None = None,
    *,
    once: bool = False,
) -> Progress:
    order = tuple(Target(f"p{n}", f"p{n}.test") for n in range(targets))
    return Progress(Plan(order, (), attempts or targets), policy or RetryPolicy(), once=once)


def fail(
    made: Progress, condition: RetryCondition = "5xx", *, now: float = NOW, retry_after: float = 0.0
) -> float | None:
    return made.pause_after(condition, now, retry_after, jitter=0.0)


def test_each_target_has_its_turn_and_then_there_is_no_attempt_left() -> None:
    made = progress(targets=2)
    assert made.next_target().provider == "p0"
    assert made.left
    assert fail(made) == 0.0
    assert made.next_target().provider == "p1"
    assert not made.left
    assert fail(made) is None


def test_what_the_policy_does_not_name_is_not_tried_again() -> None:
    made = progress(policy=RetryPolicy(on=frozenset({"reset"})))
    made.next_target()
    assert made.may_retry("reset")
    assert not made.may_retry("5xx")
    assert not made.may_retry(None)
    assert fail(made, "5xx") is None


def test_a_request_that_can_not_be_sent_again_is_not() -> None:
    made = progress(once=True)
    made.next_target()
    assert [made.left, made.may_retry("5xx"), made.may_repeat] == [False] * 3
    assert fail(made) is None


@pytest.mark.parametrize(
    ("policy", "repeats"),
    [
        (RetryPolicy(), True),
        (RetryPolicy(attempts=1), False),
        (RetryPolicy(on=frozenset({"5xx"})), False),
    ],
)
def test_the_last_attempt_may_be_repeated_unless_the_policy_forbids_it(
    policy: RetryPolicy, repeats: bool
) -> None:
    made = progress(targets=1, policy=policy)
    made.next_target()
    assert made.may_repeat is repeats


def test_the_same_target_is_called_after_a_pause_that_doubles() -> None:
    made = progress(targets=1, attempts=4, policy=RetryPolicy(backoff=1.0))
    pauses = []
    for _ in range(3):
        made.next_target()
        pauses.append(fail(made))
    assert pauses == [0.5, 1.0, 2.0]  # jitter takes off a half


def test_a_target_that_asks_for_time_gets_it() -> None:
    made = progress(targets=2, attempts=4, policy=RetryPolicy(backoff=0.1))
    made.next_target()
    assert fail(made, retry_after=3.0) == 0.0
    made.next_target()
    assert fail(made, now=NOW + 1.0) == 2.0  # p0 again, which has asked for three seconds
    made.next_target()
    assert fail(made, now=NOW + 3.0) == 0.0  # p1 has asked for nothing


def test_who_asks_for_more_than_a_client_waits_ends_it() -> None:
    made = progress(targets=1, attempts=2)
    made.next_target()
    assert fail(made, retry_after=LONGEST_BACKOFF + 0.1) is None


@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.floats(0, 1e9),
    st.floats(0, 1, exclude_max=True),
)
def test_no_more_attempts_than_planned_and_no_pause_longer_than_the_longest(
    targets: int, attempts: int, retry_after: float, jitter: float
) -> None:
    made, count = progress(targets, attempts), 0
    pause: float | None = 0.0
    while pause is not None:
        made.next_target()
        count += 1
        pause = made.pause_after("5xx", NOW, retry_after, jitter)
        assert pause is None or 0.0 <= pause <= LONGEST_BACKOFF
    assert count <= attempts
