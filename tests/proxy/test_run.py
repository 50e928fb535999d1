"""`pointsman run`: what mitmdump is started with."""

import logging
from itertools import pairwise

import pytest

from pointsman.locations import addon_script
from pointsman.proxy.run import command_line, tell_of_the_start


def settings(arguments: list[str]) -> dict[str, str]:
    pairs = pairwise(arguments)
    return dict(value.split("=", 1) for flag, value in pairs if flag == "--set")


def test_the_addon_and_a_sidecars_defaults_come_first() -> None:
    arguments = command_line("my-rules", ["-p", "1"])
    assert arguments[:2] == ["-s", str(addon_script())]
    assert arguments[-2:] == ["-p", "1"]
    assert settings(arguments) == {
        "flow_detail": "0",
        "termlog_verbosity": "warn",
        "connection_strategy": "lazy",
        "block_global": "false",
        "llm_rules": "my-rules",
    }


def test_what_the_user_sets_takes_the_place_of_a_default() -> None:
    """mitmproxy refuses an option that is set twice."""
    arguments = command_line(None, ["--set", "flow_detail=2", "--set=termlog_verbosity=info"])
    assert settings(arguments)["flow_detail"] == "2"
    assert "flow_detail=0" not in arguments
    assert "termlog_verbosity=warn" not in arguments
    assert "llm_rules" not in settings(arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-p", "1"], "pointsman: rules live\n"),
        (["-q"], ""),
        (["--verbose"], ""),
        (["--set", "termlog_verbosity=info"], ""),
        (["--set=termlog_verbosity=error"], ""),
    ],
)
def test_the_start_is_told_unless_the_user_has_chosen_what_is_shown(
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    tell_of_the_start(arguments)
    try:
        with caplog.at_level(logging.INFO):
            logging.getLogger("pointsman.proxy.addon").info("rules live")
            logging.getLogger("pointsman.proxy.addon").warning("shown on standard output")
            logging.getLogger("mitmproxy.proxy.server").info("client connect")
    finally:
        root.handlers[:] = before
    assert capsys.readouterr().err == told
