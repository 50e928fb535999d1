"""The page's files: what is served as what, by which policy, and that a wheel has them."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from pointsman.admin.assets import PAGE_POLICY, assets
from pointsman.admin.server import Server
from tests.admin.test_server import Told, served

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "addon" / "pointsman" / "admin" / "page"
UPLOT = PAGE / "vendor" / "uplot-1.6.32"


def test_each_file_has_its_type_and_the_policy() -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        for path, kind in (
            ("/", "text/html; charset=utf-8"),
            ("/page/app.js", "text/javascript; charset=utf-8"),
            ("/page/style.css", "text/css; charset=utf-8"),
            ("/page/icon.svg", "image/svg+xml"),
            ("/page/vendor/uplot-1.6.32/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
        ):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == kind
            assert answer.headers["content-security-policy"] == PAGE_POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-cache"
            assert "server" not in answer.headers
            head = await client.head(path)
            assert head.status_code == 200
            assert head.content == b""
            assert head.headers["content-length"] == str(len(answer.content))
            again = await client.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            refused = await client.post(path)
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
            strange = await client.get(path, headers={"host": "evil.example"})
            assert strange.status_code == 403

    served(Told(), play)


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/index.html", "/page/../server.py", "/page/%2e%2e/server.py", "/page/x.js"],
)
def test_nothing_else_is_served(path: str) -> None:
    async def play(_: Server, client: httpx.AsyncClient) -> None:
        assert (await client.get(path)).status_code == 404

    served(Told(), play)


def test_the_policy_lets_nothing_inline_run() -> None:
    assert "unsafe" not in PAGE_POLICY
    assert PAGE_POLICY.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index)


def test_every_file_that_is_named_is_there() -> None:
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', index)
    assert len(named) >= 5
    modules = re.findall(
        r'from "\./([^"]+)"', "".join(p.read_text(encoding="utf-8") for p in PAGE.glob("*.js"))
    )
    for path in (*named, *(f"page/{module}" for module in modules)):
        assert f"/{path}" in assets()


def test_no_script_makes_markup_of_strings() -> None:
    for path in PAGE.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.search(r"https?://(?!127\.0\.0\.1|api\.openai\.com)", text), path


def test_the_chart_library_has_its_licence() -> None:
    assert "MIT License" in (UPLOT / "LICENSE").read_text(encoding="utf-8")
    script = (UPLOT / "uPlot.iife.min.js").read_text(encoding="utf-8")
    assert "v1.6.32" in script[:400]


def test_a_wheel_has_the_page(tmp_path: Path) -> None:
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path for path in PAGE.rglob("*") if path.is_file()}
    assert UPLOT / "LICENSE" in files
    for path in files:
        assert str(path.relative_to(ROOT / "addon")) in names
