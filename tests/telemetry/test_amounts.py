import pytest

from pointsman.telemetry.amounts import short_dollars


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
