"""The page of the admin endpoint in a real browser, with live traffic."""

import os
import random
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect

from pointsman.demo.provider import Reply
from tests.e2e.browser import screenshot
from tests.e2e.conftest import KEYS, StartFar, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Json,
    Proxy,
    chat,
    closed_port,
    llm_provider,
    llm_route,
    openai_config,
    said,
    to,
    trusting,
    write_rules,
)
from tests.e2e.http2 import Http2Client
from tests.e2e.sidecar import Sidecar
from tests.e2e.traffic import Traffic

pytestmark = pytest.mark.e2e

ADMIN = ("--set", "llm_admin=127.0.0.1:0")
URL = "https://api.openai.com/v1/chat/completions"
HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"

type Sums = dict[tuple[str, ...], float]


# --- a browser that complains ---------------------------------------------------------------------


class Complaints:
    """What a browser finds wrong with a page, and where it went."""

    def __init__(self, page: Page) -> None:
        self.told: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.told.append(str(error)))
        page.on("dialog", lambda dialog: self.told.append(f"dialog: {dialog.message}"))
        page.on("request", self._request)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', event => console.error("
            "'policy: ' + event.violatedDirective + ' ' + event.blockedURI + event.sample))"
        )

    def _console(self, message: ConsoleMessage) -> None:
        # That the proxy is gone is told by the browser itself, too.
        if message.type in ("error", "warning") and "net::ERR" not in message.text:
            self.told.append(message.text)

    def _request(self, request: Request) -> None:
        self.requests.append(request.url)

    def assert_none(self, origin: str) -> None:
        assert self.told == []
        abroad = [url for url in self.requests if not url.startswith((f"{origin}/", "data:"))]
        assert abroad == []


@pytest.fixture
def shown(page: Page) -> Iterator[Callable[[str], Page]]:
    """Open the page of an admin endpoint; at the end the browser must have found nothing wrong."""
    complaints = Complaints(page)
    origins: list[str] = []

    def show(admin: str) -> Page:
        origins.append(f"http://{admin}")
        page.goto(f"{origins[0]}/")
        live(page)
        return page

    yield show
    complaints.assert_none(*origins)


def live(page: Page) -> None:
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#totals .tile")).to_have_count(6)


# --- what stands on it ----------------------------------------------------------------------------


def number(text: str) -> float:
    return float(text.replace(",", "").replace("$", "").replace("\N{EN DASH}", "0").strip("< "))


def total(page: Page, name: str) -> Locator:
    return page.locator(f'[data-total="{name}"]')


def cells(page: Page, field: str) -> Sums:
    """Return one column of the table of models, by provider and model."""
    rows = page.locator("#models tr.model")
    return {
        (row.get_attribute("data-provider") or "", row.get_attribute("data-model") or ""): number(
            row.locator(f'[data-is="{field}"]').inner_text()
        )
        for row in rows.all()
    }


def splits(page: Page) -> Sums:
    """Return the requests that each target of a rule has had."""
    return {
        (
            rule.get_attribute("data-route") or "",
            rule.get_attribute("data-rule") or "",
            target.get_attribute("data-provider") or "",
        ): number(target.locator(".requests").inner_text())
        for rule in page.locator("#rules .rule").all()
        for target in rule.locator(".target").all()
    }


def summed(
    entries: Iterable[Json], field: str | None, key: Callable[[Json], tuple[str, ...]]
) -> Sums:
    sums: Sums = defaultdict(float)
    for entry in entries:
        sums[key(entry)] += 1 if field is None else entry[field] or 0
    return sums


def by_model(entry: Json) -> tuple[str, ...]:
    model = entry["response_model"] or entry["request_model"]
    return entry["provider"] or "", model or ""


def by_rule(entry: Json) -> tuple[str, ...]:
    route = entry["route"] or entry["provider_host"] or entry["host"]
    return route, entry["rule"] or "", entry["provider"] or ""


def is_error(entry: Json) -> bool:
    return entry["status"] is None or entry["status"] >= 400 or entry["error"] is not None


