from dataclasses import dataclass, replace
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pointsman.config.table import CallConfig, Ejection, Target
from pointsman.routing.health import Health, State, target_key

EJECTION = Ejection(consecutive_failures=3, base=30.0, most=100.0)
A = Target("a", "a.test", ejection=EJECTION)
B = Target("b", "b.test", ejection=EJECTION)


def ejected(target: Target = A, now: float = 0.0) -> Health:
    health = Health()
    for _ in range(target.ejection.consecutive_failures):
        health.begin(target, now)
        health.failed(target, now)
    assert not health.available(target, now)
    return health


def fail_the_probe(health: Health, now: float, retry_after: float | None = None) -> None:
    assert health.available(A, now)
    health.begin(A, now)
    assert health.state(A, now) == "probing"
    health.failed(A, now, retry_after)


def duration(health: Health, now: float) -> float:
    """Return for how many more whole seconds the target is ejected."""
    return next(s for s in range(1000) if health.available(A, now + s))


class TestEjection:
    def test_an_unknown_target_is_healthy(self) -> None:
        health = Health()
        assert health.available(A, 0)
        assert health.state(A, 0) == "healthy"

    def test_failures_in_a_row_eject(self) -> None:
        health = Health()
        for now in (0, 1):
            health.failed(A, now)
            assert health.available(A, now)
        health.failed(A, 2)
        assert not health.available(A, 2)
        assert health.state(A, 2) == "ejected"

    def test_a_success_in_between_starts_the_count_anew(self) -> None:
        health = Health()
        for _ in range(5):
            health.failed(A, 0)
            health.failed(A, 0)
            health.succeeded(A, 0)
        assert health.available(A, 0)

    def test_what_shows_nothing_does_not_count(self) -> None:
        health = Health()
        health.failed(A, 0)
        health.failed(A, 0)
        health.abandoned(A, 0)
        assert health.available(A, 0)
        health.failed(A, 0)
        assert not health.available(A, 0)

    def test_other_targets_stay(self) -> None:
        assert ejected().available(B, 0)

    def test_it_lasts_for_the_base(self) -> None:
        health = ejected(now=1000.0)
        assert not health.available(A, 1029.9)
        assert health.available(A, 1030.0)

    def test_after_it_the_target_is_not_yet_healthy(self) -> None:
        assert ejected().state(A, 30) == "ejected"

    @pytest.mark.parametrize("off", [Ejection(1, 0.0, 100.0), Ejection(1, 30.0, 0.0)])
    def test_a_duration_of_0_switches_it_off(self, off: Ejection) -> None:
        health, target = Health(), replace(A, ejection=off)
        for _ in range(5):
            health.begin(target, 0)
            health.failed(target, 0)
            assert health.available(target, 0)
            assert health.state(target, 0) == "healthy"

    def test_a_base_above_the_most_is_cut(self) -> None:
        target = replace(A, ejection=Ejection(3, base=50.0, most=20.0))
        assert ejected(target).available(target, 20)


