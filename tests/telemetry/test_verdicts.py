"""What counts as an error and as failed over."""

import pytest

from pointsman.telemetry.verdicts import called, chosen, is_error, is_failed_over


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


def test_a_rule_chose_what_was_tried_first_and_who_was_tried_last_has_the_tokens() -> None:
    assert chosen("west", ["east", "west"], observed=False) == "east"
    assert called("west", ["east", "west"]) == "west"
    assert chosen("east", [], observed=False) == called("east", []) == "east"


def test_what_is_only_observed_was_chosen_for_another_than_was_called() -> None:
    assert chosen("east", ["own.test"], observed=True) == "east"
    assert called("east", ["own.test"]) == "own.test"
