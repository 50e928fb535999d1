"""Metrics of a real proxy: they tell what its access log tells."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pointsman.telemetry.exposition import DIRECTORY, render
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import DEADLINE, Far, Json, chat, eventually, write_rules
from tests.e2e.traffic import Traffic

pytestmark = pytest.mark.e2e

type Sums = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def traffic(
    confdir: Path, far_ends: dict[str, Far], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Traffic]:
    with Traffic.running(confdir, tmp_path_factory.mktemp("metrics"), far_ends, KEYS) as running:
        yield running


class Exposed:
    """The metrics of one moment."""

    def __init__(self, text: str) -> None:
        self._families: list[Metric] = list(text_string_to_metric_families(text))

    def sums(self, name: str, *labels: str, **wanted: str) -> Sums:
        """Return the values of a metric, summed by some of its labels."""
        sums: Sums = defaultdict(float)
        for sample in (s for family in self._families for s in family.samples):
            if sample.name == name and wanted.items() <= sample.labels.items():
                sums[tuple(sample.labels[label] for label in labels)] += sample.value
        return sums

    def value(self, name: str) -> float:
        """Return the value of a metric without labels."""
        return self.sums(name)[()]


def text(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def model(entry: Json) -> str:
    return text(entry["request_model"] or entry["response_model"])


def near(found: Sums, wanted: Sums) -> None:
    assert dict(found) == pytest.approx(dict(wanted), rel=1e-3, abs=1e-9)


def total(entries: Iterable[Json], field: str, *keys: str) -> Sums:
    sums: Sums = defaultdict(float)
    for entry in entries:
        if entry[field] is not None:
            sums[tuple(text(entry[key]) for key in keys)] += entry[field]
    return sums


def test_the_numbers_are_those_of_the_access_log(traffic: Traffic) -> None:
    before = Exposed(traffic.metrics())
    assert before.sums("pointsman_requests_total") == {}
    lines = [entry for _ in range(3) for entry in traffic.send()]
    found = Exposed(traffic.metrics())
    copies = [entry for entry in lines if entry.get("mirror")]
    entries = [entry for entry in lines if not entry.get("mirror")]
    assert len(copies) == 3

    labels = ("route", "rule", "provider", "model", "status", "flag")
    assert found.sums("pointsman_requests_total", *labels) == Counter(
        (
            entry["route"] or entry["host"],  # of what has no route
            *(text(entry[name]) for name in ("rule", "provider")),
            model(entry),
            text(entry["status"]),
            ",".join(sorted(entry["flags"])) or "-",
        )
        for entry in entries
    )
    assert found.sums("pointsman_mirrored_requests_total", "provider", "status") == Counter(
        (entry["provider"], text(entry["status"])) for entry in copies
    )
    assert found.sums("pointsman_attempts_total", "provider") == Counter(
        (attempt["provider"],) for entry in entries for attempt in entry["attempts"]
    )
    outcomes = found.sums("pointsman_attempts_total", "provider", "outcome")
    assert outcomes["dead", "connect_failure"] == sum(
        attempt["provider"] == "dead" for entry in entries for attempt in entry["attempts"]
    )
    assert outcomes["openai", "429"] == outcomes["openai", "503"] == 3

    for kind, field in (
        ("input", "request_prompt_tokens"),
        ("output", "request_completion_tokens"),
    ):
        known = [entry for entry in entries if entry[field] is not None]
        counted = {"gen_ai_token_type": kind}
        by = ("gen_ai_request_model", "server_address")
        tokens = found.sums("gen_ai_client_token_usage_sum", *by, **counted)
        assert tokens == total(known, field, "request_model", "provider_host")
        counts = found.sums("gen_ai_client_token_usage_count", **counted)
        assert counts[()] == len(known) > 30
        copied = found.sums("pointsman_mirrored_tokens_total", type=kind)
        assert copied == total(copies, field)

    near(
        found.sums("pointsman_cost_usd_total", "provider"),
        total((entry for entry in entries if entry["cost_usd"]), "cost_usd", "provider"),
    )
    near(
        found.sums("pointsman_mirrored_cost_usd_total"),
        total((entry for entry in copies if entry["cost_usd"]), "cost_usd"),
    )
    assert found.value("pointsman_cost_usd_total") > 0

    streams = [entry for entry in entries if entry["time_to_first_token_ms"] is not None]
    assert len(streams) > 18
    first = "gen_ai_client_operation_time_to_first_chunk_seconds"
    assert found.value(f"{first}_count") == len(streams)
    seconds = found.value(f"{first}_sum")
    assert seconds == pytest.approx(total(streams, "time_to_first_token_ms")[()] / 1000, rel=1e-3)
    # Each stream of the provider's has several words, and a chunk for each.
    assert found.value("gen_ai_client_operation_time_per_output_chunk_seconds_count") > 100

    overhead = total(entries, "overhead_ms")[()] / 1000
    assert found.value("pointsman_overhead_seconds_count") == len(entries)
    assert found.value("pointsman_overhead_seconds_sum") == pytest.approx(overhead, rel=0.01)

    duration = "gen_ai_client_operation_duration_seconds"
    calls = [e for e in entries if e["provider"] and not e["path"].endswith(("models", "unknown"))]
    assert found.value(f"{duration}_count") == len(calls)
    took = total(calls, "duration_ms")[()] / 1000
    assert found.value(f"{duration}_sum") == pytest.approx(took, rel=1e-3)
    errors = found.sums(f"{duration}_count", "error_type")
    assert errors["429",] == errors["503",] == errors["bad_request",] == 3
    assert errors["connect_failure",] == errors["client_disconnected",] == 3
    operations = found.sums(f"{duration}_count", "gen_ai_operation_name")
    assert operations["embeddings",] == operations["generate_content",] == 3


def test_what_is_under_way_is_shown(traffic: Traffic) -> None:
    with traffic.stream():
        found = Exposed(traffic.metrics())
        assert found.value("pointsman_requests_open") == 1
        assert found.value("pointsman_streams_open") == 1
    traffic.proxy.entry()
    eventually(
        lambda: Exposed(traffic.metrics()).value("pointsman_requests_open") == 0,
        what="no open request",
    )


def test_targets_have_their_share_and_their_state(traffic: Traffic) -> None:
    with traffic.proxy.client() as client:
        body = chat(model="gpt-4o-mini")
        assert client.post("http://lost.test/", json=body).status_code == 502
    traffic.proxy.entry()
    found = Exposed(traffic.metrics())
    shares = found.sums("pointsman_target_share", "rule", "provider", route="shop")
    assert shares == {
        ("failover", "dead"): 1,
        ("failover", "openai"): 0,
        ("split", "openai"): 0.75,
        ("split", "moonshot"): 0.25,
    }
    states = found.sums("pointsman_target_state", "route", "provider")
    assert states["lost", "dead"] == 2
    assert states["picky", "openai"] == 0
    assert states[traffic.accounted.provider.host, "accounted"] == 0


def test_a_refused_reload_is_shown_until_a_good_one(traffic: Traffic) -> None:
    before = Exposed(traffic.metrics())
    assert before.value("pointsman_last_reload_successful") == 1
    traffic.break_rules()
    broken = Exposed(traffic.metrics())
    since = "pointsman_last_load_timestamp_seconds"
    assert broken.value(since) == before.value(since)
    traffic.mend_rules()
    found = Exposed(traffic.metrics())
    assert found.value(since) > before.value(since)
    reloads = found.sums("pointsman_reloads_total", "result")
    assert reloads == {("loaded",): 2, ("refused",): 1}


def test_another_process_can_render_for_those_of_a_directory(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxies = [start_proxy(rules, env={DIRECTORY: str(shared)}) for _ in range(2)]
    for proxy in proxies:
        with proxy.client() as client:
            url = "https://api.openai.com/v1/chat/completions"
            assert client.post(url, json=chat(model="m")).status_code == 200
        proxy.entry()
    monkeypatch.setenv(DIRECTORY, str(shared))
    eventually(
        lambda: Exposed(render().decode()).value("pointsman_requests_total") == 2,
        what="the second request, whose log line is written first",
    )
    states = Exposed(render().decode()).sums("pointsman_target_state", "provider")
    assert states == {("openai",): 0}
    eventually(
        lambda: Exposed(render().decode()).sums("pointsman_requests_open") == {(): 0},
        what="the number of open requests, which is written now and then",
    )


def test_metrics_can_be_switched_off(start_proxy: StartProxy, openai: Far, tmp_path: Path) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    options = ("--set", "llm_metrics=false", "--set", "llm_admin=127.0.0.1:0")
    proxy = start_proxy(rules, *options)
    with proxy.client() as client:
        url = "https://api.openai.com/v1/chat/completions"
        assert client.post(url, json=chat(model="m")).status_code == 200
    proxy.entry()
    answer = httpx.get(f"http://{proxy.admin}/metrics", trust_env=False, timeout=DEADLINE)
    assert (answer.status_code, answer.text) == (200, "")
