"""What tries the definitions' rules is itself tried on what CEL's documentation says."""

from typing import Any

import pytest

from tests.kubernetes.cel import holds


@pytest.mark.parametrize(
    ("rule", "value", "wanted"),
    [
        ("has(self.a)", {"a": None}, True),
        ("has(self.a)", {}, False),
        ("!(has(self.a) && has(self.b))", {"a": 1, "b": 2}, False),
        ("has(self.a) && self.a == 'x'", {}, False),
        ("!has(self.a) || self.a != 'x'", {}, True),
        ("has(self.a) ? self.a == 'x' : has(self.b)", {"b": 1}, True),
        ("has(self.a) ? self.a == 'x' : has(self.b)", {"a": "y", "b": 1}, False),
        ("self.l.size() < 2", {"l": [1]}, True),
        ("self.l.exists(x, x > 1)", {"l": [1, 2]}, True),
        ("self.l.exists(x, x.n > 1)", {"l": []}, False),
        ("self.l.all(x, x > 1)", {"l": [2, 3]}, True),
        ("self.l.all(x, x > 1)", {"l": [1, 2]}, False),
        ("self.l.all(x, x.n > 1)", {"l": []}, True),
        ("self.l.all(r, self.l.exists_one(x, x == r))", {"l": [1, 2, 3]}, True),
        ("self.l.all(r, self.l.exists_one(x, x == r))", {"l": [1, 2, 1]}, False),
        ("[has(self.a), has(self.b)].exists_one(x, x)", {"a": 1, "b": 1}, False),
        ("self.l.exists(x, (has(x.n) ? x.n : 0) != self.l[0].n)", {"l": [{"n": 1}, {}]}, True),
        ("duration('1m30s') == duration('90s')", {}, True),
        ("duration(self.a) <= duration('1s')", {"a": "1500ms"}, False),
    ],
)
def test_a_rule_holds_or_not(rule: str, value: Any, wanted: bool) -> None:
    assert holds(rule, value) is wanted