def assert_equal(page: Page, lines: list[Json]) -> None:
    """Assert that the page tells what these lines of the log add up to."""
    entries = [line for line in lines if not line.get("mirror")]
    expect(total(page, "requests")).to_have_text(f"{len(entries):,}")
    expect(total(page, "errors")).to_have_text(f"{sum(map(is_error, entries)):,}")
    for shown, field in (
        ("prompt_tokens", "request_prompt_tokens"),
        ("completion_tokens", "request_completion_tokens"),
    ):
        everything = sum(line[field] or 0 for line in lines)
        expect(total(page, shown)).to_have_text(f"{everything:,}")
        assert cells(page, shown) == dict(summed(lines, field, by_model))
    cost = sum(line["cost_usd"] or 0 for line in lines)
    assert number(total(page, "cost_usd").inner_text()) == pytest.approx(cost, abs=1e-6)
    assert cells(page, "cost_usd") == pytest.approx(
        dict(summed(lines, "cost_usd", by_model)), abs=1e-6
    )
    assert cells(page, "requests") == dict(summed(entries, None, by_model) | copies_only(lines))
    found = {key: count for key, count in splits(page).items() if count}
    assert found == {key: n for key, n in summed(entries, None, by_rule).items() if key[2]}


def copies_only(lines: list[Json]) -> Sums:
    """Return the models that have had copies alone: they are listed with no request."""
    asked = {by_model(line) for line in lines if not line.get("mirror")}
    return {by_model(line): 0.0 for line in lines if by_model(line) not in asked}


def rows(page: Page) -> Locator:
    return page.locator("#list tbody tr:not([hidden])")


# --- live traffic ---------------------------------------------------------------------------------


@pytest.fixture
def traffic(confdir: Path, far_ends: dict[str, Far], tmp_path: Path) -> Iterator[Traffic]:
    with Traffic.running(confdir, tmp_path, far_ends, KEYS) as running:
        yield running


def test_the_numbers_are_those_of_the_access_log(
    traffic: Traffic, shown: Callable[[str], Page]
) -> None:
    before = traffic.send()
    page = shown(traffic.proxy.admin)
    assert_equal(page, before)
    lines = [*before, *traffic.send()]
    assert_equal(page, lines)
    expect(rows(page)).to_have_count(len(lines))
    # What came as changes is what one who comes now gets as a whole.
    page.reload()
    live(page)
    assert_equal(page, lines)
    with traffic.stream():
        expect(total(page, "streams_open")).to_have_text("1")
        expect(total(page, "requests_open")).to_have_text("1")
    assert_equal(page, [*lines, *traffic.proxy.logged()])
    expect(page.locator("#processes")).to_have_text("1 process")


def test_a_split_is_shown_as_configured_and_as_it_is(
    traffic: Traffic, shown: Callable[[str], Page]
) -> None:
    lines = traffic.send()
    page = shown(traffic.proxy.admin)
    rule = page.locator('#rules .rule[data-route="shop"][data-rule="split"]')
    for provider, configured in (("openai", 75), ("moonshot", 25)):
        target = rule.locator(f'.target[data-provider="{provider}"]')
        expect(target.locator(".configured-share")).to_have_text(f"{configured} %")
        of_rule = [line for line in lines if line["rule"] == "split" and line["provider"]]
        first = [(line["attempts"] or [line])[0]["provider"] for line in of_rule]
        share = 100 * first.count(provider) / len(first)
        said = target.locator(".actual-share").inner_text().removesuffix(" %")
        assert float(said) == pytest.approx(share, abs=0.05)
    standby = page.locator('.rule[data-rule="failover"] .target[data-provider="openai"]')
    expect(standby.locator(".configured-share")).to_have_text("standby")
    # The rule chose the dead one, as configured, though another one answered.
    failing = page.locator('.rule[data-rule="failover"] .target[data-provider="dead"]')
    expect(failing.locator(".actual-share")).to_have_text("100 %")
    expect(failing.locator(".requests")).to_have_text("0")
    expect(standby.locator(".actual-share")).to_have_text("0 %")
    expect(standby.locator(".requests")).to_have_text("1")
    dead = page.locator('#models tr.provider[data-provider="dead"] .health')
    expect(dead).to_have_text("✕ ejected")


