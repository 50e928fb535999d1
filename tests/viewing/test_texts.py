"""Texts cut to what a person reads."""

import pytest

from pointsman.viewing.texts import clip, line, load, media, plain, size, top_level


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (34_230, "34.2 kB"),
        (999_960, "1.0 MB"),
        (16_777_216, "16.8 MB"),
        (5_000_000_000, "5.0 GB"),
    ],
)
def test_sizes_in_words(count: int, said: str) -> None:
    assert size(count) == said


def test_a_line_is_one_and_short() -> None:
    assert line("  plain  words ") == "plain  words"
    assert line("two\nlines\tand more") == "two lines and more"
    assert line("x" * 300, 10) == "xxxxxxxxx…"
    assert len(line("words " * 100_000)) <= 200


def test_a_line_turns_nothing_around() -> None:
    assert line("gpt\u202e4\u2067") == "gpt\ufffd4\ufffd"


def test_a_long_text_is_cut_in_its_middle() -> None:
    said = clip("a b " * 100 + "end", limit=40)
    assert said.startswith("a b a b ")
    assert said.endswith("end")
    assert "… 363 characters left out …" in said


def test_encoded_data_is_told_by_its_length_and_words_are_not() -> None:
    assert clip("see " + "A" * 500 + " there") == (
        "see AAAAAAAAAAAAAAAA… (500 characters of encoded data) there"
    )
    text = "Donaudampfschifffahrtsgesellschaft " * 50
    assert clip(text) == text


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("image/png", "A" * 4000, "image/png, 3.0 kB"),
        (None, "data:image/gif;base64," + "A" * 400, "image/gif, 300 B"),
        ("image/png", "data:;base64," + "A" * 400, "image/png, 300 B"),
        (None, "data:text/plain,hello", "text/plain, 5 B"),
        (None, "https://x.test/a.png?sig=secret", "https://x.test/a.png"),
        ("video/mp4", "gs://b/v.mp4", "video/mp4 at gs://b/v.mp4"),
        ("image/png", None, "image/png"),
        (None, 3, "unknown"),
    ],
)
def test_media_is_told_by_type_and_size_or_place(kind: str | None, data: object, said: str) -> None:
    assert media(kind, data) == said


def test_json_is_read_as_leniently_as_its_senders_write_it() -> None:
    assert load(b'{"a": NaN, "b": "\\ud83d"}') is not None
    assert load(b"[" * 100_000) is None
    assert load(b"nonsense") is None
    assert load(b"[" + b"1," * 2_000_000 + b"1]") is None
    assert list(top_level(b'{"a": 1, "b": {}}')) == ["a", "b"]
    assert list(top_level(b"[1]")) == []


def test_a_large_value_is_cut_in_all_directions() -> None:
    value = {"list": list(range(1000)), "text": "x y " * 5000, "many": [[[1] * 100] * 100] * 100}
    cut = plain(value)
    assert len(cut["list"]) == 201
    assert cut["list"][-1] == "… 800 more"
    assert len(cut["text"]) < 4100
    assert str(cut).count("1") < 3000
    deep: object = "end"
    for _ in range(500):
        deep = [deep]
    assert "end" not in str(plain(deep))
