import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.config.resources import Affinity
from pointsman.config.table import Target
from pointsman.routing.balancing import (
    GOLDEN_RATIO,
    DrawSequence,
    NoWeightError,
    affinity_value,
    place,
    rank_by_hash,
)
from pointsman.routing.request import Body, ClientRequest

JUST_BELOW_ONE = 0.9999999999999999
CHAT = ClientRequest(
    "POST",
    "https",
    "llm.test",
    443,
    "/",
    (),
    Body(b"", limit=1 << 20),
    ("192.0.2.1", 443),
)


def targets(*weights: int) -> tuple[Target, ...]:
    return tuple(Target(f"p{i}", f"p{i}.test", weight=w) for i, w in enumerate(weights))


def choose(chosen: tuple[Target, ...], r: float) -> Target:
    return chosen[place([target.weight for target in chosen], r)[0]]


def first_by_hash(chosen: tuple[Target, ...], value: str) -> Target:
    return rank_by_hash(chosen, value)[0]


def draw(chosen: tuple[Target, ...], start: float, times: int) -> Counter[str]:
    draws = DrawSequence(start)
    return Counter(choose(chosen, draws.draw()).host for _ in range(times))


def discrepancy(length: int) -> float:
    """Return the most by which an interval's count among so many draws may be off its share.

    This is the extreme discrepancy on the circle times the length, so it holds for each interval
    and each start: max(i - n·x_i) - min(i - n·x_i) + 1 over the sorted points (Kuipers and
    Niederreiter, Uniform Distribution of Sequences, chapter 2).
    """
    points = sorted(k * GOLDEN_RATIO % 1 for k in range(length))
    gaps = [i - length * x for i, x in enumerate(points)]
    return 1 + max(gaps) - min(gaps)


class TestShares:
    weights = st.lists(st.integers(0, 1000), min_size=1, max_size=6).filter(any)
    starts = st.floats(0, 1, exclude_max=True)

    @given(weights, starts)
    def test_shares_are_weight_by_sum(self, weights: list[int], start: float) -> None:
        bound = discrepancy(1000)
        assert bound < 3  # of 1000; independent draws would be off by 50 now and then
        counts = draw(targets(*weights), start, 1000)
        for i, weight in enumerate(weights):
            assert abs(counts[f"p{i}.test"] - 1000 * weight / sum(weights)) <= bound

    def test_a_half_and_half_split_is_even_after_ten_from_every_start(self) -> None:
        # The counts change only where a draw crosses 0 or 1/2: one start between any two of these
        # crossings stands for all.
        crossings = {(edge - k * GOLDEN_RATIO) % 1 for k in range(1, 11) for edge in (0, 0.5)}
        edges = sorted({0.0, 1.0, *crossings})
        for low, high in pairwise(edges):
            counts = draw(targets(50, 50), (low + high) / 2, 10)
            assert abs(counts["p0.test"] - counts["p1.test"]) <= 2

    @given(starts)
    def test_a_half_and_half_split_is_even_after_ten(self, start: float) -> None:
        counts = draw(targets(1, 1), start, 10)
        assert abs(counts["p0.test"] - counts["p1.test"]) <= 2

    def test_a_long_run_stays_exact(self) -> None:
        counts = draw(targets(70, 30), 0.123, 100_000)
        assert abs(counts["p0.test"] - 70_000) <= 10

    def test_a_small_share_gets_its_turn(self) -> None:
        assert abs(draw(targets(99, 1), 0.5, 300)["p1.test"] - 3) <= 1

    @pytest.mark.parametrize("start", [-0.25, 0.0, 0.5, 1.0, 17.75])
    def test_draws_are_numbers_from_zero_to_below_one(self, start: float) -> None:
        draws = DrawSequence(start)
        drawn = [draws.draw() for _ in range(1000)]
        assert all(0 <= r < 1 for r in drawn)
        assert len(set(drawn)) == 1000

    def test_the_next_draw_is_the_golden_ratio_further(self) -> None:
        draws = DrawSequence(0.5)
        assert draws.draw() == pytest.approx(0.5 + GOLDEN_RATIO - 1)
        assert draws.draw() == pytest.approx(0.5 + 2 * GOLDEN_RATIO - 1)


