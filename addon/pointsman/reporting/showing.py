"""A report as plain data, as tables for a terminal, as one HTML file."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pointsman.config.table import RoutingTable
from pointsman.reporting.summing import NONE, Report, RuleKey, Sums
from pointsman.routing.planning import split
from pointsman.telemetry.amounts import UNKNOWN, dollars, several, some
from pointsman.telemetry.naming import name_of_rule
from pointsman.wellformed import printable

type Shares = Mapping[RuleKey, float]

_MAX_BARS = 8
_NEW_LINE = frozenset(
    {"prompt tokens", "duration p50/95/99"}
)  # before these, where rows are stacked
_ANY_WIDTH = 100_000  # of columns
_THOUSAND = 1000


def configured_shares(table: RoutingTable) -> dict[RuleKey, float]:
    """Return what part of its priority each target is to get; higher priorities only stand by."""
    shares: dict[RuleKey, float] = {}
    for route, rule in table.rules():
        for target, share in split(rule.targets):
            key = (name_of_rule(route, rule), target.provider)
            shares[key] = shares.get(key, 0.0) + share
    return shares


def as_dict(report: Report, shares: Shares) -> dict[str, Any]:
    """Return the report as plain data for JSON."""
    return {
        "from": report.first.isoformat() if report.first else None,
        "to": report.last.isoformat() if report.last else None,
        "unread_lines": report.unread,
        "total": report.total.as_dict(),
        "rules": [
            {
                "route": key[0].route,
                "host": key[0].host or None,
                "rule": key[0].rule or NONE,
                "provider": key[1],
                "share": report.share(key),
                "configured_share": shares.get(key),
                **sums.as_dict(),
            }
            for key, sums in _by_requests(_all_rules(report, shares))
        ],
        "models": [
            {"provider": provider, "model": model, **sums.as_dict()}
            for (provider, model), sums in _by_requests(report.models)
        ],
        "statuses": dict(report.statuses.most_common()),
        "flags": dict(report.flags.most_common()),
    }


def _all_rules(report: Report, shares: Shares) -> dict[RuleKey, Sums]:
    """Return the rows of the log, and those that rules name and no request has come to."""
    used = {name for name, _ in report.rules}
    idle = {key: Sums() for key in shares if key[0] in used and key not in report.rules}
    chosen = {key: Sums() for key in report.chosen if key not in report.rules}
    return {**report.rules, **chosen, **idle}


def _by_requests[K](rows: Mapping[K, Sums]) -> list[tuple[K, Sums]]:
    return sorted(rows.items(), key=lambda row: (-row[1].requests, str(row[0])))


# --- cells ----------------------------------------------------------------------------------------


def _named(key: RuleKey) -> list[str]:
    """Return the cells of a route, with its host where that is known and another, and the rest."""
    (route, host, rule), provider = key
    shown = route if host in {"", route} else f"{route} ({host})"
    return [shown, rule or NONE, provider]


def _percent(part: float | None) -> str:
    return UNKNOWN if part is None else f"{part:.1%}"


def _number(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def _milliseconds(sums: Sums, name: str) -> str:
    found = getattr(sums, name).quantiles().values()
    return " / ".join(UNKNOWN if value is None else _brief(value) for value in found)


def _brief(value: float) -> str:
    """Return a duration of three digits, as a quantile has, in milliseconds or seconds."""
    if value < _THOUSAND:
        return f"{value:.3g} ms"
    seconds = value / _THOUSAND
    return f"{seconds:.3g} s" if seconds < _THOUSAND else f"{seconds:.0f} s"


def _tokens(sums: Sums, kind: str) -> str:
    count, known = getattr(sums, f"{kind}_tokens"), getattr(sums, f"with_{kind}_tokens")
    return some(_number(count), known=bool(known), more=bool(sums.without_usage))


def _cost(sums: Sums) -> str:
    more = bool(sums.without_usage or sums.without_price)
    return some(dollars(sums.cost_usd), known=bool(sums.with_cost), more=more)


_NUMBERS = (
    "requests",
    "errors",
    "failed over",
    "prompt tokens",
    "completion tokens",
    "cost",
    "duration p50/95/99",
    "first token",
    "overhead",
)


def _numbers(sums: Sums) -> list[str]:
    return [
        _number(sums.requests),
        _number(sums.errors),
        _number(sums.failed_over),
        _tokens(sums, "prompt"),
        _tokens(sums, "completion"),
        _cost(sums),
        *(_milliseconds(sums, name) for name in ("duration", "time_to_first_token", "overhead")),
    ]


def _tables(report: Report, shares: Shares) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Return title, columns and rows of each table."""
    rules = [
        [*_named(key), _percent(report.share(key)), _percent(shares.get(key)), *_numbers(sums)]
        for key, sums in _by_requests(_all_rules(report, shares))
    ]
    models = [[*key, *_numbers(sums)] for key, sums in _by_requests(report.models)]
    outcomes = [
        [what, _number(count), _percent(count / max(report.total.requests, 1))]
        for what, count in [
            *((f"status {status}", n) for status, n in report.statuses.most_common()),
            *((f"flag {flag}", n) for flag, n in report.flags.most_common()),
        ]
    ]
    by_rule = ("route", "rule", "provider", "share", "configured", *_NUMBERS)
    return [
        ("By route, rule and provider", by_rule, rules),
        ("By provider and model", ("provider", "model", *_NUMBERS), models),
        ("Outcomes", ("outcome", "requests", "of all"), outcomes),
    ]


