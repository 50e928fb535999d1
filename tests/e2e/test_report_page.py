"""The page that `pointsman report --html` writes, as a browser shows it."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page
from typer.testing import CliRunner

from pointsman.cli import app
from tests.reporting.test_report import exchange, write

pytestmark = pytest.mark.e2e

LONG = "a-provider-of-models/with-a-path/and-a-model-of-a-long-name-2026-01-31"


@pytest.fixture
def report(page: Page, tmp_path: Path) -> Page:
    """A page about models, routes and providers of long names."""
    log, written = tmp_path / "access.log", tmp_path / "report.html"
    calls = [exchange(f"{name}-{LONG}", request_model=LONG, route=LONG) for name in ("a", "b")]
    write(log, calls)
    done = CliRunner().invoke(app, ["report", str(log), "--html", str(written)])
    assert done.exit_code == 0, done.output
    page.set_content(written.read_text())
    return page


def edges(place: Locator) -> tuple[float, float]:
    box = place.bounding_box()
    assert box is not None
    return box["x"], box["x"] + box["width"]


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_long_names_leave_room_for_numbers_and_bars(report: Page, width: int) -> None:
    report.set_viewport_size({"width": width, "height": 900})
    assert report.evaluate("document.documentElement.scrollWidth") == width
    models = report.locator("h2", has_text=re.compile("By provider and model")).locator("+ div")
    _, end = edges(models.get_by_role("columnheader", name="requests"))
    assert end <= width
    for bar in report.locator(".track").all():
        start, end = edges(bar)
        assert end - start > width / 3
