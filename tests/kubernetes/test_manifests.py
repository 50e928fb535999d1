"""Manifests as text: what is not changed stays, and what is written anew means the same."""

import json
import textwrap
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.kubernetes.manifests import (
    ManifestError,
    at,
    join,
    mapping,
    number_at,
    read,
    sequence,
    text_at,
    true_at,
    write,
)
from tests.kubernetes.injecting import KUBECTL, document, read_by_kubectl

# What YAML 1.1, YAML 1.2 and go-yaml read differently, or lose when values are written anew.
TRAPS = [
    "on",
    "off",
    "yes",
    "no",
    "y",
    "n",
    "Y",
    "true",
    "True",
    "null",
    "~",
    "1e3",
    "1E3",
    "0o7",
    "0644",
    "0x1F",
    "0b11",
    "1_000",
    "1:30",
    "12:30:45",
    ".5",
    "5.",
    "1.",
    "+1",
    "-1",
    ".inf",
    "-.inf",
    ".nan",
    "2024-01-31",
    "2001-12-14T21:59:43Z",
    "1.10",
    "1.0",
    "00",
    "08",
    "9007199254740993",
    "123456789012345678901234567890",
    "=",
    "1,000",
    "12e03",
    "0.1e-7",
    "Infinity",
    "nan",
]


def rewritten(text: str) -> str:
    """Return the text with every document written anew."""
    found = read(text)
    for one in found:
        one.changed = one.value is not None
    return write(text, found)


def dedent(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


def test_documents_that_do_not_change_stay_byte_for_byte() -> None:
    text = "# head\n--- # one\na:   {b: 0644,}  # note\n...\n---\n\n---\r\nc: >-\r\n  x\r\n\r\n"
    documents = read(text)
    assert [one.number for one in documents] == [1, 2, 3]
    assert [one.line for one in documents] == [3, 7, 8]
    assert documents[1].value is None
    assert write(text, documents) == text


def test_a_changed_document_leaves_its_neighbours_alone() -> None:
    text = "a: {x: 1}  # kept\n---\n# kept too\nb: 1 # lost\n---\nc: [ 1 ]   # kept\n"
    documents = read(text)
    documents[1].changed = True
    assert write(text, documents) == (
        "a: {x: 1}  # kept\n---\n# kept too\nb: 1\n---\nc: [ 1 ]   # kept\n"
    )


@pytest.mark.parametrize("scalar", TRAPS)
@pytest.mark.parametrize("style", ["{}", "'{}'", '"{}"'])
@pytest.mark.parametrize("text", ["a: @\n", "- @\n- b: @\n", "@: 1\n", "a: [@, @]\n"])
def test_scalars_keep_their_text_and_their_quotes(scalar: str, style: str, text: str) -> None:
    text = text.replace("@", style.format(scalar))
    before, after = list(yaml.scan(text)), list(yaml.scan(rewritten(text)))
    assert [(one.value, one.plain) for one in before if isinstance(one, yaml.ScalarToken)] == [
        (one.value, one.plain) for one in after if isinstance(one, yaml.ScalarToken)
    ]


@pytest.mark.skipif(not KUBECTL, reason="kubectl is not installed")
def test_kubectl_reads_the_same_before_and_after() -> None:
    values = [style.format(trap) for trap in TRAPS for style in ("{}", "'{}'", '"{}"')]
    # What JSON can't say, kubectl refuses.
    values = [value for value in values if value not in {".inf", "-.inf", ".nan"}]
    values += [
        "",
        "{}",
        "[]",
        "{a: , b: ~}",
        '"\\u00fc\\n\\x01"',
        "Füße",
        "---a",
        "...a",
        "!!str 0644",
        "🚂",
    ]
    scripts = ["|\n  a\n   b\n\n  c", "|-\n  a", "|+\n  a\n\n", ">\n  a\n  b\n\n  c", "|2\n   a\n"]
    data = "".join(f"  k{index}: {value}\n" for index, value in enumerate(values))
    data += "".join(
        f"  s{index}: {value.replace(chr(10), chr(10) + '  ')}\n"
        for index, value in enumerate(scripts)
    )
    text = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: traps}}\ndata:\n{data}"
    assert read_by_kubectl(rewritten(text)) == read_by_kubectl(text)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.recursive(
            st.text() | st.sampled_from(TRAPS) | st.integers() | st.booleans() | st.none(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
        min_size=1,
    ),
    st.booleans(),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, '"', "'", "|", ">"]),
)
def test_any_values_are_written_as_they_were_and_the_same_text_twice(
    value: dict[str, Any], allow_unicode: bool, flow: bool | None, style: str | None
) -> None:
    text = yaml.safe_dump(
        value, allow_unicode=allow_unicode, default_flow_style=flow, default_style=style
    )
    once = rewritten(text)
    assert yaml.safe_load(once) == yaml.safe_load(text)
    assert rewritten(once) == once


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.recursive(
            st.text() | st.just(0.5) | st.integers() | st.none() | st.booleans(),
            st.lists,
        ),
        min_size=1,
    )
)
def test_json_is_read_as_json(value: dict[str, Any]) -> None:
    text = json.dumps(value, indent="\t")
    (one,) = read(text)
    assert write(text, [one]) == text
    one.changed = True
    assert yaml.safe_load(write(text, [one])) == value


