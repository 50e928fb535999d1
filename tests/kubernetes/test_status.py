"""What the objects are told of themselves."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pointsman.config.problems import Problem
from pointsman.kubernetes.status import Verdict, conditions

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
FAULT = Problem("LLMRoute a/r", None, None, "spec.host", "it is no host")
AWAY = Problem("LLMRoute a/r", None, None, "spec.rules[0].backendRefs[0]", "there is none")


def value(listed: Any = None, generation: int = 3) -> dict[str, Any]:
    status = {} if listed is None else {"conditions": listed}
    return {"metadata": {"generation": generation}, "status": status}


def told(verdict: Verdict, before: Any = None, now: datetime = NOW) -> dict[str, dict[str, Any]]:
    found = conditions(value(before), verdict, now)
    assert found is not None
    return {c["type"]: dict(c) for c in found}


def test_a_good_object_is_accepted_and_all_is_there() -> None:
    assert told(Verdict()) == {
        name: {
            "type": name,
            "status": "True",
            "reason": reason,
            "message": message,
            "observedGeneration": 3,
            "lastTransitionTime": "2026-01-31T12:00:00Z",
        }
        for name, reason, message in (
            ("Accepted", "Accepted", "in use"),
            ("ResolvedRefs", "ResolvedRefs", "all that it names is there"),
        )
    }


def test_an_object_at_fault_is_told_why_and_what_is_in_use() -> None:
    """Whoever tells it: two writers that saw different versions before write the same."""
    found = told(Verdict([FAULT, FAULT]))
    accepted, resolved = found["Accepted"], found["ResolvedRefs"]
    assert (accepted["status"], accepted["reason"]) == ("False", "Invalid")
    fault = "spec.host: it is no host"
    assert accepted["message"] == (
        f"{fault}; {fault}. A version that was good before stays in use where it was seen;"
        " elsewhere requests to its host are answered with 503, unless another object has the host."
    )
    assert (resolved["status"], resolved["reason"]) == ("Unknown", "Invalid")


def test_a_reference_that_leads_nowhere_is_told_beside_the_acceptance() -> None:
    found = told(Verdict(unresolved=[AWAY]))
    assert found["Accepted"]["status"] == "True"
    resolved = found["ResolvedRefs"]
    assert (resolved["status"], resolved["reason"]) == ("False", "BackendNotFound")
    assert resolved["message"] == "spec.rules[0].backendRefs[0]: there is none"


def test_what_can_not_be_read_is_not_said_to_be_missing() -> None:
    resolved = told(Verdict(unread=[AWAY]))["ResolvedRefs"]
    assert (resolved["status"], resolved["reason"]) == ("Unknown", "BackendNotRead")
    assert resolved["message"] == "spec.rules[0].backendRefs[0]: there is none"
    assert told(Verdict(unresolved=[AWAY], unread=[FAULT]))["ResolvedRefs"]["status"] == "False"


def test_nothing_new_is_nothing_to_write() -> None:
    for verdict in (
        Verdict(),
        Verdict([FAULT]),
        Verdict(unresolved=[AWAY]),
        Verdict([], [], [AWAY]),
    ):
        before = conditions(value(), verdict, NOW)
        assert conditions(value(before), verdict, LATER) is None


def test_the_time_changes_with_the_status_and_with_nothing_else() -> None:
    before = conditions(value(), Verdict([FAULT]), NOW)
    other = Problem("", None, None, None, "it is something else")
    worse = told(Verdict([FAULT, other]), before, LATER)["Accepted"]
    assert "it is something else" in worse["message"]
    assert worse["lastTransitionTime"] == "2026-01-31T12:00:00Z"
    mended = told(Verdict(), before, LATER)["Accepted"]
    assert mended["lastTransitionTime"] == "2026-01-31T13:00:00Z"


def test_a_new_generation_is_observed() -> None:
    before = conditions(value(generation=3), Verdict(), NOW)
    found = conditions(value(before, generation=4), Verdict(), LATER)
    assert found
    assert [c["observedGeneration"] for c in found] == [4, 4]
    assert {c["lastTransitionTime"] for c in found} == {"2026-01-31T12:00:00Z"}


def test_the_conditions_of_others_stay() -> None:
    theirs = {"type": "theirs.example/Seen", "status": "True"}
    found = conditions(value([theirs]), Verdict(), NOW)
    assert found
    assert found[0] == theirs
    assert len(found) == 3


@pytest.mark.parametrize("listed", ["odd", [5], [{"type": []}], [{"type": "Accepted"}], {}])
def test_an_odd_status_is_made_whole(listed: Any) -> None:
    assert {"Accepted", "ResolvedRefs"} <= {
        c["type"]
        for c in conditions(value(listed), Verdict(), NOW) or ()
        if isinstance(c["type"], str)
    }
    assert conditions({}, Verdict(), NOW)
    assert conditions({"status": "x", "metadata": 5}, Verdict(), NOW)


def test_a_message_has_an_end() -> None:
    assert len(told(Verdict([FAULT] * 5000))["Accepted"]["message"]) <= 2000