def test_requests_are_found_by_text_outcome_and_flag(
    traffic: Traffic, shown: Callable[[str], Page]
) -> None:
    lines = traffic.send()
    page = shown(traffic.proxy.admin)
    expect(rows(page)).to_have_count(len(lines))
    page.keyboard.press("/")
    expect(page.locator("#filter-text")).to_be_focused()
    page.keyboard.type("gpt-4.1")
    wanted = sum("gpt-4.1" in str(line) for line in lines)
    assert 0 < wanted < len(lines)
    expect(rows(page)).to_have_count(wanted)
    expect(page.locator("#count")).to_have_text(f"{wanted} of the last {len(lines)} shown")
    page.locator("#filter-text").fill("GPT-4.1 shop.test")
    expect(rows(page)).to_have_count(wanted)
    page.locator("#filter-text").fill("")
    for outcome, holds in (
        ("errors", is_error),
        ("4xx", lambda line: line["status"] is not None and 400 <= line["status"] < 500),
        ("failover", lambda line: len({one["provider"] for one in line["attempts"]}) > 1),
        ("mirror", lambda line: line.get("mirror") is True),
    ):
        page.locator("#filter-outcome").select_option(outcome)
        count = sum(map(holds, lines))
        assert count
        expect(rows(page)).to_have_count(count)
    page.locator("#filter-outcome").select_option("")
    page.locator("#filter-flag").select_option("NR")
    expect(rows(page)).to_have_count(sum("NR" in line["flags"] for line in lines))
    page.locator("#filter-text").fill("nothing is like this")
    expect(rows(page)).to_have_count(0)
    expect(page.locator("#empty")).to_have_text("None of the last requests is like that.")


def test_a_click_explains_a_failover(traffic: Traffic, shown: Callable[[str], Page]) -> None:
    (entry,) = [line for line in traffic.send() if line["rule"] == "failover"]
    page = shown(traffic.proxy.admin)
    page.locator("#filter-text").fill(entry["request_id"])
    rows(page).click()
    detail = page.locator("#detail")
    for text in (
        "openai answered with 200 in",
        "after dead had failed.",
        "✓ failover matched: header x-rule = failover",
        "by priority and weight it fell to dead.",
        "If that fails: openai.",
        f"Tokens in{entry['request_prompt_tokens']}",
        f"Tokens out{entry['request_completion_tokens']}",
        f"${entry['cost_usd']:.6f} by list price",
        entry["client"],
        "api.openai.com/v1/chat/completions",
    ):
        expect(detail).to_contain_text(text)
    first, second = detail.locator(".attempts li").all()
    expect(first).to_contain_text("dead no answer")
    expect(second).to_contain_text("openai answered 200 after")
    detail.locator("summary").click()
    expect(detail.locator("pre")).to_contain_text(f'"request_id": "{entry["request_id"]}"')


def test_a_refusal_and_an_ejected_target_are_explained(
    traffic: Traffic, shown: Callable[[str], Page]
) -> None:
    traffic.send()
    lines = traffic.send()  # the dead one is ejected by now
    page = shown(traffic.proxy.admin)
    detail = page.locator("#detail")
    page.locator("#filter-flag").select_option("NR")
    rows(page).first.click()
    for text in (
        "Refused with 404: no provider was asked.",
        "✗ never did not match: header x-rule is absent (wanted: = never)",
        "NR no rule matches",
        "No rule matched.",
    ):
        expect(detail).to_contain_text(text)
    (entry,) = [line for line in lines if line["rule"] == "failover"]
    page.locator("#filter-flag").select_option("")
    page.locator("#filter-text").fill(entry["request_id"])
    rows(page).click()
    expect(detail).to_contain_text("Skipped, as ejected after failures: dead.")


def focused(page: Page) -> int | None:
    """Return which of the rows that are shown has the focus."""
    found: int = page.evaluate(
        "[...document.querySelectorAll('#list tbody tr:not([hidden])')]"
        ".indexOf(document.activeElement)"
    )
    return None if found < 0 else found


def test_the_arrows_lead_into_the_list(traffic: Traffic, shown: Callable[[str], Page]) -> None:
    """From a fresh page, and from the filter, whose rows the Tab key comes to as well."""
    lines = traffic.send()
    page = shown(traffic.proxy.admin)
    expect(rows(page)).to_have_count(len(lines))
    page.keyboard.press("ArrowDown")
    assert focused(page) == 0
    page.keyboard.press("ArrowDown")
    assert focused(page) == 1
    page.keyboard.press("/")
    page.keyboard.type("gpt-4.1")
    wanted = sum("gpt-4.1" in str(line) for line in lines)
    expect(rows(page)).to_have_count(wanted)
    page.keyboard.press("ArrowDown")
    assert focused(page) is not None
    page.keyboard.press("/")
    for _ in range(4):  # past the outcome, the flag and Hold
        page.keyboard.press("Tab")
    assert focused(page) is not None
    page.keyboard.press("End")
    assert focused(page) == wanted - 1
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_contain_text("gpt-4.1")