def test_what_is_added_is_read_as_what_it_is() -> None:
    (one,) = read("a: 1\n")
    texts = [
        *TRAPS,
        "",
        "a b",
        "a: b",
        "a #b",
        "#",
        "a:",
        ":a",
        "128Mi",
        "500m",
        "-p",
        "--set",
        "ü",
    ]
    assert isinstance(one.value, dict)
    one.value["texts"] = list(texts)
    one.value["others"] = {"number": 420, "yes": True, "none": None}
    one.changed = True
    value = document(write("a: 1\n", [one]))
    assert value == {
        "a": 1,
        "texts": texts,
        "others": {"number": 420, "yes": True, "none": None},
    }
    if KUBECTL:
        text = "apiVersion: v1\nkind: ConfigMap\n" + write("a: 1\n", [one])
        (seen,) = read_by_kubectl(text)
        assert seen["texts"] == texts


def test_aliases_and_merge_keys_are_written_out() -> None:
    text = dedent("""
        base: &base {image: a, env: &env [{name: A}]}
        one: {<<: *base, image: b}
        two: {<<: [{x: 1}, *base], env: *env}
    """)
    assert rewritten(text) == dedent("""
        base:
          image: a
          env:
          - name: A
        one:
          image: b
          env:
          - name: A
        two:
          image: a
          env:
          - name: A
          x: 1
    """)


def test_a_script_stays_a_script() -> None:
    text = (
        'a:\n- |\n  set -eu\n\n  # not a comment of YAML\'s\n  echo "$1"\n- |-\n   one\n    two\n'
    )
    assert rewritten(text) == (
        'a:\n- |\n  set -eu\n\n  # not a comment of YAML\'s\n  echo "$1"\n- |-\n  one\n   two\n'
    )


