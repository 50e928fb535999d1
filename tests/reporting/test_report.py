"""`pointsman report`: the sums are those of the log's lines, the shares those of the rules."""

import gzip
import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from pointsman.cli import app
from pointsman.protocols.usage import Usage
from pointsman.reporting import showing
from pointsman.reporting.summing import TIMELINE, Durations, Report
from pointsman.telemetry.access_log import AccessLog
from pointsman.telemetry.exchange import Attempt, Exchange

RULES = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: east}
spec: {host: east.test}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: west}
spec: {host: west.test}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: spare}
spec: {host: spare.test}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {name: front}
spec:
  host: front
  rules:
  - name: split
    backendRefs:
    - {providerHost: east.test, weight: 3}
    - {providerHost: west.test, weight: 1}
    - {providerHost: spare.test, priority: 1}
"""


def exchange(provider: str = "east", *, first: str = "", **fields: Any) -> Exchange:
    attempts = [Attempt(p, f"{p}.test", 0.0, 0.1) for p in dict.fromkeys((first, provider)) if p]
    shown = {
        "route": "front",
        "rule": "split",
        "request_model": "m-1",
        "status": 200,
        "attempts": attempts,
        "usage": Usage(prompt_tokens=5, completion_tokens=3),
        "usage_source": "response",
        "cost_usd": 0.25,
        "ended": 0.2,
        "overhead": 0.0005,
        **fields,
    }
    return Exchange("r", "front", "POST", "/", None, started=0.0, provider=provider, **shown)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


def write(log: Path, exchanges: Iterable[Exchange]) -> None:
    written = AccessLog(str(log))
    for one in exchanges:
        written.emit(one)
    written.close()


def run(*arguments: str | Path, **how: Any) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)], **how)


def read(*arguments: str | Path, **how: Any) -> dict[str, Any]:
    done = run(*arguments, "--json", **how)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_sums_are_those_of_the_lines(log: Path) -> None:
    lost = exchange("west", status=None, error="client disconnected", flags=["DC"])
    failed = exchange("west", status=503, usage=None, usage_source=None, cost_usd=None)
    write(log, [*(exchange() for _ in range(6)), lost, failed])
    found = read(log)
    total = found["total"]
    assert (total["requests"], total["errors"]) == (8, 2)
    assert (total["prompt_tokens"], total["completion_tokens"]) == (35, 21)
    assert total["cost_usd"] == pytest.approx(1.75)
    assert total["without_usage"] == total["without_price"] == 0
    assert total["duration_ms"]["p50"] == pytest.approx(200, rel=0.02)
    assert total["overhead_ms"]["p99"] == pytest.approx(0.5, rel=0.02)
    assert total["time_to_first_token_ms"]["p50"] is None
    assert found["statuses"] == {"200": 6, "(none)": 1, "503": 1}
    assert found["flags"] == {"DC": 1}
    assert [(m["model"], m["provider"], m["requests"]) for m in found["models"]] == [
        ("m-1", "east", 6),
        ("m-1", "west", 2),
    ]


def test_a_share_is_of_first_choices_beside_what_the_rules_say(log: Path, tmp_path: Path) -> None:
    moved = [exchange("spare", first="west") for _ in range(2)]
    write(log, [*(exchange("east") for _ in range(6)), *moved])
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    rows = {row["provider"]: row for row in read(log, "--rules", rules)["rules"]}
    shares = {name: (row["share"], row["configured_share"]) for name, row in rows.items()}
    assert shares == {"east": (0.75, 0.75), "west": (0.25, 0.25), "spare": (0.0, 0.0)}
    assert (rows["west"]["requests"], rows["spare"]["requests"]) == (0, 2)
    assert rows["spare"]["failed_over"] == 2


def test_what_a_person_sends_again_is_in_no_share(log: Path) -> None:
    again = [exchange("west", replay=True) for _ in range(5)]
    write(log, [*(exchange("east") for _ in range(5)), *again])
    rows = {row["provider"]: row for row in read(log)["rules"]}
    assert {name: row["share"] for name, row in rows.items()} == {"east": 1.0, "west": 0.0}
    assert {name: row["requests"] for name, row in rows.items()} == {"east": 5, "west": 5}


def test_who_was_called_has_the_tokens_of_what_is_only_observed(log: Path) -> None:
    write(log, [exchange(flags=["OB"], attempts=[Attempt("own", "own.test", 0.0, 0.1)])])
    found = read(log)
    assert [model["provider"] for model in found["models"]] == ["own"]
    assert [(row["provider"], row["share"]) for row in found["rules"]] == [("east", 1.0)]


def test_a_retry_on_the_same_provider_is_no_failover(log: Path) -> None:
    again = [Attempt("east", "east.test", 0.0, 0.1, 503), Attempt("east", "east.test", 0.1, 0.2)]
    write(log, [exchange(attempts=again), exchange("west", first="east")])
    assert read(log)["total"]["failed_over"] == 1


SAME_NAME = """\
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {name: front, namespace: other}
spec:
  host: other.test
  rules:
  - name: split
    backendRefs: [{providerHost: east.test}]
