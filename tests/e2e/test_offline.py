"""What a proxy leaves behind, its capture and its log, read again by `replay` and `report`."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pointsman.cli import app
from tests.e2e.conftest import StartProxy
from tests.e2e.harness import Far, chat, llm_route, to, write_rules

pytestmark = pytest.mark.e2e


def run(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("option", ["save_stream_file", "hardump"])
def test_a_capture_replays_as_it_was_routed_and_the_log_sums_up(
    start_proxy: StartProxy, openai: Far, moonshot: Far, tmp_path: Path, option: str
) -> None:
    far = (openai.manifest(), moonshot.manifest())
    both = llm_route("front", "front", to("api.openai.com", "api.moonshot.cn"))
    rules = write_rules(tmp_path / "rules", *far, both)
    capture = tmp_path / ("saved.har" if option == "hardump" else "saved.mitm")
    proxy = start_proxy(rules, "--set", f"{option}={capture}")
    with proxy.client() as client:
        for _ in range(6):
            assert client.post("http://front/", json=chat(model="m")).status_code == 200
        stream = client.post("http://api.openai.com/", json=chat(model="m", stream=True))
        assert stream.status_code == 200
    entries = proxy.logged(7)
    proxy.stop()
    old = write_rules(
        tmp_path / "old", *far, llm_route("front", "front", to("api.moonshot.cn")), name="old.yaml"
    )
    replayed = run("replay", capture, "--rules", rules, "--against", old)
    assert replayed["outcomes"] == {"re-routed": 6, "routed": 1}
    assert replayed["changes"] == {"moved": 6, "same": 1}

    log = tmp_path / "access.log"
    log.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    summed = run("report", log)
    assert summed["total"]["requests"] == 7
    tokens = sum(entry["request_completion_tokens"] for entry in entries)
    assert summed["total"]["completion_tokens"] == tokens > 0
    counted = Counter(entry["provider"] for entry in entries if entry["route"] == "front")
    assert set(counted) == {"openai", "moonshot"}
    shares = {row["provider"]: row["share"] for row in summed["rules"] if row["route"] == "front"}
    assert shares == {name: count / 6 for name, count in counted.items()}