class TestProbe:
    def test_only_one_attempt_goes_through(self) -> None:
        health = ejected()
        health.begin(A, 30)
        assert health.state(A, 30) == "probing"
        assert not health.available(A, 31)

    def test_asking_is_no_probe(self) -> None:
        health = ejected()
        assert all(health.available(A, 30) for _ in range(3))

    def test_its_success_makes_healthy(self) -> None:
        health = ejected()
        health.begin(A, 30)
        health.succeeded(A, 31)
        assert health.state(A, 31) == "healthy"

    def test_its_failure_ejects_at_once_for_twice_as_long_up_to_the_most(self) -> None:
        health, now = ejected(), 0.0
        durations = [duration(health, now)]
        for _ in range(4):
            now += durations[-1]
            fail_the_probe(health, now)
            durations.append(duration(health, now))
        assert durations == [30, 60, 100, 100, 100]

    def test_very_many_ejections_in_a_row_do_no_harm(self) -> None:
        health, now = ejected(), 0.0
        for _ in range(3000):
            now += 100
            fail_the_probe(health, now)
        assert duration(health, now) == 100

    def test_success_resets_the_doubling(self) -> None:
        health = ejected()
        fail_the_probe(health, 30)
        health.begin(A, 90)
        health.succeeded(A, 90)
        for _ in range(3):
            assert health.available(A, 90)
            health.failed(A, 90)
        assert duration(health, 90) == 30

    def test_when_its_client_leaves_the_next_may_probe(self) -> None:
        health = ejected()
        health.begin(A, 30)
        health.abandoned(A, 31)
        fail_the_probe(health, 31)
        assert duration(health, 31) == 60

    def test_one_that_never_ends_blocks_no_longer_than_the_base(self) -> None:
        health = ejected()
        health.begin(A, 40)
        assert not health.available(A, 69.9)
        assert health.available(A, 70)
        health.begin(A, 70)
        assert not health.available(A, 99.9)

    def test_others_that_had_to_be_made_do_not_prolong_it(self) -> None:
        health = ejected()
        health.begin(A, 30)
        health.begin(A, 50)
        assert health.available(A, 60)

    def test_a_late_one_still_decides(self) -> None:
        failing = ejected()
        failing.begin(A, 30)
        failing.failed(A, 75)
        assert duration(failing, 75) == 60
        succeeding = ejected()
        succeeding.begin(A, 30)
        succeeding.succeeded(A, 75)
        assert succeeding.state(A, 75) == "healthy"

    def test_two_that_fail_eject_once(self) -> None:
        health = ejected()
        health.begin(A, 30)
        health.begin(A, 60)
        health.failed(A, 61)
        health.failed(A, 62)
        assert duration(health, 62) == 59


class TestAnswersThatLast:
    """An answer begins well, and how it ends is known only later."""

    def test_one_that_breaks_off_counts_as_any_failure(self) -> None:
        health = Health()
        for now in range(A.ejection.consecutive_failures):
            assert health.available(A, now)
            health.begin(A, now)
            health.answering(A, now)
            health.failed(A, now)
        assert health.state(A, now) == "ejected"

    def test_one_that_ends_well_starts_the_count_anew(self) -> None:
        health = Health()
        for now in range(3 * A.ejection.consecutive_failures):
            health.begin(A, now)
            health.answering(A, now)
            (health.succeeded if now % 3 == 2 else health.failed)(A, now)
        assert health.state(A, now) == "healthy"

    def test_a_probes_lets_the_others_through_and_a_break_bars_them_for_longer(self) -> None:
        health = ejected()
        health.begin(A, 30)
        health.answering(A, 31)
        assert health.state(A, 31) == "healthy"
        assert health.available(A, 31)
        health.failed(A, 40)
        assert duration(health, 40) == 60

    def test_one_from_before_an_ejection_does_not_end_it(self) -> None:
        health = ejected()
        health.answering(A, 1)
        assert health.state(A, 1) == "ejected"


class TestAttemptsFromBefore:
    """What began before the ejection and ends after it."""

    def test_their_failures_neither_double_nor_lengthen(self) -> None:
        health = ejected()
        for now in (1, 29, 35):
            health.failed(A, now)
        assert health.available(A, 35)
        fail_the_probe(health, 35)
        assert duration(health, 35) == 60
        health.failed(A, 96)
        assert health.available(A, 96)

    def test_their_successes_do_not_end_it(self) -> None:
        health = ejected()
        health.succeeded(A, 1)
        assert duration(health, 0) == 30

    def test_one_that_had_to_be_made_in_spite_of_it_ends_it(self) -> None:
        health = ejected()
        health.begin(A, 10)
        assert health.state(A, 10) == "ejected"
        health.succeeded(A, 11)
        assert health.state(A, 11) == "healthy"

    def test_one_that_was_made_in_spite_of_it_and_fails_within_it_changes_nothing(self) -> None:
        health = ejected()
        health.begin(A, 10)
        health.failed(A, 11)
        assert duration(health, 0) == 30