def test_the_list_is_used_by_keyboard(traffic: Traffic, shown: Callable[[str], Page]) -> None:
    traffic.send()
    page = shown(traffic.proxy.admin)
    detail = page.locator("#detail")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#exchanges")).to_be_focused()
    for _ in range(5):
        page.keyboard.press("Tab")
    expect(rows(page).nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(rows(page).nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(detail).to_be_focused()
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    expect(rows(page).nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(rows(page).last).to_be_focused()
    # What comes in moves the rows, and not the focus.
    chosen = rows(page).last.get_attribute("data-key")
    traffic.send()
    expect(rows(page).first).not_to_be_focused()
    assert page.evaluate("document.activeElement.dataset.key") == chosen


def test_a_list_that_is_held_stays_as_it_is(traffic: Traffic, shown: Callable[[str], Page]) -> None:
    before = traffic.send()
    page = shown(traffic.proxy.admin)
    expect(rows(page)).to_have_count(len(before))
    page.locator("#hold").click()
    after = traffic.send()
    expect(page.locator("#hold")).to_have_text(f"Go on ({len(after)} newer)")
    expect(rows(page)).to_have_count(len(before))
    page.locator("#hold").click()
    expect(rows(page)).to_have_count(len(before) + len(after))


def test_a_refused_reload_is_told_until_it_is_mended(
    traffic: Traffic, shown: Callable[[str], Page]
) -> None:
    page = shown(traffic.proxy.admin)
    traffic.break_rules()
    notice = page.locator("#notices")
    expect(notice).to_contain_text("A change of the rules was refused")
    expect(notice).to_contain_text("broken.yaml")
    traffic.mend_rules()
    expect(notice).to_be_empty()


def test_the_rules_on_the_page_change_with_the_rules(
    traffic: Traffic, shown: Callable[[str], Page]
) -> None:
    page = shown(traffic.proxy.admin)
    expect(page.locator('.rule[data-rule="new"]')).to_have_count(0)
    route = llm_route("another", "another.test", to("api.moonshot.cn", name="new"))
    write_rules(traffic.rules, route, name="another.yaml")
    expect(page.locator('.rule[data-rule="new"]')).to_contain_text("every request")
    (traffic.rules / "another.yaml").unlink()
    expect(page.locator('.rule[data-rule="new"]')).to_have_count(0)


# --- what clients may send ------------------------------------------------------------------------


def test_what_a_client_sends_stays_text(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest()), *ADMIN)
    page = shown(proxy.admin)
    with proxy.client() as client:
        answer = client.post(f"{URL}/{HOSTILE}", json=chat(model=HOSTILE))
        assert answer.status_code == 404
        assert said(client.post(URL, json=chat(model=HOSTILE)))
    proxy.logged(2)
    expect(page.locator("#models")).to_contain_text(HOSTILE)
    rows(page).first.click()
    expect(page.locator("#detail")).to_contain_text(HOSTILE)
    page.locator("#detail summary").click()
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Pointsman"


def test_a_name_that_turns_the_direction_of_the_text_turns_nothing(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest()), *ADMIN)
    page = shown(proxy.admin)
    openai.provider.replies.append(Reply.json({"error": {"message": "no"}}, status=404))
    with proxy.client() as client:
        assert client.post(URL, json=chat(model="gpt\u202e4-tpg")).status_code == 404
    proxy.entry()
    rows(page).first.click()
    for place in ("#list", "#models", "#detail"):
        expect(page.locator(place)).to_contain_text("gpt\ufffd4-tpg")
    assert "\u202e" not in page.content()


def test_bytes_that_are_no_text_do_not_stop_the_page(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest()), *ADMIN)
    page = shown(proxy.admin)
    trust = trusting(proxy.certificate)
    trust.set_alpn_protocols(["h2"])
    with (
        proxy.tunnel("api.openai.com", 443) as plain,
        trust.wrap_socket(plain, server_hostname="api.openai.com") as conn,
    ):
        raw = Http2Client(conn, "api.openai.com")
        raw.read_until(raw.post(b"{}", path=b"/v1/x\x80/chat/completions"), b"error")
    with proxy.client() as client:
        assert said(client.post(URL, json=chat(model="m")))
    paths = [entry["path"] for entry in proxy.logged(2)]
    assert paths == ["/v1/x\ufffd/chat/completions", "/v1/chat/completions"]
    expect(total(page, "requests")).to_have_text("2")
    expect(rows(page)).to_have_count(2)
    # So it is for one who comes now.
    page.reload()
    live(page)
    expect(rows(page)).to_have_count(2)