def _notes(report: Report, shares: Shares) -> list[str]:
    total, notes = report.total, []
    if total.observed:
        notes.append(
            f"{several(total.observed, 'request')} only observed: sent where the client sent it."
        )
    if total.mirrored:
        notes.append(f"In tokens and cost alone: mirrored copies ({_number(total.mirrored)}).")
    unknown = [
        (total.without_usage, "without token usage"),
        (total.without_price, "without a known list price"),
    ]
    told = [f"{several(count, 'answer')} {what}" for count, what in unknown if count]
    if told:
        notes.append(f"+ means more: {', '.join(told)}.")
    if not shares:
        notes.append("Name the rules (--rules) to see configured shares.")
    if report.unread:
        notes.append(f"{several(report.unread, 'line')} could not be read; not counted.")
    return notes


def _headline(report: Report) -> str:
    total = report.total
    span = f"{_moment(report.first)} to {_moment(report.last)}"
    both = _number(total.prompt_tokens + total.completion_tokens)
    known = bool(total.with_prompt_tokens)
    tokens = some(both, known=known, more=bool(total.without_usage))
    return (
        f"{several(total.requests, 'request')}, {several(total.errors, 'error')}, {tokens} tokens,"
        f" {_cost(total)} · {span}"
    )


def _moment(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z" if moment else NONE


# --- a terminal -----------------------------------------------------------------------------------


def show(report: Report, shares: Shares, console: Console) -> None:
    """Print it for a person: as tables, or below each other what is too wide for one."""
    console.print(_headline(report), style="bold", markup=False)
    for title, columns, rows in _tables(report, shares):
        clean = [list(map(printable, row)) for row in rows]
        console.print()
        if (table := _table(title, columns, clean)) and _fits(table, console):
            console.print(table)
        else:
            console.print(Text(title, style="bold"))
            for row in clean:
                _stack(columns, row, console)
    console.print()
    for note in _notes(report, shares):
        console.print(note, style="dim", markup=False)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    texts = _texts(columns)
    for place, name in enumerate(columns):
        justify: Literal["left", "right"] = "left" if place < texts else "right"
        table.add_column(name, justify=justify, header_style="dim", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _fits(table: Table, console: Console) -> bool:
    needed = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).maximum
    return needed <= console.width


def _stack(columns: Sequence[str], row: Sequence[str], console: Console) -> None:
    """Print a row as its name and, below, its numbers, none of which is broken."""
    texts = _texts(columns)
    console.print(Text(" · ".join(row[:texts]), overflow="fold"))
    line = Text()
    for name, value in zip(columns[texts:], row[texts:], strict=True):
        pair = Text.assemble("  ", (name, "dim"), " ", value)
        if line and (name in _NEW_LINE or line.cell_len + pair.cell_len > console.width):
            console.print(line)
            line = Text()
        line.append_text(pair)
    console.print(line)


def _texts(columns: Sequence[str]) -> int:
    """Return how many columns, the first ones, are texts."""
    return sum(name in {"route", "rule", "provider", "model", "outcome"} for name in columns)


# --- HTML -----------------------------------------------------------------------------------------

_COLOURS = ("#3b6fd4", "#d9822b", "#2e9e6b", "#b04fc4", "#c94f4f", "#5aa7b8", "#8a8f3a", "#8a8a8a")
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 92rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
/* A shadow where there is more, as some systems hide scrollbars; what scrolls along covers it. */
.wide { overflow-x: auto; background:
  linear-gradient(to right, Canvas 50%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(to left, Canvas 50%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to right, #888a, transparent) left / .6rem 100% no-repeat,
  linear-gradient(to left, #888a, transparent) right / .6rem 100% no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }
th, td { font-size: .93em; }
th { font-weight: 500; opacity: .7; }
.text { text-align: left; max-width: 15rem; overflow: hidden; text-overflow: ellipsis; }
.bar { display: flex; align-items: center; gap: .6rem; margin: .2rem 0; }
.bar span:first-child { flex: 0 0 min(22rem, 30%); overflow: hidden; text-overflow: ellipsis; }
.bar span:last-child { flex: 0 0 12rem; text-align: right; }
.track { flex: 1; min-width: 6rem; background: var(--soft); height: 1rem; position: relative; }
.track b, .track i { position: absolute; top: 0; height: 100%; }
.track i { width: 2px; background: currentColor; }
.legend { display: flex; flex-wrap: wrap; gap: 1rem; margin: .4rem 0; }
.legend b { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; }
.chart { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: .1rem .5rem; }
.chart p { display: flex; justify-content: space-between; margin: 0; opacity: .7; }
.chart p:first-child { flex-direction: column; text-align: right; line-height: 1; }
.chart p:last-child { grid-column: 2; flex-wrap: wrap; gap: 0 1rem; }
svg { width: 100%; height: 10rem; background: var(--soft); }
p.note { opacity: .7; margin: .2rem 0; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; }
  .text { max-width: 5.5rem; }
  .bar { flex-wrap: wrap; gap: 0 .6rem; margin: .5rem 0; }
  .bar span:first-child { flex-basis: 100%; }
  .bar span:last-child { flex-basis: auto; }
}
"""


def as_html(report: Report, shares: Shares) -> str:
    """Return one self-contained page: no script, nothing loaded from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width">',
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';",
        " style-src 'unsafe-inline'\">",
        f"<title>LLM traffic</title><style>{_STYLE}</style>",
        f"<h1>LLM traffic</h1><p>{escape(_headline(report))}</p>",
        _timeline(report),
        _splits(report, shares),
        _bars("Cost by model", {" · ".join(k): s.cost_usd for k, s in report.models.items()}, "$"),
        _bars(
            "Tokens by model",
            {
                " · ".join(k): float(s.prompt_tokens + s.completion_tokens)
                for k, s in report.models.items()
            },
        ),
    ]
    for title, columns, rows in _tables(report, shares):
        parts.append(f"<h2>{escape(title)}</h2>{_html_table(columns, rows)}")
    parts += [f"<p class=note>{escape(note)}</p>" for note in _notes(report, shares)]
    return "".join(parts)


def _html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    texts = _texts(columns)

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class=text title="{escape(value)}">{escape(value)}</{tag}>'
            if place < texts
            else f"<{tag}>{escape(value)}</{tag}>"
            for place, value in enumerate(map(printable, values))
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', columns)}</tr></thead>"
    return f"<div class=wide><table>{head}<tbody>{body}</tbody></table></div>"


def _splits(report: Report, shares: Shares) -> str:
    """Draw the actual share of each target as a bar, the configured one as a mark on it."""
    rows = []
    for key, _ in _by_requests(_all_rules(report, shares)):
        share, wanted = report.share(key), shares.get(key)
        if share is None:
            continue
        mark = "" if wanted is None else f"<i style=left:{wanted:.2%}></i>"
        beside = "" if wanted is None else f" (configured {wanted:.1%})"
        bar = f'<b style="width:{share:.2%};background:{_COLOURS[0]}"></b>{mark}'
        rows.append(_bar(" · ".join(_named(key)), bar, f"{share:.1%}{beside}"))
    return f"<h2>Split per rule</h2>{''.join(rows)}" if rows else ""


def _bars(title: str, values: Mapping[str, float], unit: str = "") -> str:
    highest = max(values.values(), default=0.0)
    if highest <= 0:
        return ""
    first = sorted(values.items(), key=lambda item: -item[1])[:_MAX_BARS]
    rows = [
        _bar(
            name,
            f'<b style="width:{value / highest:.2%};background:{_COLOURS[0]}"></b>',
            f"{unit}{value:,.4f}" if unit else _number(int(value)),
        )
        for name, value in first
        if value > 0
    ]
    return f"<h2>{escape(title)}</h2>{''.join(rows)}"


def _bar(name: str, bar: str, value: str) -> str:
    shown = escape(printable(name))
    return (
        f'<div class=bar><span title="{shown}">{shown}</span><span class=track>{bar}</span>'
        f"<span>{escape(value)}</span></div>"
    )


def _timeline(report: Report) -> str:
    """Draw the requests over time, those of a provider above those of the next."""
    steps, step = report.timeline.steps, report.timeline.step
    if not steps:
        return ""
    first, last = min(steps), max(steps)
    highest = max(counts.total() for counts in steps.values())
    layers = _layers(steps.values())
    bars = []
    for start, counts in sorted(steps.items()):
        top = highest
        for (_, names), colour in zip(layers, _COLOURS, strict=False):
            if height := sum(counts[name] for name in names):
                top -= height
                bars.append(
                    f'<rect x="{(start - first) // step}" y="{top}" width=".9"'
                    f' height="{height}" fill="{colour}"/>'
                )
    legend = "".join(
        f'<span><b style="background:{colour}"></b>{escape(printable(shown))}</span>'
        for (shown, _), colour in zip(layers, _COLOURS, strict=False)
    )
    ends = (datetime.fromtimestamp(moment, UTC) for moment in (first, last + step))
    return (
        f"<h2>Requests by provider, per {_span(step)}</h2>"
        f"<div class=chart><p><span>{_number(highest)}</span><span>0</span></p>"
        f'<svg viewBox="0 0 {(last - first) // step + 1} {highest}" preserveAspectRatio="none"'
        f' role="img" aria-label="requests over time, at most {highest} in {_span(step)}">'
        f"{''.join(bars)}</svg>"
        f"<p>{''.join(f'<span>{_moment(end)}</span>' for end in ends)}</p></div>"
        f"<div class=legend>{legend}</div>"
    )


def _layers(steps: Iterable[Counter[str]]) -> list[tuple[str, list[str]]]:
    """Return what has a colour, the busiest first, with its providers: the last has the rest."""
    total: Counter[str] = Counter()
    for counts in steps:
        total.update(counts)
    names = [name for name, _ in total.most_common()]
    if len(names) <= len(_COLOURS):
        return [(name, [name]) for name in names]
    own, rest = names[: len(_COLOURS) - 1], names[len(_COLOURS) - 1 :]
    return [*((name, [name]) for name in own), (several(len(rest), "other"), rest)]


def _span(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min" if minutes and not rest else f"{seconds} s"