class TestRetryAfter:
    def test_it_ejects_at_once_for_that_long(self) -> None:
        health = Health()
        health.failed(A, 0, retry_after=7)
        assert duration(health, 0) == 7

    @pytest.mark.parametrize("asked", [101.0, 1e9, float("inf")])
    def test_the_most_bounds_it(self, asked: float) -> None:
        health = Health()
        health.failed(A, 0, retry_after=asked)
        assert duration(health, 0) == 100

    @pytest.mark.parametrize("asked", [0.0, -1.0, float("nan")])
    def test_no_time_at_all_is_a_failure_like_others(self, asked: float) -> None:
        health = Health()
        health.failed(A, 0, retry_after=asked)
        health.failed(A, 0, retry_after=asked)
        assert health.available(A, 0)
        health.failed(A, 0, retry_after=asked)
        assert duration(health, 0) == 30

    def test_it_needs_no_base(self) -> None:
        health, target = Health(), replace(A, ejection=Ejection(5, 0.0, 100.0))
        health.failed(target, 0, retry_after=7)
        assert not health.available(target, 6)
        health.begin(target, 7)
        assert health.available(target, 7)
        health.failed(target, 7)
        assert health.state(target, 7) == "healthy"

    def test_a_probe_that_gets_it_is_set_aside_for_that_long(self) -> None:
        health = ejected()
        fail_the_probe(health, 30, retry_after=4)
        assert duration(health, 30) == 4
        fail_the_probe(health, 34)
        assert duration(health, 34) == 100

    def test_the_latest_time_of_several_answers_counts_and_they_are_one_ejection(self) -> None:
        health = Health()
        for now, asked in ((0, 10.0), (1, 20.0), (2, 5.0)):
            health.failed(A, now, asked)
        assert duration(health, 0) == 21
        fail_the_probe(health, 21)
        assert duration(health, 21) == 60

    def test_successes_of_requests_under_way_do_not_end_it(self) -> None:
        health = Health()
        for _ in range(3):
            health.begin(A, 0)
        health.failed(A, 1, retry_after=10)
        health.succeeded(A, 2)
        assert not health.available(A, 2)


class TestReload:
    def test_what_stays_keeps_its_state(self) -> None:
        health = ejected()
        changed = replace(A, config=CallConfig(model="other"), weight=7, priority=2, path="/v2")
        health.keep([changed, B])
        assert not health.available(changed, 0)
        assert health.available(B, 0)

    @pytest.mark.parametrize(
        "moved",
        [
            replace(A, host="other.test"),
            replace(A, scheme="http"),
            replace(A, port=8443),
            replace(A, address=("10.0.0.7", 443)),
        ],
    )
    def test_what_is_somewhere_else_now_starts_healthy(self, moved: Target) -> None:
        health = ejected()
        assert target_key(moved) != target_key(A)
        health.keep([moved])
        assert health.available(moved, 0)

    def test_what_is_gone_is_forgotten(self) -> None:
        health = ejected()
        health.keep([B])
        health.keep([A, B])
        assert health.available(A, 0)

    def test_an_ejection_keeps_its_end_and_the_next_follows_the_new_table(self) -> None:
        health = ejected()
        changed = replace(A, ejection=Ejection(1, 5.0, 7.0))
        health.keep([changed])
        assert not health.available(changed, 29)
        health.begin(changed, 30)
        assert not health.available(changed, 34)
        assert health.available(changed, 35)
        health.failed(changed, 36)
        assert health.available(changed, 43)

    def test_targets_that_do_well_take_no_memory(self) -> None:
        health = ejected()
        health.begin(A, 30)
        health.succeeded(A, 30)
        for n in range(100):
            target = replace(A, host=f"h{n}.test")
            health.begin(target, 0)
            health.succeeded(target, 0)
            health.abandoned(target, 0)
        assert not health._troubles


# --- against a model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    kind: Literal["begin", "succeeded", "failed", "abandoned"]
    at: float
    asked: float | None = None


