import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pointsman.config import documents, yaml_values
from pointsman.config.documents import Reading, read

HEAD = "apiVersion: our.group/v1\nkind: Thing\n"


def read_text(tmp_path: Path, text: str | bytes, name: str = "a.yaml") -> Reading:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(file, "our.group")


def spec(tmp_path: Path, text: str) -> Any:
    reading = read_text(tmp_path, f"{HEAD}spec: {text}\n")
    assert reading.problems == []
    return reading.documents[0].at("spec")


def fault(tmp_path: Path, text: str | bytes) -> tuple[int | None, str]:
    reading = read_text(tmp_path, text)
    assert len(reading.problems) == 1
    return reading.problems[0].line, reading.problems[0].message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{on: [yes, no, off, On]}", {"on": ["yes", "no", "off", "On"]}),
        ("[true, False, TRUE]", [True, False, True]),
        ("[2024-01-01, 12:30, 1_000]", ["2024-01-01", "12:30", "1_000"]),
        ("[.nan, .inf, 1e]", [".nan", ".inf", "1e"]),
        ("[1, -2, 0x10, 0o17, 0123]", [1, -2, 16, 15, 123]),
        ("[1.5, 1e3, .5, 1., -1E-1]", [1.5, 1000.0, 0.5, 1.0, -0.1]),
        ("[~, null, '', ]", [None, None, ""]),
        ("{429: a, true: b, null: c, 1.0: d}", {"429": "a", "true": "b", "null": "c", "1.0": "d"}),
        ('["1", !!str 2, "\\ud83d\\ude00", 数]', ["1", "2", "😀", "数"]),
        ("[&a {x: 1, y: 1}, {<<: *a, y: 2}]", [{"x": 1, "y": 1}, {"x": 1, "y": 2}]),
        (
            "[&a {x: 1}, &b {x: 2, z: 2}, {<<: [*a, *b]}]",
            [{"x": 1}, {"x": 2, "z": 2}, {"x": 1, "z": 2}],
        ),
    ],
)
def test_yaml_reads_as_kubernetes_writes_it(tmp_path: Path, text: str, value: object) -> None:
    assert spec(tmp_path, text) == value


def test_a_file_may_hold_several_documents_and_empty_ones(tmp_path: Path) -> None:
    reading = read_text(tmp_path, f"---\n---\n{HEAD}---\n# nothing\n---\n{HEAD}---\n")
    assert [d.line(()) for d in reading.documents] == [3, 8]
    assert reading.complete


def test_a_list_is_unrolled(tmp_path: Path) -> None:
    item = "- {apiVersion: our.group/v1, kind: Thing, metadata: {name: %s}}\n"
    text = f"apiVersion: v1\nkind: List\nitems:\n{item % 'a'}{item % 'b'}"
    reading = read_text(tmp_path, text)
    assert [(d.label, d.line(())) for d in reading.documents] == [("Thing/a", 4), ("Thing/b", 5)]


def test_json_may_be_indented_by_tabs(tmp_path: Path) -> None:
    text = '{\n\t"apiVersion": "our.group/v1",\n\t"kind": "Thing",\n\t"spec": {"a": "x\\ty"}\n}'
    reading = read_text(tmp_path, text, "a.json")
    assert reading.documents[0].at("spec", "a") == "x\ty"
    assert reading.documents[0].line(("spec",)) == 4


def test_every_field_knows_its_line_and_a_missing_one_that_of_its_parent(tmp_path: Path) -> None:
    text = f"{HEAD}spec:\n  rules:\n  - name: a\n    to:\n    - host: x\n      weight: 1\n"
    document = read_text(tmp_path, text).documents[0]
    assert document.line(("spec", "rules", 0, "to", 0, "weight")) == 8
    assert document.line(("spec", "rules", 0, "TO")) == 6
    assert document.line(("spec", "rules", 0, "from", "where")) == 5
    assert document.line(("spec", "rules", 7)) == 4
    assert document.line(("status", "x")) == 1


def test_documents_of_other_groups_are_not_looked_into(tmp_path: Path) -> None:
    reading = read_text(tmp_path, "apiVersion: v1\nkind: Secret\ndata: {a: 1, a: 2, b: !x y}\n")
    assert reading.problems == []
    assert reading.documents[0].kind == "Secret"