class TestPlace:
    @pytest.mark.parametrize(
        ("weights", "r", "expected"),
        [
            ((1,), 0.0, "p0"),
            ((1,), JUST_BELOW_ONE, "p0"),
            ((80, 20), 0.0, "p0"),
            ((80, 20), 0.7999, "p0"),
            ((80, 20), 0.8, "p1"),
            ((80, 20), JUST_BELOW_ONE, "p1"),
            ((2, 3, 5), 0.1999, "p0"),
            ((2, 3, 5), 0.2, "p1"),
            ((2, 3, 5), 0.5, "p2"),
            ((0, 5), 0.0, "p1"),
            ((5, 0), JUST_BELOW_ONE, "p0"),
            ((5, 0, 5), 0.5, "p2"),
            ((1, 10**17, 0), JUST_BELOW_ONE, "p1"),
        ],
    )
    def test_a_target_has_the_interval_of_its_weight(
        self, weights: tuple[int, ...], r: float, expected: str
    ) -> None:
        assert choose(targets(*weights), r).provider == expected

    @given(
        st.lists(st.integers(0, 10**9), min_size=1, max_size=5).filter(any),
        st.one_of(st.floats(0, 1, exclude_max=True), st.just(JUST_BELOW_ONE)),
    )
    def test_a_target_without_weight_is_never_chosen(self, weights: list[int], r: float) -> None:
        assert choose(targets(*weights), r).weight > 0

    @pytest.mark.parametrize("weights", [(), (0,), (0, 0)])
    def test_without_any_weight_there_is_nothing_to_choose(self, weights: tuple[int, ...]) -> None:
        with pytest.raises(NoWeightError):
            choose(targets(*weights), 0.5)
        assert rank_by_hash(targets(*weights), "a") == []


class TestHash:
    values = st.text(st.characters(exclude_categories=()), max_size=20)

    @given(st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any), values)
    def test_a_value_keeps_its_target_in_whatever_order_they_stand(
        self, weights: list[int], value: str
    ) -> None:
        all_targets = targets(*weights)
        chosen = first_by_hash(all_targets, value)
        assert chosen.weight > 0
        assert first_by_hash(all_targets[::-1], value) is chosen

    @pytest.mark.parametrize("weights", [(1, 1), (70, 30), (1, 2, 7), (5, 0, 5)])
    def test_values_spread_by_weight(self, weights: tuple[int, ...]) -> None:
        times = 4000
        chosen = targets(*weights)
        counts = Counter(first_by_hash(chosen, f"user-{n}").host for n in range(times))
        for target in chosen:
            share = target.weight / sum(weights)
            deviation = (times * share * (1 - share)) ** 0.5
            assert abs(counts[target.host] - times * share) <= 4 * deviation

    def test_removing_a_target_moves_only_its_own_values(self) -> None:
        three = targets(50, 30, 20)
        for n in range(1000):
            before = first_by_hash(three, f"user-{n}")
            after = first_by_hash(three[:2], f"user-{n}")
            assert after is before or before is three[2]

    def test_more_weight_for_a_target_moves_values_only_to_it(self) -> None:
        before = targets(50, 30, 20)
        after = (before[0], before[1], replace(before[2], weight=60))
        moved = 0
        for n in range(1000):
            old, new = first_by_hash(before, f"user-{n}"), first_by_hash(after, f"user-{n}")
            if old.host != new.host:
                assert new is after[2]
                moved += 1
        assert moved

    def test_every_process_and_version_agrees(self) -> None:
        # These must not change: instances of one deployment are not updated at the same moment.
        three = targets(50, 30, 20)
        values = ("alice", "bob", "carol", "dave", "erin", "", "ü", "\udcff")
        chosen = [first_by_hash(three, value).provider for value in values]
        assert " ".join(chosen) == "p1 p1 p0 p2 p2 p1 p1 p0"


def affinity(**field: str) -> Affinity:
    return Affinity.model_validate(field)


class TestAffinityValue:
    request = replace(
        CHAT,
        headers=((b"X-User", b"ann"), (b"Cookie", b"a=1; session=s1"), (b"X-Empty", b"")),
        body=Body(
            json.dumps({"user": "u1", "n": 7, "metadata": {"user_id": "m1"}}).encode(), limit=1000
        ),
    )

    @pytest.mark.parametrize(
        ("field", "expected"),
        [
            ({"header": "x-user"}, "ann"),
            ({"header": "X-User"}, "ann"),
            ({"header": "x-empty"}, None),
            ({"header": "x-absent"}, None),
            ({"cookie": "session"}, "s1"),
            ({"cookie": "absent"}, None),
            ({"bodyField": "user"}, "u1"),
            ({"bodyField": "n"}, "7"),
            ({"bodyField": "metadata.user_id"}, "m1"),
            ({"bodyField": "metadata"}, None),
            ({"bodyField": "metadata.absent"}, None),
        ],
    )
    def test_the_value_is_a_headers_a_cookies_or_a_fields(
        self, field: dict[str, str], expected: str | None
    ) -> None:
        assert affinity_value(affinity(**field), self.request) == expected

    def test_no_affinity_has_no_value(self) -> None:
        assert affinity_value(None, self.request) is None

    @pytest.mark.parametrize("raw", [b"", b"not json", b"[]"])
    def test_a_body_that_is_no_object_has_no_value(self, raw: bytes) -> None:
        request = replace(CHAT, body=Body(raw, limit=100))
        assert affinity_value(affinity(bodyField="user"), request) is None