class Model:
    """One target's state, read off its whole history: slow, and without any state of its own."""

    def __init__(self, ejection: Ejection) -> None:
        self.ejection = ejection
        self.history: list[Event] = []

    def state(self, now: float) -> tuple[State, bool]:
        """Return the state and whether the target is available."""
        return self.healthy(self.history, now)

    def healthy(self, events: list[Event], now: float) -> tuple[State, bool]:
        failures = 0
        for i, event in enumerate(events, 1):
            if event.kind == "succeeded":
                return self.healthy(events[i:], now)
            failures += event.kind == "failed"
            if event.asked or failures == self.ejection.consecutive_failures:
                return self.ejected(events[i:], now, event.at + self.length(0, event.asked), 1)
        return "healthy", True

    def ejected(
        self, events: list[Event], now: float, until: float, in_a_row: int
    ) -> tuple[State, bool]:
        for i, event in enumerate(events, 1):
            tried = any(e.kind == "begin" for e in events[:i])
            if event.kind == "succeeded" and tried:
                return self.healthy(events[i:], now)
            if event.kind == "failed" and tried and event.at >= until:
                longer = event.at + self.length(in_a_row, event.asked)
                return self.ejected(events[i:], now, longer, in_a_row + 1)
            if event.asked:
                until = max(until, event.at + self.length(0, event.asked))
        probing = self.probing(events, until, now)
        return ("probing" if probing else "ejected"), now >= until and not probing

    def length(self, in_a_row: int, asked: float | None) -> float:
        length = self.ejection.base if asked is None else asked
        for _ in range(in_a_row if asked is None else 0):
            length += length
        return min(length, self.ejection.most)

    def probing(self, events: list[Event], until: float, now: float) -> bool:
        """Tell whether a probe is under way: begun after the end, not given up, not too long."""
        begun: float | None = None
        for event in events:
            expired = begun is None or event.at >= begun + self.ejection.base
            if event.kind == "begin" and event.at >= until and expired:
                begun = event.at
            elif event.kind == "abandoned":
                begun = None
        return begun is not None and now < begun + self.ejection.base


class HealthMachine(RuleBasedStateMachine):
    # Halves and whole numbers only: sums are exact, so the model may add up in another order.
    @initialize(
        failures=st.integers(1, 3), base=st.sampled_from([1.0, 4.0]), most=st.integers(1, 20)
    )
    def start(self, failures: int, base: float, most: int) -> None:
        ejection = Ejection(failures, base, float(most))
        self.now = 0.0
        self.health = Health()
        self.targets = [Target(name, f"{name}.test", ejection=ejection) for name in "ab"]
        self.models = [Model(ejection) for _ in self.targets]

    which = st.integers(0, 1)

    @rule(seconds=st.sampled_from([0.5, 0.5, 1.0, 2.0, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(which=which)
    def begin(self, which: int) -> None:
        self.health.begin(self.targets[which], self.now)
        self.models[which].history.append(Event("begin", self.now))

    @rule(which=which)
    def succeed(self, which: int) -> None:
        self.health.succeeded(self.targets[which], self.now)
        self.models[which].history.append(Event("succeeded", self.now))

    @rule(which=which, asked=st.none() | st.integers(1, 30).map(float))
    def fail(self, which: int, asked: float | None) -> None:
        self.health.failed(self.targets[which], self.now, asked)
        self.models[which].history.append(Event("failed", self.now, asked))

    @rule(which=which)
    def abandon(self, which: int) -> None:
        self.health.abandoned(self.targets[which], self.now)
        self.models[which].history.append(Event("abandoned", self.now))

    @rule()
    def reload(self) -> None:
        self.health.keep(replace(target, weight=9) for target in self.targets)

    @rule(which=which)
    def remove(self, which: int) -> None:
        self.health.keep([self.targets[1 - which]])
        self.models[which].history.clear()

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        for target, model in zip(self.targets, self.models, strict=True):
            state = self.health.state(target, self.now)
            assert (state, self.health.available(target, self.now)) == model.state(self.now)

    @invariant()
    def nothing_is_set_aside_for_longer_than_the_most(self) -> None:
        for target in self.targets:
            # An ejection and then a probe that hangs: the longest that there is.
            longest = max(target.ejection.most, target.ejection.base)
            assert self.health.available(target, self.now + longest)

    @invariant()
    def no_more_is_remembered_than_there_are_targets(self) -> None:
        assert len(self.health._troubles) <= len(self.targets)


HealthMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
TestHealthAgainstAModel = HealthMachine.TestCase
