"""Outlines: YAML for people."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.viewing.outline import Json, Node, outline, shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=120),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("node", "written"),
    [
        ("plain words", "a: plain words"),
        ("", 'a: ""'),
        (" \n ", 'a: ""'),
        ("a key: a value", 'a: "a key: a value"'),
        ("# no comment", 'a: "# no comment"'),
        ("8900000", 'a: "8900000"'),
        ("yes", 'a: "yes"'),
        ('it says "no: never"', 'a: |\n  it says "no: never"'),
        ("two\nlines", "a: |\n  two\n  lines"),
        ("\n  code\nend", "a: |2\n\n    code\n  end"),
        ("a\r\nb\u2028c", "a: |\n  a\n  b\n  c"),
        ("bell \x07, surrogate \ud83d", "a: bell \ufffd, surrogate \ufffd"),
        (3, "a: 3"),
        (True, "a: true"),
        ({}, "a: {}"),
        ([], "a: []"),
        (["x", {"b": "y", "c": "z"}, ["w"]], "a:\n  - x\n  - b: y\n    c: z\n  -\n    - w"),
        (Json({"k": [1, None]}), 'a: {"k": [1, null]}'),
        (Json({"k": "one\ntwo", "n": "1"}), 'a:\n  k: |\n    one\n    two\n  n: "1"'),
        (Json("x"), 'a: "x"'),
    ],
)
def test_a_node_is_written(node: Node, written: str) -> None:
    assert outline({"a": node}) == f"{written}\n"


def test_an_override_of_the_direction_is_not_shown() -> None:
    """What has a direction of its own, such as an isolate in Hebrew, is."""
    assert outline({"a": "x\u202ey\u202dz"}) == "a: x\ufffdy\ufffdz\n"
    assert outline({"a": "\u2067\u05d0\u2069"}) == "a: \u2067\u05d0\u2069\n"


def test_names_are_made_safe() -> None:
    assert outline({"a: b": "x", "- c\nd": "y", "1": "z"}) == '"a: b": x\n"- c d": y\n"1": z\n'


def test_long_lines_are_broken_at_spaces_and_wide_ones_sooner() -> None:
    lines = outline({"a": "word " * 50}).splitlines()
    assert all(len(line) <= 92 for line in lines)
    assert " ".join(line.strip() for line in lines[1:]).split() == ["word"] * 50
    wide = outline({"a": "字" * 200}).splitlines()
    assert all(len(line) <= 47 for line in wide)
    assert "".join(line.strip() for line in wide[1:]) == "字" * 200


def test_an_outline_is_cut_at_its_limit_and_says_so() -> None:
    said = outline({"a": ["line"] * 1000}, limit=500)
    assert len(said) < 600
    assert said.endswith("# … cut here: there is more than is shown\n")
    assert yaml.safe_load(said)["a"][0] == "line"


def test_many_levels_of_json_cost_no_more_than_their_text() -> None:
    value: Any = "x" * 100
    for _ in range(200):
        value = [value]
    assert outline({"a": Json(value)}).count("-") == 200


@settings(deadline=None)
@given(st.text(max_size=400))
def test_any_text_is_read_as_it_was_written_but_for_space(text: str) -> None:
    read = yaml.safe_load(outline({"a": text, "b": [{"c": text}]}))
    for found in (read["a"], read["b"][0]["c"]):
        assert "".join(found.split()) == "".join(shown(text).split())


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=30), JSON, max_size=4))
def test_any_json_can_be_parsed(value: dict[str, Any]) -> None:
    yaml.safe_load(outline({"a": Json(value), "b": [Json(value)]}))
    yaml.safe_load(outline({name: Json(item) for name, item in value.items()}))
