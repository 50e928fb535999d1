"""Each query of the dashboard and of the alerts, run by a real Prometheus that scrapes a proxy.

A query must name nothing that is not there, and what there was traffic for must have an answer.
"""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import KEYS
from tests.e2e.harness import DEADLINE, LOOPBACK, REPOSITORY, Far, Json, closed_port, eventually
from tests.e2e.traffic import Traffic

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        PROMETHEUS is None, reason="prometheus is missing (Debian: apt-get install prometheus)"
    ),
]

ALERTS = REPOSITORY / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD: Json = json.loads(
    (REPOSITORY / "deploy" / "grafana" / "pointsman.json").read_text(encoding="utf-8")
)
PANELS: list[Json] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: list[Json] = [
    rule
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
# What Grafana would put in.
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".*", "$instance": ".*"}
SCRAPED = {"job", "instance"}  # the labels that Prometheus adds


def filled_in(query: str) -> str:
    """Return a panel's query as Grafana sends it."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


QUERIES = [
    pytest.param(filled_in(target["expr"]), id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
EXPRESSIONS = [pytest.param(rule["expr"], id=rule.get("alert") or rule["record"]) for rule in RULES]


# --- what a query names ---------------------------------------------------------------------------

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\s*\{([^}]*)\}")
_NAME = re.compile(r"(?<![\w.])[A-Za-z_:][\w:]*(?!\w*\s*\()")
_WORDS = {"and", "or", "unless", "offset", "bool"}


def named(query: str) -> tuple[dict[str, set[str]], set[str]]:
    """Return the metrics of a query with the labels that it selects, and those it groups by."""
    bare = _STRING.sub('""', query)
    grouped = {label.strip() for match in _GROUPING.findall(bare) for label in match.split(",")}
    bare = _GROUPING.sub("", bare)
    metrics: dict[str, set[str]] = {}
    for name, matchers in _SELECTOR.findall(bare):
        labels = {part.split("=")[0].strip(" !~") for part in matchers.split(",")}
        metrics.setdefault(name, set()).update(labels - {""})
    rest = re.sub(r"\[[^\]]*\]", "", _SELECTOR.sub("", bare))
    for name in _NAME.findall(re.sub(r"\b\d+[smhdwy]\b", "", rest)):
        if name not in _WORDS:
            metrics.setdefault(name, set())
    return metrics, grouped - {""}


def test_what_a_query_names_is_found() -> None:
    query = (
        'sum by (le, a) (rate(m_bucket{b=~"x{y}", c!="by (d)"}[5m])) / on (e) group_left (f)'
        " n:o offset 1d and absent(p) > 0.5"
    )
    found = {"m_bucket": {"b", "c"}, "n:o": set[str](), "p": set[str]()}
    assert named(query) == (found, {"le", "a", "e", "f"})


# --- a Prometheus ---------------------------------------------------------------------------------


class Prometheus:
    """A running one."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        found = answer.json()
        assert found["status"] == "success", f"{parameters}: {found}"
        return found["data"]

    def query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return what an instant query finds, without values that are none."""
        data = self.get("query", query=query)
        assert data["resultType"] == "vector"
        found = [(one["metric"], float(one["value"][1])) for one in data["result"]]
        return [(labels, value) for labels, value in found if not math.isnan(value)]

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Start one that scrapes a target and evaluates the alerts, as a process of its own."""
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "pointsman", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"{LOOPBACK}:{closed_port()}"
    command = [
        str(PROMETHEUS),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (
        (folder / "output").open("wb") as output,
        httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=DEADLINE) as client,
    ):
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
        running = Prometheus(client)
        try:
            eventually(running.ready, what="Prometheus is ready")
            yield running
        finally:
            process.terminate()
            process.wait(DEADLINE)


