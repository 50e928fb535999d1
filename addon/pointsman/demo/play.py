"""`pointsman demo`: plays the scenes, says how it went, and leaves nothing behind.

Nothing of it needs a key or a network: the providers are embedded, and what stands between them and
a real client is a real mitmdump with the addon and the repository's example rules.
"""

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from pointsman import locations
from pointsman.demo.play_namespaces import CannotPlayError, transparent_stage
from pointsman.demo.play_processes import StageError
from pointsman.demo.play_rules import Examples, RuleSet
from pointsman.demo.play_scenes import (
    ALONE,
    SCENES,
    Performance,
    Scene,
    check_accounts,
    play_scene,
    totals,
)
from pointsman.demo.play_show import WIDTH, Show, money
from pointsman.demo.play_stage import Stage, local_stage, shown

SCENE_PAUSE_SECONDS = 0.5
LAST_LINES = 20

type OpenStage = Callable[[RuleSet, Examples], AbstractContextManager[Stage]]


def play(*, transparent: bool = False, console: Console | None = None) -> int:
    """Play the demo and return an exit status.

    0: every scene did what it should. 1: one did not, or something does not start. 2: this machine
    or this user can't play it in namespaces. 128 + signal: stopped.
    """
    show = Show(console or make_console())
    how = "transparent mode" if transparent else "as a proxy"
    parts = f"  {how}: two embedded providers, a real mitmdump, a real client"
    show.line(("Pointsman", "bold"), (parts, "dim"))
    try:
        with stopping():
            return perform(show, transparent_stage if transparent else local_stage)
    except CannotPlayError as error:
        show.line((str(error), "red"))
        return 2
    except StageError as error:
        show.line((str(error), "red"))
        return 1
    except StoppedError as stopped:
        show.stopped()
        return stopped.status


def make_console() -> Console:
    """Return a console on standard output that is not too wide to read."""
    if not (sys.stdout.encoding or "").lower().startswith("utf") and hasattr(
        sys.stdout, "reconfigure"
    ):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


def perform(
    show: Show,
    open_stage: OpenStage,
    *,
    scenes: Sequence[Scene] = SCENES,
    examples: Examples = locations.example_rules,
) -> int:
    """Play scenes on a stage and return 0 if all that they show holds, else 1.

    Raises:
        StageError: there is no stage to play on.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        with show.waiting("starting the providers and mitmdump"):
            stage = stack.enter_context(open_stage(ALONE, examples))
        show.notes(stage.notes)
        performance = Performance(stage, show)
        checks = []
        for number, scene in enumerate(scenes, 1):
            show.heading(f"{number}  {scene.title}")
            check = play_scene(scene, performance)
            checks.append(check)
            if check.problems:
                show.line(("✗ ", "bold red"), (check.problems[0], "red"), indent=3)
            show.pause(SCENE_PAUSE_SECONDS)
            if not stage.proxy.running:
                break
        checks.append(check_accounts(performance))
        seconds = time.monotonic() - began
        show.heading("What was seen")
        for check in checks:
            show.check(check.claim, check.problems)
        if any(check.problems for check in checks):
            _show_log(show, stage)
            return 1
        _show_totals(show, performance, seconds)
    _show_next(show)
    return 0


def _show_log(show: Show, stage: Stage) -> None:
    show.heading("The proxy's last lines")
    for line in stage.proxy.lines.last(LAST_LINES):
        show.verbatim("  ", (line, "dim"))


def _show_totals(show: Show, performance: Performance, seconds: float) -> None:
    sums = totals(performance.takes)
    show.gap()
    show.line(
        f"{sums.requests} requests · {sums.prompt_tokens}+{sums.completion_tokens} tokens"
        f" · {money(sums.cost_usd)} list price ({sums.priced} calls; the others have none)",
        indent=2,
    )
    show.line(
        f"median overhead {sums.median_overhead_ms:.2f} ms · played in {seconds:.1f} s", indent=2
    )


def _show_next(show: Show) -> None:
    pointsman, script = _program("pointsman"), shown(locations.addon_script())
    rules, example = shown(locations.default_rules()), shown(locations.example_rules("subscriber"))
    show.heading("What to try next")
    show.command(
        "every call in mitmproxy's own UI; give your application the proxy localhost:8080",
        f"{_program('mitmweb')} -s {script}",
    )
    show.command(
        "why a request goes where it goes; nothing is sent",
        f"DASHSCOPE_API_KEY=any {pointsman} explain {example} \\\n"
        "    --url http://dashscope.aliyuncs.com -H 'user-type: subscriber'",
    )
    show.command("validate manifests, your own too", f"{pointsman} check {rules}")
    readme = locations.default_rules() / "README.md"
    if readme.exists():
        show.command("what can be written in the manifests", f"less {shown(readme)}")


def _program(name: str) -> str:
    """Return how a program of this Python is called at the prompt."""
    beside = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not beside.exists() else shown(beside)


class StoppedError(BaseException):
    """Ctrl-C, or another signal that asks us to end; no handler of errors may swallow it."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number


@contextmanager
def stopping() -> Iterator[None]:
    """Turn the signals that ask us to end into an exception, once: cleaning up is not disturbed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, _: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise StoppedError(number)

    before = [(each, signal.signal(each, stop)) for each in signals]
    try:
        yield
    finally:
        for each, handler in before:
            signal.signal(each, handler)
