import pytest

from pointsman.telemetry.amounts import several, short_dollars


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "$0"),
        (0.0000001, "< $0.000001"),
        (0.000012345, "$0.000012"),
        (0.0001634, "$0.00016"),
        (0.001, "$0.0010"),
        (0.0299, "$0.030"),
        (0.456, "$0.46"),
        (1, "$1.00"),
        (1234.5, "$1,234.50"),
    ],
)
def test_a_short_amount_keeps_two_digits(value: float, shown: str) -> None:
    assert short_dollars(value) == shown


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 lines"), (1, "1 line"), (2, "2 lines"), (12345, "12 345 lines")]
)
def test_one_is_told_in_the_singular(count: int, told: str) -> None:
    assert several(count, "line") == told
