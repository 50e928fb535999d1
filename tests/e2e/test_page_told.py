"""What the page makes of a snapshot that traffic would take long to bring about."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from pointsman.protocols.usage import Usage
from pointsman.telemetry.exchange import Attempt, DecisionRecord, Exchange, RuleVerdict
from pointsman.telemetry.live import LAST_EXCHANGES, PER_DOUBLING, ROWS, SLOTS, Live, quantile
from pointsman.telemetry.reading import Reading, TargetReading
from pointsman.telemetry.verdicts import is_error, is_failed_over
from tests.e2e.conftest import KEYS
from tests.e2e.harness import Far
from tests.e2e.traffic import Traffic

pytestmark = pytest.mark.e2e


@pytest.fixture
def traffic(confdir: Path, far_ends: dict[str, Far], tmp_path: Path) -> Iterator[Traffic]:
    with Traffic.running(confdir, tmp_path, far_ends, KEYS) as running:
        yield running


def show(page: Page, live: Live, *targets: TargetReading) -> None:
    """Let the proxy seem to tell this."""
    told = {"ready": True, "reasons": [], "warnings": []}
    state = {**live.snapshot(None, Reading(targets=targets)), "readiness": told}
    event = f"event: state\ndata: {json.dumps(state)}\n\n"

    def answer(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body=event)

    page.route("**/api/events", answer)


def ended(**fields: object) -> Exchange:
    return Exchange("r", "h.test", "POST", "/v1", None, started=0.0, ended=1.0, **fields)  # type: ignore[arg-type]


def test_it_tells_what_happened(traffic: Traffic, page: Page) -> None:
    now = [time.time() - 10]
    live = Live(lambda: now[0])
    live.rules_live(
        [TargetReading("r", "all", "constructor", host=h) for h in ("a.test", "b.test")]
    )
    dead = Attempt("dead", "dead.test", 0.0, 1.0, error="connect error")
    failed = {"provider": "dead", "attempts": [dead], "status": 502, "flags": ["UF"]}
    live.record(ended(**failed, error="upstream_failure"))
    live.record(ended(flags=["DC"]))
    live.record(ended(provider="constructor", route="r", rule="all", route_host="a.test"))
    refused = Exchange("c", "api.test", "", "", None, started=0.0, ended=1.0)
    refused.status, refused.flags = 403, ["UAEX"]
    live.record(refused)
    now[0] += 10  # a slot that is being filled is not drawn
    targets = [TargetReading("r", "all", "constructor", host=host) for host in ("a.test", "b.test")]
    show(page, live, *targets)
    page.goto(f"http://{traffic.proxy.admin}/")
    rows, detail = page.locator("#list tbody tr"), page.locator("#detail")
    expect(rows).to_have_count(4)
    for number, text in (
        (0, "the host is not allowed"),
        (0, "It was refused before any rule was looked at."),
        (2, "The client left after"),
        (3, "Pointsman answered with 502 after 1.00 s: dead failed."),
        (3, "Upstream failure."),
    ):
        rows.nth(number).click()
        expect(detail).to_contain_text(text)
        expect(detail).not_to_contain_text("null/")
    for name in ("tokens", "prompt_tokens", "cost_usd"):
        expect(page.locator(f'[data-total="{name}"]')).to_have_text("\N{EN DASH}")
    same = page.locator('#rules .rule[data-route="r"]')
    expect(same).to_have_count(2)
    expect(same.locator(".sum")).to_have_text(["1", "0"])
    expect(page.locator("#chart-requests .legend")).to_contain_text("constructor")
    expect(page.locator("#chart-requests .legend")).not_to_contain_text("NaN")


def test_it_tells_why_a_cost_is_unknown(traffic: Traffic, page: Page) -> None:
    """What failed is none of the answers that are missing in the cost."""
    live = Live()
    tried = {"provider": "p", "attempts": [Attempt("p", "p.test", 0.0, 1.0)], "request_model": "m"}
    live.record(ended(**tried, status=200, usage=Usage(3, 4), cost_usd=0.5))
    live.record(ended(**tried, status=503))
    live.record(ended(**tried, status=200, usage=Usage(3, 4)))
    live.record(ended(**tried, status=200))
    live.record(ended(status=404, flags=["NR"]))
    show(page, live)
    page.goto(f"http://{traffic.proxy.admin}/")
    rows, detail = page.locator("#list tbody tr"), page.locator("#detail")
    for number, text in enumerate(
        (
            "none: no provider was asked",
            "unknown: its tokens are not known",
            "unknown: there is no list price",
            "unknown: its tokens are not known",
            "$0.500000 by list price",
        )
    ):
        rows.nth(number).click()
        expect(detail).to_contain_text(text)
    expect(page.locator("#totals .tile", has_text="Cost")).to_contain_text(
        "by list price · 1 answer without a known price · 1 answer without token usage"
    )


def test_a_time_that_is_none_keeps_nothing_from_being_shown(traffic: Traffic, page: Page) -> None:
    show(page, Live())
    told = {"rules": "rules", "outdated": {"since": None, "problems": ["it is away"]}, "routes": []}
    page.route("**/config", lambda route: route.fulfill(json=told))
    page.goto(f"http://{traffic.proxy.admin}/")
    expect(page.locator("#notices")).to_contain_text("Since \N{EN DASH}:")
    expect(page.locator("#notices")).to_contain_text("it is away")
    expect(page.locator("#totals .tile")).to_have_count(6)


def test_the_endpoints_of_a_backend_are_told(traffic: Traffic, page: Page) -> None:
    live = Live()
    targets = [
        TargetReading("r", "all", "vllm", endpoints=3, ejected_endpoints=1),
        TargetReading("r", "all", "small", endpoints=1),
        TargetReading("r", "all", "empty", endpoints=0, state="ejected"),
        TargetReading("r", "all", "openai"),
    ]
    live.rules_live(targets)
    show(page, live, *targets)
    page.goto(f"http://{traffic.proxy.admin}/")
    for provider, told, state in (
        ("vllm", "vllm 1 of 3 endpoints ejected", "healthy, 1 of 3 endpoints ejected"),
        ("small", "small 1 endpoint", "healthy, 1 endpoint"),
        ("empty", "empty no endpoint", "ejected, no endpoint"),
        ("openai", "openai", "healthy"),
    ):
        target = page.locator(f'.target[data-provider="{provider}"]')
        expect(target.locator(".to")).to_have_text(told)
        expect(target.locator(".health")).to_have_attribute("aria-label", state)


def test_names_as_long_as_they_come_need_no_scrolling_sideways(
    traffic: Traffic, page: Page
) -> None:
    route, rule, provider, other = (letter * 150 for letter in "abcd")
    target = TargetReading(route, rule, provider, host="e" * 60)
    live = Live()
    live.rules_live([target])
    failed = Attempt(provider, "h", 0.0, 0.5, error="f" * 150)
    live.record(
        ended(
            route=route,
            route_host="e" * 60,
            rule=rule,
            provider=other,
            **dict.fromkeys(("request_model", "client_model", "provider_host"), "g" * 200),
            attempts=[failed, Attempt(other, "h", 0.5, 1.0, status=200)],
            decision=DecisionRecord(
                (RuleVerdict(rule, matched=True, reason="i" * 200),),
                0.5,
                (provider, other),
                (other,),
            ),
        )
    )
    show(page, live, target)
    for width in (360, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"http://{traffic.proxy.admin}/")
        page.locator("#list tbody tr").first.click()
        expect(page.locator("#detail")).to_contain_text("Skipped, as ejected")
        for element in ("html", "#detail", "#rules", "#models"):
            wide = "element => element.scrollWidth > element.clientWidth"
            assert page.locator(element).evaluate(wide) is False, f"{element} at {width}"


# --- the page's own code, beside ours -------------------------------------------------------------


@pytest.fixture(scope="module")
def code(
    browser: Browser,
    confdir: Path,
    far_ends: dict[str, Far],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Page]:
    """The page, with the modules of its code at hand: `m.words`, `m.state`, `m.format`."""
    folder = tmp_path_factory.mktemp("code")
    with Traffic.running(confdir, folder, far_ends, KEYS) as running:
        page = browser.new_page()
        page.goto(f"http://{running.proxy.admin}/")
        page.evaluate(
            """async () => {
                const load = (name) => import(`/page/${name}.js`);
                window.m = {
                    words: await load("words"),
                    state: await load("state"),
                    format: await load("format"),
                };
            }"""
        )
        yield page
        page.close()


def test_it_calls_the_same_an_error_and_a_failover_as_we_do(code: Page) -> None:
    outcomes = [
        (status, error)
        for status in (None, 200, 204, 399, 400, 404, 503)
        for error in (None, "", "upstream_failure")
    ]
    found = code.evaluate(
        "all => all.map(([status, error]) => m.words.isError({status, error}))", outcomes
    )
    assert found == [is_error(*outcome) for outcome in outcomes]
    tried = [[], ["a"], ["a", "a"], ["a", "b"], ["a", "b", "a"]]
    found = code.evaluate(
        "all => all.map(of => m.words.failedOver({attempts: of.map(provider => ({provider}))}))",
        tried,
    )
    assert found == list(map(is_failed_over, tried))


def test_it_reads_a_snapshot_as_we_write_it(code: Page) -> None:
    assert code.evaluate("m.state.ROWS") == {name: list(key) for name, key in ROWS.items()}
    assert code.evaluate("m.state.LAST_EXCHANGES") == LAST_EXCHANGES
    assert code.evaluate("m.state.SLOTS_KEPT") >= SLOTS
    assert code.evaluate("m.state.PER_DOUBLING") == PER_DOUBLING
    buckets = [{}, {"0": 1}, {"-9": 3, "4": 1, "20": 90, "30": 6}, {"10": 1, "9": 1}]
    for q in (0.5, 0.95, 0.99):
        found = code.evaluate(
            "([all, q]) => all.map(one => m.state.quantile(one, q))", [buckets, q]
        )
        assert found == [quantile(one, q) for one in buckets]


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0.00 ms"),
        (9.994, "9.99 ms"),
        (9.996, "10 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (9994, "9.99 s"),
        (9996, "10.0 s"),
        (59_940, "59.9 s"),
        (59_999.9, "1 min 0 s"),
        (119_800, "2 min 0 s"),
        (185_000, "3 min 5 s"),
    ],
)
def test_a_duration_is_rounded_before_its_unit_is_chosen(
    code: Page, milliseconds: float | None, text: str
) -> None:
    assert code.evaluate("ms => m.format.duration(ms)", milliseconds) == text


def test_a_size_is_rounded_before_its_unit_is_chosen(code: Page) -> None:
    for size, text in (
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
    ):
        assert code.evaluate("size => m.format.bytes(size)", size) == text
