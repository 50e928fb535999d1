"""What each API's exchanges look like, to the letter.

After a wanted change, run with `WRITE_GOLDEN=1` and read the difference.
"""

import os

import mitmproxy_rs.syntax_highlight
import pytest
import yaml

from tests.viewing.conftest import ALL, Case

LINE = "-" * 40 + "\n"


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_an_exchange_looks_as_it_should(case: Case) -> None:
    shown = case.show_request() + LINE + case.show_answer()
    if os.environ.get("WRITE_GOLDEN"):
        case.golden.write_text(shown, encoding="utf-8")
    assert shown == case.golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_an_exchange_can_be_parsed_as_yaml(case: Case) -> None:
    assert isinstance(yaml.safe_load(case.show_request()), dict)
    assert isinstance(yaml.safe_load(case.show_answer()), dict)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_an_exchange_can_be_highlighted_by_the_console(case: Case) -> None:
    for text in (case.show_request(), case.show_answer()):
        chunks = mitmproxy_rs.syntax_highlight.highlight(text, "yaml")
        assert "".join(part for _, part in chunks) == text
        assert "error" not in {kind for kind, _ in chunks}