def test_long_texts_are_not_broken() -> None:
    text = f"a: {'x y ' * 200}end\n"
    assert rewritten(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--- {a: 1} # c\n\n# d\n---\nb: 1\n", "---\na: 1\n---\nb: 1\n"),
        ("  a: 1\n  b: 2\n", "a: 1\nb: 2\n"),
        ("a: |+\n  x\n\n---\nb: 1\n", "a: |+\n  x\n\n---\nb: 1\n"),
        ("a: |+\n  x\n\n...\n---\nb: 1\n", "a: |+\n  x\n\n...\n---\nb: 1\n"),
        ("%YAML 1.1\n---\na: 1", "%YAML 1.1\n---\na: 1\n"),
        ("--- !!map\na: 1\n", "---\na: 1\n"),
    ],
)
def test_what_stands_around_a_document_stays(text: str, expected: str) -> None:
    assert rewritten(text) == expected
    assert rewritten(expected) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n---\nb: [1\n", "document 2, line 4: this is not YAML"),
        ("a: 1\n---\nb: {{ .Values.b }}\n", "document 2, line 3: a mapping can't be a name"),
        ("a: 1\n{{- if .b }}\n", "a template (Helm, Jinja) has to be rendered first"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 'document 1, line 4: "c" stands twice, first in line 3'),
        ("a: !env X\n", "document 1, line 1: this YAML tag is not supported"),
        ("a: !!set {x}\n", "document 1, line 1: this YAML tag is not supported"),
        ("a: *x\n", "document 1, line 1: this is not YAML: found undefined alias"),
        ("a: 1\nb: \x01\n", "document 1, line 2: there is a control character"),
        ("a: &a [*a]\n", "document 1, line 1: an alias puts this into itself"),
        ("a: " + "[" * 2000, "document 1: it is nested too deeply"),
        ('a: "\\UFFFFFFFF"\n', "document 1: an escape in quotes is no character"),
        (
            "a: &a [x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{c}: &{c} [{','.join([f'*{b}'] * 8)}]\n"
                for b, c in zip("abcdefg", "bcdefgh", strict=True)
            ),
            "its aliases unfold to more than",
        ),
    ],
)
def test_what_can_not_be_read_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as raised:
        read(text)
    assert message in str(raised.value)


def test_files_are_joined_to_one_stream() -> None:
    assert join(["a: 1"]) == "a: 1"
    assert join(["a: 1", "b: 1\n", "---\nc: 1\n", "# x\nd: 1\n", ""]) == (
        "a: 1\n---\nb: 1\n---\nc: 1\n---\n# x\nd: 1\n---\n"
    )
    assert join(["", "a: 1\n"]) == "a: 1\n"


def test_looking_makes_nothing_and_asks_for_no_type() -> None:
    (one,) = read("a: {b: [{c: 0644}, '7'], d: ~, e: yes, f: 'true'}\n")
    value = one.value
    assert at(value, "a", "b", 7) is None
    assert at(value, "a", "d") is None
    assert at(value, "a", 0) is None
    assert at(value, "a", "b", "c") is None
    assert text_at(value, "a", "b", 0, "c") == "0644"
    assert number_at(value, "a", "b", 0, "c") == 420
    assert number_at(value, "a", "b", 1) is None
    assert number_at(value, "a", "e") is None
    assert true_at(value, "a", "e")
    assert not true_at(value, "a", "f")
    assert not true_at(value, "a", "b")


def test_fields_are_made_where_they_are_missing_or_null() -> None:
    (one,) = read("a:\nb: 1\nc: []\n")
    value = one.value
    assert isinstance(value, dict)
    mapping(value, "a")["x"] = "text"
    sequence(value, "d").append("z")
    assert sequence(value, "c") == []
    with pytest.raises(ManifestError, match="b must be a mapping"):
        mapping(value, "b")
    with pytest.raises(ManifestError, match="c must be a mapping"):
        mapping(value, "c")
    one.changed = True
    assert write("a:\nb: 1\nc: []\n", [one]) == "a:\n  x: text\nb: 1\nc: []\nd:\n- z\n"


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1337", 1337),
        ("0o2471", 1337),
        ("02471", 1337),
        ("0x539", 1337),
        ("1_337", 1337),
        ("+1337", 1337),
        ("1337.0", 1337),
        ("1.337e3", 1337),
        ("!!int 1337", 1337),
        ('!!int "1337"', 1337),
        ("22:17", None),
        ("'1337'", None),
        ("13.37", None),
        ("x", None),
        ("1e999", None),
    ],
)
def test_a_number_is_read_as_kubectl_reads_it(written: str, number: int | None) -> None:
    (one,) = read(f"a: {written}\n")
    assert number_at(one.value, "a") == number


@pytest.mark.parametrize("written", ["true", "Yes", "on", "y", '!!bool "true"', "!!bool yes"])
def test_a_truth_is_read_as_kubectl_reads_it(written: str) -> None:
    (one,) = read(f"a: {written}\n")
    assert true_at(one.value, "a")