"""


def test_routes_of_one_name_are_told_apart_by_the_rules(log: Path, tmp_path: Path) -> None:
    write(log, [exchange(), *(replace(exchange(), host="other.test") for _ in range(2))])
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES + SAME_NAME)
    rows = {
        (row["host"], row["provider"]): (row["requests"], row["share"], row["configured_share"])
        for row in read(log, "--rules", rules)["rules"]
    }
    assert rows == {
        ("front", "east"): (1, 1.0, 0.75),
        ("front", "west"): (0, 0.0, 0.25),
        ("front", "spare"): (0, 0.0, 0.0),
        ("other.test", "east"): (2, 1.0, 1.0),
    }
    assert re.search(r"front \(other\.test\) +split +east", run(log, "--rules", rules).stdout)
    assert [row["requests"] for row in read(log)["rules"]] == [3]


def test_hosts_that_clients_choose_take_no_place_from_the_rules(log: Path) -> None:
    nothing: dict[str, Any] = {"route": None, "rule": None, "attempts": [], "status": 403}
    refused = replace(exchange(**nothing), provider=None)
    hosts = [replace(refused, host=f"h{n}.test") for n in range(2500)]
    write(log, [exchange(), *hosts, *(exchange("west") for _ in range(3)), hosts[0]])
    found = read(log)
    rows = {(row["route"], row["provider"]): row for row in found["rules"]}
    assert {name: rows["front", name]["share"] for name in ("east", "west")} == {
        "east": 0.25,
        "west": 0.75,
    }
    assert rows["h0.test", "(none)"]["requests"] == 2
    assert rows["(other)", "(other)"]["requests"] == 500
    assert len(rows) == 2003


def test_rules_that_a_log_names_are_bounded_too(log: Path) -> None:
    write(log, [exchange(rule=f"r{n}") for n in range(2500)])
    rows = {row["rule"]: row["requests"] for row in read(log)["rules"]}
    assert (len(rows), rows["r0"], rows["(other)"]) == (2001, 1, 500)


def test_what_is_only_observed_or_mirrored_is_told_apart(log: Path) -> None:
    observed = exchange("east", first="front", flags=["OB"])
    write(log, [observed, exchange("west", mirror=True)])
    found = read(log)
    assert (found["total"]["requests"], found["total"]["observed"]) == (1, 1)
    assert found["total"]["mirrored"] == 1
    assert found["total"]["cost_usd"] == pytest.approx(0.5)
    shares = {row["provider"]: row["share"] for row in found["rules"]}
    assert shares == {"east": 1.0, "west": 0.0}


def test_lines_of_others_are_passed_over_and_broken_ones_told(log: Path) -> None:
    write(log, [exchange()])
    line = log.read_text()
    spaced = json.dumps(json.loads(line))
    log.write_text(
        f"{line}starting\n[pod/shop] {line}{spaced}\n{line[:200]}\n"
        '{"event":"llm_request","timestamp":5}\n{"event":"other","said":"llm_request"}\n'
    )
    found = read(log)
    assert (found["total"]["requests"], found["unread_lines"]) == (3, 2)
    assert "2 lines could not be read" in run(log).output


def test_logs_come_gzipped_and_by_standard_input_too(log: Path, tmp_path: Path) -> None:
    write(log, [exchange()])
    packed = tmp_path / "access.log.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    assert read(log, packed, "-", input=log.read_text())["total"]["requests"] == 3


def test_bytes_that_are_no_text_are_passed_over_in_all_of_them(log: Path, tmp_path: Path) -> None:
    write(log, [exchange()])
    log.write_bytes(b"\xff\n" + log.read_bytes())
    packed = tmp_path / "access.log.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    assert read(log, packed, "-", input=log.read_bytes())["total"]["requests"] == 3


def test_faults_say_what_and_where(log: Path, tmp_path: Path) -> None:
    assert run(log).exit_code == 2
    assert f"{log} can't be read (No such file or directory)" in run(log).output.replace("\n", "")
    log.write_text("nothing\n")
    empty = run(log)
    assert (empty.exit_code, "no LLM request in" in empty.output) == (1, True)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"x" * 1000)[:20])
    assert "cut short" in run(broken).output
    whole = bytearray(gzip.compress(os.urandom(1000)))
    whole[10] ^= 0xFF  # the first byte of what is packed
    broken.write_bytes(whole)
    damaged = run(broken)
    assert (damaged.exit_code, "it is damaged" in damaged.output) == (2, True)
    write(log, [exchange()])
    nowhere = run(log, "--html", tmp_path / "no" / "report.html")
    assert (nowhere.exit_code, "can't be written" in nowhere.output) == (2, True)


def test_a_terminal_gets_tables(log: Path) -> None:
    write(log, [exchange(), exchange("west", request_model="[red]m\x1b[2J")])
    said = run(log).stdout
    assert "2 requests, 0 errors, 16 tokens, $0.5000" in said
    assert re.search(r"front +split +east +50\.0% +\u2013 +1 +0 +0 +5 +3 +\$0\.250000", said)
    assert "[red]m" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_narrow_terminal_breaks_no_number(log: Path, width: int) -> None:
    name = "some-vendor/some-model-of-a-long-name-2026-01-31-preview"
    write(log, [exchange(ended=12.34, first_token=0.4321) for _ in range(1234)])
    write(log, [exchange("west", request_model=name)])
    found = Report()
    with log.open() as lines:
        found.read(lines)
    out = StringIO()
    showing.show(found, {}, Console(file=out, width=width, highlight=False))
    said = out.getvalue()
    assert all(len(line) <= width for line in said.splitlines())
    times = [showing._milliseconds(found.total, name) for name in ("duration", "overhead")]
    assert " / " in times[0]
    for number in ("1 234", "6 170", "3 702", "$308.50", "99.9%", *(times if width > 40 else [])):
        assert re.search(rf"(?<!\S){re.escape(number)}(?!\S)", said), number
    for part in name.split("/"):
        assert part[:20] in said.replace("\n", "")


def test_what_is_not_known_is_no_zero(log: Path) -> None:
    """Of calls that failed, of answers without usage, and of sums with some of these."""
    unknown: dict[str, Any] = {"usage": None, "usage_source": None, "cost_usd": None}
    write(log, [exchange("east", status=503, request_model="failed", **unknown)])
    write(log, [exchange("west", cost_usd=0.00001), exchange("west", **unknown)])
    write(log, [exchange("west", request_model="unpriced", cost_usd=None)])
    said = run(log).stdout
    assert re.search(r"east +failed +1 +1 +0 +\u2013 +\u2013 +\u2013 ", said)
    assert re.search(r"west +m-1 +2 +0 +0 +5\+ +3\+ +\$0\.000010\+ ", said)
    assert re.search(r"west +unpriced +1 +0 +0 +5 +3 +\u2013 ", said)
    assert "+ means more: 1 answer without token usage, 1 answer without a known list price" in said


def test_a_page_has_charts_and_no_script(log: Path, tmp_path: Path) -> None:
    write(log, [exchange(), exchange("west", request_model="<script>alert(1)</script>")])
    page = tmp_path / "report.html"
    assert "written" in run(log, "--html", page).stdout
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<svg" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "Split per rule" in text


def test_the_chart_of_a_page_has_numbers_and_leaves_no_provider_out(
    log: Path, tmp_path: Path
) -> None:
    write(log, [exchange(f"p{number}") for number in range(10) for _ in range(1 + (number < 7))])
    page = tmp_path / "report.html"
    run(log, "--html", page)
    chart = page.read_text().partition("<div class=chart>")[2].partition("<h2>")[0]
    assert chart.startswith("<p><span>17</span><span>0</span></p>")
    heights = [float(height) for height in re.findall(r'height="([0-9.]+)"', chart)]
    assert sum(heights) == 17
    assert "3 others" in chart
    assert len(re.findall(r"<span>[0-9-]{10} [0-9:]{8}Z</span>", chart)) == 2


@settings(deadline=None)
@given(st.lists(st.floats(min_value=0.01, max_value=1e7), min_size=1, max_size=200))
def test_a_quantile_is_right_within_its_bucket(values: list[float]) -> None:
    durations = Durations()
    for value in values:
        durations.add(value)
    exact = sorted(values)[-(-len(values) // 2) - 1]
    assert durations.quantile(0.5) == pytest.approx(exact, rel=0.026)


@settings(deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=10**8), min_size=1, max_size=100))
def test_the_timeline_loses_nothing_and_is_bounded(seconds: list[int]) -> None:
    report, start = Report(), datetime(2026, 1, 1, tzinfo=UTC)
    for second in seconds:
        report.timeline.add(start + timedelta(seconds=second), "east")
    steps = report.timeline.steps
    assert sum(counts["east"] for counts in steps.values()) == len(seconds)
    assert len(steps) <= TIMELINE


@pytest.mark.parametrize(
    "odd",
    [
        {"cost_usd": 10**400},
        {"cost_usd": -1.0},
        {"cost_usd": float("nan")},
        {"cost_usd": float("inf")},
        {"duration_ms": 10**400},
        {"request_prompt_tokens": 10**400},
        {"request_prompt_tokens": -5},
        {"request_prompt_tokens": "5"},
        {"provider": "\ud800x"},
        {"timestamp": "0001-01-01T00:00:00+14:00"},
        {"timestamp": "9999-12-31T23:59:59-14:00"},
    ],
    ids=lambda odd: str(odd)[:40],
)
def test_an_odd_line_is_not_counted_and_spoils_nothing(
    log: Path, tmp_path: Path, odd: dict[str, Any]
) -> None:
    write(log, [exchange()])
    line = json.loads(log.read_text())
    with log.open("a") as file:
        file.write(json.dumps({**line, **odd}) + "\n")
    found = read(log)
    assert (found["total"]["requests"], found["unread_lines"]) == (1, 1)
    assert run(log).exit_code == run(log, "--html", tmp_path / "r.html").exit_code == 0


def test_a_name_that_looks_like_markup_is_shown_as_it_is(log: Path) -> None:
    write(log, [exchange(request_model="\\[/foo][red]m")])
    assert "\\[/foo][red]m" in run(log).stdout


def test_no_key_is_needed_for_the_shares(log: Path, tmp_path: Path) -> None:
    write(log, [exchange()])
    rules = tmp_path / "rules.yaml"
    configs = "configs: {defaultConfig: {openAIConfig: {model: m, apiKey: '${NO_SUCH_KEY}'}}}"
    rules.write_text(
        RULES.replace("spec: {host: east.test}", f"spec: {{host: east.test, {configs}}}")
    )
    assert read(log, "--rules", rules)["rules"][0]["configured_share"] == 0.75
