"""Texts that every encoder takes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.wellformed import printable, well_formed, well_formed_escapes, well_formed_json


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("", ""),
        ("plain", "plain"),
        ("é 数 😀", "é 数 😀"),
        ("\udc80", "\ufffd"),
        ("a\ud83d", "a\ufffd"),
        ("\ud83db", "\ufffdb"),
        ("\udc80\ud83d é", "\ufffd\ufffd é"),
        ("\ud83d\ude00", "😀"),  # both halves
    ],
)
def test_a_lone_surrogate_is_replaced_and_nothing_else(sent: str, kept: str) -> None:
    assert well_formed(sent) == kept
    assert well_formed(sent).encode().decode() == kept


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("plain é 数 😀 👨\u200d👩", "plain é 数 😀 👨\u200d👩"),
        ("a\nb\x1b[2J\x85", "a\ufffdb\ufffd[2J\ufffd"),
        ("gpt\u202e4\u2066\u200f", "gpt\ufffd4\ufffd\ufffd"),
        ("\udc80\u2028", "\ufffd\ufffd"),
    ],
)
def test_what_is_printed_stays_on_its_line_and_in_its_direction(sent: str, shown: str) -> None:
    assert printable(sent) == shown


def test_a_json_value_is_made_well_formed_in_all_its_depth() -> None:
    sent = {"a\ud800": ["b\udfff", {"c": "\ud800", "n": 1.5, "t": True, "none": None}]}
    kept = {"a\ufffd": ["b\ufffd", {"c": "\ufffd", "n": 1.5, "t": True, "none": None}]}
    assert well_formed_json(sent) == kept


@given(st.text(st.sampled_from('a\\"u\n\ud83d\ude00\udbff\udc00d8')))
def test_the_escapes_of_json_are_made_what_its_texts_are(text: str) -> None:
    sent = json.dumps(text).encode()
    kept = well_formed_escapes(sent)
    assert json.loads(kept) == well_formed(text)
    assert (kept is sent) == (well_formed(text) == json.loads(sent))


def test_an_escape_that_is_escaped_is_a_text() -> None:
    for text in (rb'"\\ud83d"', rb'"\\\\ud83d \ud83d\ude00"', rb'"\\uD83D\\uDE00"'):
        assert well_formed_escapes(text) is text
    assert (
        well_formed_escapes(rb'"\\\ud83d\ude00 \ude00\ud83d"') == rb'"\\\ud83d\ude00 \ufffd\ufffd"'
    )
