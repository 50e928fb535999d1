"""A real browser for the pages: headless Chromium, driven by Playwright.

Tests take the fixture `page`, which is in conftest; without a Chromium they are skipped. With
`POINTSMAN_SCREENSHOTS` set to a folder, `screenshot` leaves pictures there for the documentation.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.harness import DEADLINE

_NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1440, 800


# No longer than a module: as long as Playwright runs, so does an event loop in this thread, and the
# `asyncio.run` of other tests would fail.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for the tests of a module."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(_NAMES)} is installed")
    expect.set_options(timeout=DEADLINE * 1000)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--no-proxy-server"]
        launched = playwright.chromium.launch(executable_path=program, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in a fresh profile, whose every wait is bounded. It may call no one but this host."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    context.set_default_timeout(DEADLINE * 1000)
    called: list[str] = []
    context.on("request", lambda request: called.append(request.url))
    opened = context.new_page()
    yield opened
    context.close()
    local = ("http://127.0.0.1:", "http://localhost:", "data:", "blob:")
    abroad = [url for url in called if not url.startswith(local)]
    assert not abroad, f"the page called others: {abroad}"


def screenshot(shown: Page, name: str, height: int = HEIGHT) -> None:
    """Write `name`.png, of that height, into the folder of screenshots, if one is asked for."""
    if folder := os.environ.get("POINTSMAN_SCREENSHOTS"):
        shown.set_viewport_size({"width": WIDTH, "height": height})
        shown.wait_for_function("document.fonts.status === 'loaded'")
        shown.screenshot(path=Path(folder) / f"{name}.png")
