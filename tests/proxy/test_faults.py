import logging

import pytest

from pointsman.proxy.faults import describe, log_fault


def fault(said: str) -> KeyError:
    found: dict[str, str] = {}
    try:
        found[said] = found[said]
    except KeyError as raised:
        return raised
    raise AssertionError


def test_a_fault_is_told_by_its_place_and_kind_and_not_quoted() -> None:
    described = describe(fault("a prompt"))
    assert described.endswith("KeyError")
    assert "test_faults.py" in described
    assert "a prompt" not in described


def test_the_log_has_what_came_of_it_too(caplog: pytest.LogCaptureFixture) -> None:
    log_fault(logging.getLogger("x"), "nothing was sent", fault("a prompt"))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("nothing was sent\n")
    assert record.getMessage().endswith("KeyError")
    assert "a prompt" not in caplog.text
