"""The demo as its users run it: a process, a pipe or a signal, and an exit status."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pointsman import locations
from pointsman.demo import play_namespaces
from pointsman.demo.play import perform, play
from pointsman.demo.play_namespaces import CannotPlayError, require_tools
from pointsman.demo.play_processes import StageError
from pointsman.demo.play_scenes import SCENES
from pointsman.demo.play_show import WIDTH, Show
from pointsman.demo.play_stage import local_stage

ADDON = Path(locations.__file__).parents[1]
COMMAND = [sys.executable, "-c", "from pointsman.cli import main; main()", "demo"]
LIMIT_SECONDS = 60

CLAIMS = [
    "plain HTTP in; HTTPS, path, model and key put in on the way",
    "subscribers get qwen-turbo, everyone else qwen1.5-72b-chat",
    "a name of your own, split 50/50:",
    "streamed word by word; its tokens are logged, the client's stream is unchanged",
    "HTTPS decrypted and routed; the SDK's placeholder key replaced",
    "every request was sent once and logged once; no key and no prompt in any log",
]


def environment() -> dict[str, str]:
    # A real key and a proxy setting of the person who runs it play no part.
    return os.environ | {
        "PYTHONPATH": str(ADDON),
        "DASHSCOPE_API_KEY": "sk-real-one",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def assert_played(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    for claim in CLAIMS:
        assert f"✓ {claim}" in done.stdout
    assert "✗" not in done.stdout
    assert "25 requests · 75+250 tokens · $0.000" in done.stdout
    assert "user-type: subscriber\n" in done.stdout
    assert "after 10: dashscope.aliyuncs.com " in done.stdout
    assert (
        "“This is dashscope with qwen-turbo. You said: Please introduce yourself.”" in done.stdout
    )
    assert done.stdout.count("changed on disk, live after") == 2


@pytest.mark.e2e
def test_every_scene_does_what_it_should() -> None:
    done = run_demo()
    assert_played(done)
    assert done.stderr == ""


@pytest.mark.e2e
def test_a_log_gets_plain_lines_that_are_not_too_wide_and_hold_no_key() -> None:
    output = run_demo().stdout
    assert "\x1b" not in output
    assert not [line for line in output.splitlines() if len(line) > WIDTH or line != line.rstrip()]
    assert not re.search(r"sk-(dashscope|moonshot|real)", output)


@pytest.fixture
def pod() -> None:
    try:
        require_tools()
    except CannotPlayError as error:
        pytest.skip(str(error))


@pytest.mark.e2e
@pytest.mark.root
@pytest.mark.usefixtures("pod")
def test_every_scene_does_what_it_should_in_transparent_mode() -> None:
    done = run_demo("--transparent")
    if "a network namespace can't be set up here" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
    assert_played(done)
    (pod,) = re.findall(r"namespace (pointsman-\d+)-pod", done.stdout)
    assert not list(Path("/run/netns").glob(f"{pod}-*"))
    assert not list(Path("/etc/netns").glob(f"{pod}-*"))


# --- what goes wrong --------------------------------------------------------------------------


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def show(output: io.StringIO) -> Show:
    return Show(Console(file=output, width=WIDTH, highlight=False))


type Sabotage = Callable[[str, str, str], Callable[[str], Path]]


@pytest.fixture
def sabotage(tmp_path: Path) -> Sabotage:
    """Return examples in which one text of one example is another."""

    def examples(example: str, text: str, other: str) -> Callable[[str], Path]:
        for name in ("subscriber", "traffic-split"):
            copy = tmp_path / name
            copy.mkdir()
            for file in locations.example_rules(name).iterdir():
                content = file.read_text(encoding="utf-8")
                if name == example:
                    content = content.replace(text, other)
                (copy / file.name).write_text(content, encoding="utf-8")
        return lambda name: tmp_path / name

    return examples


@pytest.mark.e2e
def test_rules_that_do_something_else_are_told_and_fail_the_demo(
    show: Show, output: io.StringIO, sabotage: Sabotage
) -> None:
    examples = sabotage("subscriber", "qwen-turbo", "qwen-slow")
    assert perform(show, local_stage, examples=examples, scenes=SCENES[:2]) == 1
    said = output.getvalue()
    assert f"✓ {CLAIMS[0]}" in said
    assert f"✗ {CLAIMS[1]}" in said
    assert "the provider's call, its model: expected qwen-turbo, got qwen-slow" in said
    assert "The proxy's last lines" in said


@pytest.mark.e2e
def test_an_uneven_split_fails_the_demo(
    show: Show, output: io.StringIO, sabotage: Sabotage
) -> None:
    examples = sabotage("traffic-split", "weight: 50", "weight: 0")
    path = examples("traffic-split") / "LLMRoute.yaml"
    route = yaml.safe_load(path.read_text())
    route["spec"]["rules"][0]["backendRefs"][0]["weight"] = 100
    path.write_text(yaml.safe_dump(route))
    assert perform(show, local_stage, examples=examples, scenes=[SCENES[0], SCENES[2]]) == 1
    assert "dashscope.aliyuncs.com got 20, api.moonshot.cn 0" in output.getvalue()


@pytest.mark.e2e
def test_a_refused_request_is_told_with_its_answer(
    show: Show, output: io.StringIO, sabotage: Sabotage
) -> None:
    examples = sabotage("subscriber", "exact: subscriber", "exact: nobody")
    path = examples("subscriber") / "LLMRoute.yaml"
    route = yaml.safe_load(path.read_text())
    del route["spec"]["rules"][1]
    path.write_text(yaml.safe_dump(route))
    assert perform(show, local_stage, examples=examples, scenes=SCENES[:2]) == 1
    assert "no provider was called; the client got 404:" in output.getvalue()


@pytest.mark.e2e
def test_rules_that_are_refused_are_told_with_the_reason(
    show: Show, output: io.StringIO, sabotage: Sabotage
) -> None:
    examples = sabotage("subscriber", "exact: subscriber", "exakt: subscriber")
    assert perform(show, local_stage, examples=examples, scenes=SCENES[:2]) == 1
    assert "mitmdump did not take the rules:" in output.getvalue()
    assert "exakt" in output.getvalue()


@pytest.mark.e2e
def test_a_proxy_that_does_not_start_is_told_with_its_last_words(
    show: Show, sabotage: Sabotage
) -> None:
    examples = sabotage("traffic-split", "openAIConfig", "openAlConfig")
    with pytest.raises(StageError, match=r"(?s)mitmdump ended with status 1.*openAlConfig"):
        perform(show, local_stage, examples=examples)


@pytest.mark.e2e
def test_a_missing_mitmdump_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: io.StringIO
) -> None:
    monkeypatch.setattr("pointsman.demo.play_stage.mitmdump_beside", lambda: tmp_path / "mitmdump")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert play(console=Console(file=output, width=WIDTH)) == 1
    assert "pip install mitmproxy" in output.getvalue()


def test_transparent_mode_needs_root(monkeypatch: pytest.MonkeyPatch, output: io.StringIO) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert play(transparent=True, console=Console(file=output, width=WIDTH)) == 2
    assert "--transparent needs root" in output.getvalue()


def test_transparent_mode_needs_linux(monkeypatch: pytest.MonkeyPatch, output: io.StringIO) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert play(transparent=True, console=Console(file=output, width=WIDTH)) == 2
    assert "--transparent needs Linux" in output.getvalue()


def test_transparent_mode_names_the_packages_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, output: io.StringIO
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    missing = {"ip", "curl"}
    monkeypatch.setattr(play_namespaces, "_find", lambda tool: None if tool in missing else tool)
    assert play(transparent=True, console=Console(file=output, width=WIDTH)) == 2
    assert "apt-get install curl iproute2" in output.getvalue()


# --- stopping ---------------------------------------------------------------------------------


@pytest.fixture
def running() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        COMMAND,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_a_signal_ends_it_and_all_that_it_started(
    running: subprocess.Popen[str], number: signal.Signals, status: int
) -> None:
    assert running.stdout
    said = ""
    while "live after" not in said:
        line = running.stdout.readline()
        assert line, said
        said += line
    running.send_signal(number)
    said += running.stdout.read()
    assert running.wait(LIMIT_SECONDS) == status, said
    assert "stopped; nothing is left running" in said
    ports = re.findall(r"127\.0\.0\.1:(\d+)", said)
    assert len(ports) == 2
    for port in ports:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", int(port))) != 0