@pytest.mark.parametrize(
    ("text", "line", "gist"),
    [
        ("a: b: c", 1, "mapping values are not allowed here"),
        (f"{HEAD}spec:\n\t- x", 4, "a tab can't indent YAML; use spaces"),
        (f"{HEAD}spec: [1, 2", 3, "this is not YAML"),
        (f"{HEAD}spec: *x", 3, "a text with * must be quoted"),
        (f"{HEAD}spec: \x01", 3, "control character"),
        (f'{HEAD}spec: "\\ud800"', 3, "half a character"),
        (f'{HEAD}spec: "\\UFFFFFFFF"', None, "no character"),
        (f"{HEAD}spec: !secret x", 3, "tag is not supported"),
        (f"{HEAD}spec: !secret [x]", 3, "tag is not supported"),
        (f"{HEAD}spec: {{{{ .Values.x }}}}", 3, "must be quoted, and a template rendered first"),
        (f"{HEAD}spec: {'9' * 5000}", 3, "not a number that can be used"),
        (f"{HEAD}spec: 1e999", 3, "too large"),
        (f"{HEAD}spec:\n  <<: 1", 4, "<< takes a mapping"),
        (f"{HEAD}spec: {'[' * 3000}", None, "nested too deeply"),
        ("- 1\n- 2", 1, "begins with apiVersion and kind"),
        ("text", 1, "begins with apiVersion and kind"),
        ("# c\nkind: Thing", 2, "without apiVersion this is no manifest"),
        ("apiVersion: our.group/v1\nkind:", 1, "without kind this is no manifest"),
        ("a: 1", 1, "without apiVersion and kind this is no manifest"),
        (b"\xff\xfe\x00", None, "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(
    tmp_path: Path, text: str | bytes, line: int | None, gist: str
) -> None:
    found, message = fault(tmp_path, text)
    assert found == line
    assert gist in message


def test_documents_before_a_syntax_error_are_still_read(tmp_path: Path) -> None:
    reading = read_text(tmp_path, f"{HEAD}---\na: b: c\n")
    assert len(reading.documents) == 1
    assert not reading.complete


def test_a_name_that_stands_twice_is_an_error_with_both_lines(tmp_path: Path) -> None:
    reading = read_text(tmp_path, f"{HEAD}metadata: {{name: x}}\nspec:\n  a: 1\n  b: 2\n  a: 3\n")
    (problem,) = reading.problems
    assert (problem.line, problem.resource) == (7, "Thing/x")
    assert problem.message == '"a" stands twice, first in line 5'


def nested(first: str, template: str) -> str:
    """Write a list whose elements hold their predecessor nine times each."""
    elements = [f"&a {first}"]
    for inner, outer in pairwise("abcdefgh"):
        elements.append(f"&{outer} " + template.replace("INNER", ", ".join([f"*{inner}"] * 9)))
    return f"[{', '.join(elements)}]"


@pytest.mark.parametrize(
    "spec",
    [
        "&x [*x]",
        "&x {a: *x}",
        "&x {<<: *x}",
        nested("[1]", "[INNER]"),
        nested("{x: 1}", "{y: [INNER]}"),
        nested("{x: 1, y: 2}", "{<<: [INNER], z: [INNER]}"),
    ],
)
def test_aliases_do_not_explode(tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_values, "_MAX_VALUES", 300)
    _, message = fault(tmp_path, f"{HEAD}spec: {spec}\n")
    assert "alias" in message


def test_a_list_of_lists_of_aliases_does_not_explode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_values, "_MAX_VALUES", 300)
    text = "apiVersion: v1\nkind: List\nitems:\n- &a {apiVersion: v1, kind: Service}\n"
    for inner, outer in pairwise("abcdefgh"):
        items = ", ".join([f"*{inner}"] * 9)
        text += f"- &{outer} {{apiVersion: v1, kind: List, items: [{items}]}}\n"
    assert "aliases unfold" in fault(tmp_path, text)[1]


def test_a_file_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MAX_BYTES", 4 * 1024 * 1024)
    assert fault(tmp_path, b"#" * (4 * 1024 * 1024 + 1)) == (
        None,
        "it is larger than 4 MiB; mend it or take it out of the folder",
    )


def test_a_pipe_or_a_dangling_symlink_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("nowhere")
    assert "not a file" in read(tmp_path / "pipe.yaml", "g").problems[0].message
    assert "no such file" in read(tmp_path / "link.yaml", "g").problems[0].message