def test_the_browser_makes_no_markup_of_strings_on_it(shared: Traffic, page: Page) -> None:
    page.goto(f"http://{shared.proxy.admin}/")
    for attempt in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.createElement('script').text = 'x'",
    ):
        refused = f"() => {{ try {{ {attempt} }} catch (error) {{ return error.name }} }}"
        assert page.evaluate(refused) == "TypeError"


def test_the_busiest_providers_have_the_colours(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    hosts = [f"p{number:02}.example" for number in range(12)]
    far_end = {**openai.far_end(), "tls": {"insecureSkipVerify": True}}
    rules = write_rules(
        tmp_path / "rules",
        *(llm_provider(host.removesuffix(".example"), host, **far_end) for host in hosts),
        *(llm_route(f"r{n:02}", f"r{n:02}.test", to(host)) for n, host in enumerate(hosts)),
    )
    proxy = start_proxy(rules, *ADMIN)

    def ask(number: int, times: int) -> None:
        with proxy.client() as client:
            for _ in range(times):
                client.post(f"http://r{number:02}.test/v1/chat/completions", json=chat(model="m"))
        proxy.logged(times)

    for number in range(3, 12):
        ask(number, 2 if number > 3 else 1)
    page = shown(proxy.admin)
    swatches = [swatch(page, f"p{number:02}") for number in range(3, 12)]
    grey, *coloured = (color_of(one) for one in swatches)  # of nine, the last has none of the eight
    assert len({grey, *coloured}) == 9
    ask(3, 4)
    expect(swatches[0]).not_to_have_css("background-color", grey)
    assert color_of(swatches[0]) in coloured


def test_one_request_is_told_in_the_singular(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    far_end = {**openai.far_end(), "tls": {"insecureSkipVerify": True}}
    rules = write_rules(
        tmp_path / "rules",
        llm_provider("far", "far.example", **far_end),
        llm_route("front", "front.test", to("far.example")),
    )
    proxy = start_proxy(rules, *ADMIN)
    page = shown(proxy.admin)
    page.set_viewport_size({"width": 390, "height": 900})
    requests = page.locator('#models .model [data-is="requests"]')
    for unit in ("request", "requests"):
        with proxy.client() as client:
            client.post("http://front.test/v1/chat/completions", json=chat(model="m"))
        expect(requests).to_have_attribute("data-unit", unit)
        proxy.logged(1)


def swatch(page: Page, provider: str) -> Locator:
    return page.locator(f'#models .provider[data-provider="{provider}"] .swatch')


def color_of(place: Locator) -> str:
    return str(place.evaluate("place => getComputedStyle(place).backgroundColor"))


# --- the line to the proxy ------------------------------------------------------------------------


def test_it_says_when_it_is_cut_off_and_comes_back(
    confdir: Path, openai: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    admin = f"{LOOPBACK}:{closed_port()}"
    rules = write_rules(tmp_path / "rules", openai.manifest())

    def started() -> Proxy:
        return Proxy(confdir, rules, "--set", f"llm_admin={admin}", env=KEYS)

    with started() as proxy:
        page = shown(proxy.admin)
        with proxy.client() as client:
            for _ in range(3):
                assert said(client.post(URL, json=chat(model="m")))
        proxy.logged(3)
        expect(total(page, "requests")).to_have_text("3")
        expect(page.locator("#readiness")).to_have_text("Ready")
    # It has ended in time, with nothing to complain of, though someone looked.
    expect(page.locator("#connection")).to_contain_text("Disconnected")
    expect(page.locator("#readiness")).to_be_hidden()  # no one knows
    expect(total(page, "requests")).to_have_text("3")
    with started() as proxy:
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("#readiness")).to_have_text("Ready")
        expect(total(page, "requests")).to_have_text("0")
        expect(rows(page)).to_have_count(0)


def test_a_drain_is_shown(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest()), *ADMIN)
    page = shown(proxy.admin)
    expect(page.locator("#readiness")).to_have_text("Ready")
    httpx.post(f"http://{proxy.admin}/drain?soft=true", trust_env=False, timeout=DEADLINE)
    expect(page.locator("#readiness")).to_have_text("Draining")
    expect(page.locator("#notices")).to_contain_text("Requests under way come to their end")


def test_a_page_without_requests_says_what_to_do(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest()), *ADMIN)
    page = shown(proxy.admin)
    expect(page.locator("#empty")).to_contain_text("No LLM request has come through yet")
    expect(page.locator("#empty")).to_contain_text("export HTTPS_PROXY=http://127.0.0.1:")
    with proxy.client() as client:
        assert said(client.post(URL, json=chat(model="m")))
    proxy.entry()
    expect(page.locator("#empty")).to_be_hidden()
    expect(rows(page)).to_have_count(1)


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_the_workers_of_a_sidecar_are_shown_as_one(
    openai: Far, moonshot: Far, tmp_path: Path, shown: Callable[[str], Page]
) -> None:
    config = openai_config(model="gpt-4o-mini", apiKey="${OPENAI_API_KEY}")
    rules = write_rules(
        tmp_path / "rules",
        openai.manifest(configs=config),
        moonshot.manifest(),
        llm_route("shop", "shop.test", to("api.openai.com", "api.moonshot.cn", name="all")),
    )
    with Sidecar(tmp_path / "c", rules, "--workers", "2", env=KEYS) as sidecar:
        page = shown(sidecar.admin)
        expect(page.locator("#processes")).to_have_text("2 processes")

        def ask() -> None:
            with sidecar.client() as client:
                client.post("http://shop.test/v1/chat/completions", json=chat(model="m"))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        sidecar.wait_for("llm_request", count=20)
        assert_equal(page, sidecar.logged("llm_request"))
        page.reload()
        live(page)
        assert_equal(page, sidecar.logged("llm_request"))
        expect(rows(page)).to_have_count(20)
    expect(page.locator("#connection")).to_contain_text("Disconnected")


