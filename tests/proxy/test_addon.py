"""The addon's options and life, inside mitmproxy's own test context."""

import logging
from pathlib import Path

import pytest
from mitmproxy import exceptions
from mitmproxy.test import taddons

from pointsman.config.credentials import Allowed
from pointsman.locations import rules_path
from pointsman.proxy.addon import Pointsman
from pointsman.proxy.options import allowed_keys, parse_size, workload_name

ROOT = Path(__file__).parents[2]
GOOD = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: p}
spec: {host: p.test}
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512k", 512 << 10), ("32m", 32 << 20), ("1G", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("llm_body_limit", text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5m", "m", "10 apples"])
def test_what_is_no_size_is_refused_with_the_mend(text: str) -> None:
    with pytest.raises(exceptions.OptionsError, match="write bytes"):
        parse_size("llm_body_limit", text)


def test_the_default_rules_are_found_beside_the_addon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rules_path(Path("rules")) == ROOT / "rules"
    (tmp_path / "rules").mkdir()
    assert rules_path(Path("rules")) == Path("rules")
    assert rules_path(Path("elsewhere")) == Path("elsewhere")


def test_the_workload_is_named_by_the_environment_then_by_its_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = {"app": "a", "app.kubernetes.io/name": "b"}
    assert workload_name(labels) == "b"
    assert workload_name({"app": "a"}) == "a"
    assert workload_name({}) is None
    monkeypatch.setenv("WORKLOAD_NAME", "c")
    assert workload_name(labels) == "c"


def test_where_objects_may_take_keys_from() -> None:
    found = allowed_keys(["/a/b, /c", "/d"], ["X", " Y_*,"])
    assert found == Allowed((Path("/a/b"), Path("/c"), Path("/d")), ("X", "Y_*"))
    assert allowed_keys([""], []) == Allowed((), ())
    with pytest.raises(exceptions.OptionsError, match="'keys' is no absolute path"):
        allowed_keys(["keys"], [])


def test_it_is_lazy_unless_the_user_says_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    addon = Pointsman()
    with taddons.context() as context:
        context.options.add_option("connection_strategy", str, "eager", "")
        context.master.addons.add(addon)
        assert context.options.connection_strategy == "lazy"
        assert context.options.tcp_timeout > 365 * 24 * 3600
        with caplog.at_level(logging.WARNING):
            context.options.update(connection_strategy="eager")
        assert "connection_strategy=eager breaks routing" in caplog.text


def test_a_choice_of_the_users_stays() -> None:
    with taddons.context() as context:
        context.options.add_option("connection_strategy", str, "eager", "")
        context.options.update(connection_strategy="eager")
        context.master.addons.add(Pointsman())
        assert context.options.connection_strategy == "eager"


def test_bad_rules_at_the_start_are_an_error_record(
    rules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (rules / "a.yaml").write_text(GOOD.replace("host", "hots"))
    with taddons.context() as context:
        context.options.add_option("connection_strategy", str, "eager", "")
        addon = Pointsman()
        context.master.addons.add(addon)
        context.options.update(llm_rules=str(rules))
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert 'unknown field "hots"' in record.getMessage()
    assert addon.router.table.lookup("p.test") is None


def test_bad_rules_later_are_refused_and_the_good_ones_stay(rules: Path) -> None:
    with taddons.context() as context:
        context.options.add_option("connection_strategy", str, "eager", "")
        addon = Pointsman()
        context.master.addons.add(addon)
        context.options.update(llm_rules=str(rules))
        addon._running = True
        with pytest.raises(exceptions.OptionsError, match="in the rules"):
            context.options.update(llm_rules=str(rules / "missing"))
        assert addon.router.table.lookup("p.test") is not None
