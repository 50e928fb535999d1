"""The alert rules: each fires on what it is about, and tells what to look at."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "deploy" / "prometheus" / "alerts.yaml"
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing (Debian: apt-get install prometheus)"
)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def promtool(*arguments: str) -> None:
    assert PROMTOOL
    command = [PROMTOOL, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", str(RULES))


@needs_promtool
def test_each_alert_fires_on_what_it_is_about_and_on_nothing_else() -> None:
    promtool("test", "rules", str(HERE / "alerts_test.yaml"))


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((HERE / "alerts_test.yaml").read_text(encoding="utf-8"))["tests"]
    fired = " ".join(
        sample["labels"]
        for test in tests
        for expression in test["promql_expr_test"]
        for sample in expression["exp_samples"]
    )
    assert [alert["alert"] for alert in alerts() if f'"{alert["alert"]}"' not in fired] == []


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_is_wrong_and_where_to_look(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"].keys() == {"summary", "description"}
    assert len(alert["annotations"]["summary"]) < 120
    assert len(alert["annotations"]["description"]) > 100
