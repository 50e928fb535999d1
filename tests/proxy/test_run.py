"""`pointsman run`: what mitmdump is started with."""

from itertools import pairwise

from pointsman.locations import addon_script
from pointsman.proxy.run import command_line


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
