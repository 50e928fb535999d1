"""How the demo looks: at most 100 columns, alive on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import median

from rich.console import Console
from rich.live import Live
from rich.text import Text

WIDTH = 100
LOG_EVERY = 5
KEY_CHARACTERS = 4
BAR = "━"

type Part = str | tuple[str, str]


@dataclass(frozen=True)
class Taken:
    """What is shown of one request, or of `times` like it; None is unknown."""

    url: str
    model: str
    key: str
    status: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    duration_ms: float
    overhead_ms: float
    times: int = 1


def mask(key: str) -> str:
    """Return the end of a key, enough to tell two apart."""
    return f"...{key[-KEY_CHARACTERS:]}" if key else "none"


def money(usd: float) -> str:
    """Return a list price; most calls cost far less than a cent."""
    return f"${usd:.6f}"


def count(number: int | None) -> str:
    """Return a number that may be unknown."""
    return "?" if number is None else str(number)


class Show:
    """Everything that the demo prints."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lively = console.is_terminal and not console.is_dumb_terminal
        self._in_stream = False

    def line(self, *parts: Part, indent: int = 0, label: str = "") -> None:
        """Print a line of styled parts; what does not fit goes on below, as far in.

        A label stands in the indent.
        """
        width = max(self._console.width - indent, 1)
        for line in Text.assemble(*parts).wrap(self._console, width):
            line.rstrip()
            self.verbatim((f"{label:<{indent}}", "dim"), line)
            label = ""

    def verbatim(self, *parts: Part | Text) -> None:
        """Print a line that must stay one, whatever the width: something to copy."""
        if self._in_stream:  # it broke off
            self._in_stream = False
            self.gap()
        self._console.print(Text.assemble(*parts), soft_wrap=True)

    def gap(self) -> None:
        """Print an empty line."""
        self._console.print()

    def pause(self, seconds: float) -> None:
        """Give a person the time to follow; a log needs none."""
        if self._lively:
            time.sleep(seconds)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show what is being waited for, for as long as that takes."""
        with self._console.status(Text(what, "dim")) if self._lively else nullcontext():
            yield

    def heading(self, title: str) -> None:
        """Begin a part."""
        self.gap()
        self.line((title, "bold"))

    def notes(self, notes: Iterable[tuple[str, str]]) -> None:
        """Show what stands where."""
        for label, text in notes:
            self.line((text, "dim"), indent=13, label=f"  {label}")

    def stopped(self) -> None:
        """Tell that a person has stopped it, in the middle of anything."""
        self._console.show_cursor()
        self.gap()
        self.line(("stopped; nothing is left running", "dim"))

    # --- requests -----------------------------------------------------------------------------

    def rules(
        self, example: str, manifests: Sequence[str], live_after: float | None = None
    ) -> None:
        """Show which rules are live."""
        self.line((f"{example}: {', '.join(manifests)}", "dim"), indent=10, label="   rules")
        if live_after is not None:
            change = f"changed on disk, live after {live_after * 1000:.0f} ms, nothing restarted"
            self.line((change, "dim"), indent=10)

    def request(
        self, url: str, headers: Mapping[str, str] | None = None, *, body: str = "", times: int = 1
    ) -> None:
        """Show what the client sends."""
        parts: list[Part] = [("POST ", "bold"), (url, "bold")]
        parts += [(f"  {name}: {value}", "yellow") for name, value in (headers or {}).items()]
        if body:
            parts.append((f"  {body}", "yellow"))
        if times > 1:
            parts.append((f"  {times} times", "yellow"))
        self.line(*parts, indent=3)

    def taken(self, taken: Taken, text: str = "") -> None:
        """Show who was called, with what, and what came of it."""
        self.line(("→ ", "dim"), (taken.url, "cyan"), indent=3)
        times = f"{taken.times}x " if taken.times > 1 else ""
        facts: list[Part] = [
            (taken.model, "magenta"),
            f"key {mask(taken.key)}",
            (f"{times}{taken.status}", "green" if taken.status < 400 else "red"),  # noqa: PLR2004
            f"{count(taken.prompt_tokens)}+{count(taken.completion_tokens)} tokens",
            "cost n/a" if taken.cost_usd is None else money(taken.cost_usd),
            f"{taken.duration_ms:.1f} ms (Pointsman {taken.overhead_ms:.2f})",
        ]
        parts: list[Part] = []
        for fact in facts:
            parts += [(" · ", "dim"), fact] if parts else [fact]
        self.line(*parts, indent=5)
        if text:
            self.line((f"“{text}”", "italic dim"), indent=5)

    # --- a stream -----------------------------------------------------------------------------

    def word(self, word: str) -> None:
        """Show a piece of an answer as it comes."""
        start = "" if self._in_stream else "     “"
        self._in_stream = True
        self._console.print(Text(f"{start}{word}", "italic"), end="", soft_wrap=True)

    def stream_ended(self, taken: Taken, *, first_token: float | None, whole: float) -> None:
        """Show what the stream came to."""
        if self._in_stream:
            self._in_stream = False
            self._console.print(Text("”", "italic"))
        self.taken(taken)
        if first_token is not None:
            self.line(
                ("first token after ", "dim"),
                f"{first_token * 1000:.0f} ms",
                (", all of them after ", "dim"),
                f"{whole * 1000:.0f} ms",
                indent=5,
            )

    # --- shares -------------------------------------------------------------------------------

    @contextmanager
    def shares(self, hosts: Sequence[str], total: int) -> Iterator["Shares"]:
        """Show how requests are spread over hosts while they are made."""
        shares = Shares(hosts)
        if self._lively:
            with Live(shares.bars(), console=self._console, refresh_per_second=30) as live:
                shares.changed = lambda: live.update(shares.bars(), refresh=True)
                yield shares
        else:
            shares.changed = lambda: self._log(shares, total)
            yield shares
            self.verbatim(shares.bars())
        for taken in shares.sums():
            self.taken(taken)

    def _log(self, shares: "Shares", total: int) -> None:
        if shares.made % LOG_EVERY == 0 and shares.made < total:
            self.line(f"after {shares.made:>2}: {shares.counts()}", indent=5)

    # --- the end ------------------------------------------------------------------------------

    def check(self, claim: str, problems: Sequence[str]) -> None:
        """Show whether something held, and what spoke against it."""
        mark, style = ("✗", "bold red") if problems else ("✓", "bold green")
        self.line((f"{mark} ", style), (claim, "red" if problems else ""), indent=2)
        for problem in problems[:6]:
            for text in problem.splitlines():
                self.line((text, "red"), indent=6)
        if len(problems) > 6:  # noqa: PLR2004 (a screen is enough)
            self.line((f"and {len(problems) - 6} more", "red"), indent=6)

    def command(self, why: str, command: str) -> None:
        """Show a command to try."""
        self.line((f"# {why}", "dim"), indent=2)
        for line in command.splitlines():
            self.verbatim("  ", (line, "cyan"))


class Shares:
    """The counts behind a growing bar."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._taken: dict[str, list[Taken]] = {host: [] for host in hosts}
        self.changed: Callable[[], None] = lambda: None

    @property
    def made(self) -> int:
        """How many requests have been made."""
        return sum(len(taken) for taken in self._taken.values())

    def add(self, host: str, taken: Taken) -> None:
        """Count one request."""
        self._taken.setdefault(host, []).append(taken)
        self.changed()

    def counts(self) -> str:
        """Return a line's worth."""
        return ", ".join(f"{host} {len(taken)}" for host, taken in self._taken.items())

    def bars(self) -> Text:
        """Return a bar for each host."""
        width = max(len(host) for host in self._taken)
        return Text("\n").join(
            Text.assemble(f"     {host:<{width}}  ", (BAR * len(taken), "cyan"), f" {len(taken)}")
            for host, taken in self._taken.items()
        )

    def sums(self) -> list[Taken]:
        """Return what each host's requests came to: tokens and cost in all, times in the median."""
        return [_sum(taken) for taken in self._taken.values() if taken]


def _sum(taken: Sequence[Taken]) -> Taken:
    costs = [t.cost_usd for t in taken if t.cost_usd is not None]
    return replace(
        taken[-1],
        times=len(taken),
        status=max(t.status for t in taken),
        prompt_tokens=sum(t.prompt_tokens or 0 for t in taken),
        completion_tokens=sum(t.completion_tokens or 0 for t in taken),
        cost_usd=sum(costs) if costs else None,
        duration_ms=median(t.duration_ms for t in taken),
        overhead_ms=median(t.overhead_ms for t in taken),
    )