class Stage:
    """A proxy that has had traffic of every kind, and a Prometheus that has seen it come."""

    def __init__(self, traffic: Traffic, running: Prometheus) -> None:
        self.prometheus = running
        seen = 0
        for _ in range(2):  # what has not grown between two scrapes has no rate
            seen += sum(not entry.get("mirror") for entry in traffic.send())
            self.wait("sum(pointsman_requests_total)", seen)
        # A target is ejected by now, and from here on the rules are refused.
        traffic.break_rules()
        self.wait("pointsman_last_reload_successful", 0)
        families = list(text_string_to_metric_families(traffic.metrics()))
        self.labels: dict[str, set[str]] = {}
        for sample in (sample for family in families for sample in family.samples):
            self.labels.setdefault(sample.name, set()).update(sample.labels, SCRAPED)
        for rule in RULES:
            if "record" in rule:
                found = self.wait(rule["record"])
                self.labels[rule["record"]] = {label for labels, _ in found for label in labels}

    def wait(self, query: str, value: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Wait until a query finds something, or this value."""

        def look() -> list[tuple[dict[str, str], float]]:
            found = self.prometheus.query(query)
            return found if value is None or [v for _, v in found] == [value] else []

        return eventually(look, what=f"{query} {value}")

    def check_names(self, query: str) -> None:
        """Assert that there is everything that the query names."""
        metrics, grouped = named(query)
        assert metrics
        for name, labels in metrics.items():
            assert name in self.labels, f"there is no metric {name}"
            assert labels <= self.labels[name], f"{name} has no {labels - self.labels[name]}"
        known = set[str]().union(*(self.labels[name] for name in metrics))
        assert grouped <= known, f"there is no label {grouped - known}"


@pytest.fixture(scope="module")
def stage(
    confdir: Path, far_ends: dict[str, Far], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("queries")
    with (
        Traffic.running(confdir, folder, far_ends, KEYS) as traffic,
        prometheus(folder, traffic.proxy.admin) as running,
    ):
        yield Stage(traffic, running)


# --- the queries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("query", QUERIES)
def test_each_panel_shows_what_there_is(stage: Stage, query: str) -> None:
    stage.check_names(query)
    assert stage.prometheus.query(query), f"nothing found by {query}"


@pytest.mark.parametrize("query", EXPRESSIONS)
def test_each_rule_asks_for_what_there_is(stage: Stage, query: str) -> None:
    stage.check_names(query)
    stage.prometheus.query(query)


def test_a_name_that_is_not_there_is_found_out(stage: Stage) -> None:
    for query in (
        "rate(pointsman_request_total[1m])",
        'pointsman_requests_total{states="200"}',
        "sum by (providers) (pointsman_requests_total)",
    ):
        with pytest.raises(AssertionError, match="no "):
            stage.check_names(query)


def test_alerts_on_what_has_happened_are_pending_and_say_what(stage: Stage) -> None:
    def look() -> dict[str, Json]:
        groups = stage.prometheus.get("rules", type="alert")["groups"]
        rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
        assert all(rule["health"] != "err" for rule in rules.values()), rules
        active = {name: rule["alerts"][0] for name, rule in rules.items() if rule["alerts"]}
        wanted = {
            "PointsmanRulesRefused",
            "PointsmanRuleWithoutHealthyTarget",
            "PointsmanTargetEjected",
            "PointsmanErrorRatioHigh",
            "PointsmanProviderFailing",
        }
        return active if active.keys() >= wanted else {}

    active = eventually(look, what="the alerts")
    assert "PointsmanAbsent" not in active
    for alert in active.values():
        for text in alert["annotations"].values():
            assert "no value" not in text, text
            assert "  " not in text, text
            assert "()" not in text, text


def test_the_actual_split_adds_up_to_one(stage: Stage) -> None:
    (panel,) = (panel for panel in PANELS if panel["title"].startswith("Split"))
    configured, actual = (
        stage.prometheus.query(filled_in(target["expr"])) for target in panel["targets"]
    )
    for found in (configured, actual):
        split = {
            labels["provider"]: share
            for labels, share in found
            if (labels["route"], labels["rule"]) == ("shop", "split")
        }
        assert split.keys() == {"openai", "moonshot"}
        assert sum(split.values()) == pytest.approx(1)


# --- the dashboard --------------------------------------------------------------------------------


def test_the_dashboard_has_no_data_source_of_its_own() -> None:
    sources = re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARD))
    assert set(sources) == {"${datasource}", "pointsman", "-- Grafana --"}
    (variable,) = (v for v in DASHBOARD["templating"]["list"] if v["name"] == "datasource")
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_each_panel_says_what_it_shows(panel: Json) -> None:
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for target in panel["targets"]:
        _, grouped = named(filled_in(target["expr"]))
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= grouped, "a legend can show only what is grouped by"


def test_panels_have_numbers_and_places_of_their_own() -> None:
    panels: list[Json] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken
        taken |= cells
