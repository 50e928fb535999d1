from typing import Any

import pytest

from pointsman.protocols.usage import Usage, count, sum_counts, usage_of


@pytest.mark.parametrize("value", [None, "12", True, False, -1, 1.5, float("inf"), [], {}])
def test_what_cannot_be_a_count_is_unknown(value: Any) -> None:
    assert count(value) is None


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (12, 12), (12.0, 12)])
def test_a_count_is_an_integer_of_zero_or_more(value: Any, expected: int) -> None:
    assert count(value) == expected


def test_a_total_that_was_not_reported_is_the_sum() -> None:
    assert usage_of(prompt=3, completion=4, total=None) == Usage(3, 4, 7)


def test_a_reported_total_stands_even_if_it_is_not_the_sum() -> None:
    assert usage_of(prompt=35, completion=12, total=109) == Usage(35, 12, 109)


def test_no_total_is_made_up_from_one_part() -> None:
    assert usage_of(prompt=3, completion=None, total=None) == Usage(3)


def test_nothing_known_is_no_usage() -> None:
    assert usage_of(prompt=None, completion=None, total=None) is None


def test_the_sum_of_unknowns_is_unknown() -> None:
    assert sum_counts(None, "x") is None
    assert sum_counts(None, 2, 0) == 2


@pytest.mark.parametrize("value", [2**41, 10**400, 1e308, float("inf"), float("nan"), -1, True])
def test_what_no_call_can_have_used_is_unknown(value: float) -> None:
    assert count(value) is None


def test_a_whole_float_is_a_count() -> None:
    assert count(12.0) == 12
    assert count(12.5) is None