# --- how it looks ---------------------------------------------------------------------------------


SCHEMES: Sequence[Literal["light", "dark"]] = ("light", "dark")


@contextmanager
def looked_at(
    browser: Browser, admin: str, width: int, scheme: Literal["light", "dark"]
) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(DEADLINE * 1000)
    page = context.new_page()
    complaints = Complaints(page)
    page.goto(f"http://{admin}/")
    live(page)
    yield page
    complaints.assert_none(f"http://{admin}")
    context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440])
def test_no_width_needs_scrolling_sideways(
    shared: Traffic, browser: Browser, width: int, scheme: Literal["light", "dark"]
) -> None:
    with looked_at(browser, shared.proxy.admin, width, scheme) as page:
        expect(rows(page).first).to_be_visible()
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert page.evaluate(wide) is False
        rows(page).first.click()
        expect(page.locator("#detail")).to_be_visible()
        assert page.evaluate(wide) is False
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = sum(int(part) for part in background.strip("rgb()").split(","))
        assert (lightness < 200) is (scheme == "dark")
        expect(page.locator(".plot canvas")).to_have_count(3)
        assert page.evaluate(
            "[...document.querySelectorAll('.plot canvas')].every(canvas => canvas.width > 100)"
        )


def test_where_an_explanation_takes_the_window_it_is_all_that_one_reaches(
    shared: Traffic, browser: Browser
) -> None:
    with looked_at(browser, shared.proxy.admin, 360, "light") as page:
        detail, row = page.locator("#detail"), rows(page).first
        row.click()
        expect(detail).to_have_js_property("open", value=True)
        within = "document.querySelector('#detail').contains(document.activeElement)"
        assert page.evaluate(within)
        for _ in range(8):  # past its end comes the browser's own, which is told as the body
            page.keyboard.press("Tab")
            assert page.evaluate(f"{within} || document.activeElement === document.body")
        page.keyboard.press("Escape")
        expect(detail).to_be_hidden()
        expect(row).to_be_focused()
        page.keyboard.press("Enter")
        expect(detail).to_be_visible()
        detail.get_by_label("Close").click()
        expect(row).to_be_focused()


