"""What counts as an error and as failed over."""

import pytest

from pointsman.telemetry.verdicts import is_error, is_failed_over


@pytest.mark.parametrize(
    ("status", "error", "bad"),
    [
        (200, None, False),
        (399, None, False),
        (400, None, True),
        (503, None, True),
        (None, None, True),
        (200, "the answer was cut short", True),
    ],
)
def test_what_is_an_error(status: int | None, error: str | None, bad: bool) -> None:
    assert is_error(status, error) is bad


def test_only_another_provider_is_a_failover() -> None:
    assert not is_failed_over([])
    assert not is_failed_over(["east", "east"])
    assert is_failed_over(["east", "west"])
