"""Texts that every encoder takes."""

import pytest

from pointsman.wellformed import well_formed, well_formed_json


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


def test_a_json_value_is_made_well_formed_in_all_its_depth() -> None:
    sent = {"a\ud800": ["b\udfff", {"c": "\ud800", "n": 1.5, "t": True, "none": None}]}
    kept = {"a\ufffd": ["b\ufffd", {"c": "\ufffd", "n": 1.5, "t": True, "none": None}]}
    assert well_formed_json(sent) == kept