def test_an_explanation_stays_when_the_window_gets_wider_or_narrower(
    shared: Traffic, browser: Browser
) -> None:
    with looked_at(browser, shared.proxy.admin, 1440, "light") as page:
        detail, row = page.locator("#detail"), rows(page).first
        row.click()
        expect(row).to_be_focused()  # so that the arrows go on from here
        for width, modal in ((800, True), (1200, False)):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(
                f"document.querySelector('#detail').matches(':modal') === {str(modal).lower()}"
            )
            expect(detail.locator("h3")).to_be_visible()
        page.keyboard.press("Escape")
        expect(detail).to_be_hidden()


@pytest.fixture(scope="module")
def shared(
    confdir: Path, far_ends: dict[str, Far], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Traffic]:
    """One with names as long as they come."""
    with Traffic.running(confdir, tmp_path_factory.mktemp("page"), far_ends, KEYS) as running:
        running.send()
        with running.proxy.client() as client:
            client.post(f"https://api.openai.com/{'x' * 300}", json=chat(model="y" * 300))
        running.proxy.logged()
        yield running


@pytest.mark.skipif(
    "POINTSMAN_SCREENSHOTS" not in os.environ,
    reason="POINTSMAN_SCREENSHOTS names no folder for the pictures of the documentation",
)
def test_it_is_pictured(
    confdir: Path, start_far: StartFar, tmp_path: Path, browser: Browser
) -> None:
    """With two minutes of traffic as a shop may have it."""
    home = tmp_path / "home"
    shutil.copytree(confdir, home)
    openai = start_far("openai", "api.openai.com", "OPENAI_API_KEY")
    moonshot = start_far("moonshot", "api.moonshot.cn", "MOONSHOT_API_KEY")
    qwen = start_far("qwen", "dashscope-intl.aliyuncs.com")
    deepseek = start_far("deepseek", "api.deepseek.com")
    chance = random.Random(5)
    busy = Reply.json({"error": {"message": "busy", "type": "server_error"}}, 503)
    qwen.provider.script = lambda _: busy if chance.random() < 0.15 else None
    subscribers = {"headers": {"user-type": {"exact": "subscriber"}}}
    write_rules(
        home / "rules",
        openai.manifest(configs=openai_config(model="gpt-4o-mini", apiKey="${OPENAI_API_KEY}")),
        moonshot.manifest(
            configs=openai_config(model="moonshot-v1-8k", apiKey="${MOONSHOT_API_KEY}")
        ),
        qwen.manifest(configs=openai_config(model="qwen-plus")),
        deepseek.manifest(path=None),
        llm_route(
            "shop",
            "demo-llm-server",
            {
                "name": "subscribers",
                "matches": [subscribers],
                "backendRefs": [
                    {"providerHost": qwen.provider.host, "priority": 0},
                    {"providerHost": "api.openai.com", "priority": 1},
                ],
            },
            {
                "name": "everyone",
                "matches": [{"path": {"prefix": "/v1"}}],
                "backendRefs": [
                    {"providerHost": "api.openai.com", "weight": 60},
                    {"providerHost": "api.moonshot.cn", "weight": 40},
                ],
            },
        ),
    )
    over = threading.Event()

    def ask(number: int) -> None:
        chance = random.Random(number)
        with proxy.client() as client:
            while not over.wait(chance.random() * 1.2):
                body = chat(
                    "Set the points. " * chance.randrange(1, 60), stream=chance.random() < 0.5
                )
                kind = chance.random()
                url, headers = "http://demo-llm-server/v1/chat/completions", {}
                if kind < 0.3:
                    headers = {"user-type": "subscriber"}
                elif kind < 0.42:
                    url, body["model"] = (
                        "https://api.deepseek.com/chat/completions",
                        "deepseek-chat",
                    )
                elif kind < 0.44:
                    url = "http://demo-llm-server/other"
                client.post(url, json=body, headers=headers)

    for far in (openai, moonshot, qwen, deepseek):
        far.provider.chunk_delay = 0.01
    with Proxy(home, Path("rules"), *ADMIN, env=KEYS) as proxy:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for scheme in SCHEMES:
            with looked_at(browser, proxy.admin, 1440, scheme) as page:
                enough = "() => performance.now() > 60_000"
                page.wait_for_function(enough, timeout=90_000)
                rows(page).filter(has=page.locator(".turn")).first.click()
                page.evaluate("scrollTo(0, 0)")
                page.mouse.move(0, 0)
                screenshot(page, f"page-{scheme}", height=1180)
        over.set()
        for thread in threads:
            thread.join(DEADLINE)
        proxy.forget()
