"""`pointsman report`."""

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pointsman.cli.app import GatewayOption, LabelsOption, app, fail, load_rules
from pointsman.reporting import showing
from pointsman.reporting.summing import Report
from pointsman.telemetry.amounts import several


@app.command()
def report(  # noqa: PLR0913 (what a report can be asked for)
    logs: Annotated[
        list[Path],
        typer.Argument(help="Access logs, also gzipped (.gz); - is standard input."),
    ],
    *,
    rules: Annotated[
        Path | None, typer.Option("--rules", help="The rules, for the configured shares.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with charts to this file.")
    ] = None,
    labels: LabelsOption = "",
    gateway: GatewayOption = None,
) -> None:
    """Sum up access logs: requests, split, tokens, cost, errors and times by rule and model.

    A share is of the requests of its rule, by the provider that was chosen first. Lines that are
    not the access log's are passed over. Exits with 1 when there is no request in the logs.

    Examples:

        pointsman report access.log --rules rules

        kubectl logs deploy/shop -c pointsman | pointsman report - --html report.html
    """
    table = load_rules(rules, labels, gateway, without_keys=True, status=2).table if rules else None
    shares = showing.configured_shares(table) if table else {}
    found = Report(table)
    for log in logs:
        try:
            with _opened(log) as lines:
                found.read(lines)
        except (OSError, EOFError, zlib.error) as error:
            why = getattr(error, "strerror", None) or "it is damaged, cut short or no gzip file"
            fail(f"{log} can't be read ({why})", 2)
    if found.first is None:
        unread = f" (unreadable: {several(found.unread, 'line')})" if found.unread else ""
        fail(f"no LLM request in {', '.join(map(str, logs))}{unread}", 1)
    if html:
        try:
            html.write_text(showing.as_html(found, shares), encoding="utf-8")
        except OSError as error:
            fail(f"--html: {html} can't be written ({error.strerror})", 2)
    if as_json:
        typer.echo(json.dumps(showing.as_dict(found, shares), indent=2))
    elif html:
        typer.echo(f"written: {html}")
    else:
        width = None if sys.stdout.isatty() else 100_000  # into a pipe nothing is wrapped
        showing.show(found, shares, Console(width=width, highlight=False))


@contextmanager
def _opened(log: Path) -> Iterator[Iterable[str]]:
    if str(log) == "-":
        yield (line.decode(errors="replace") for line in sys.stdin.buffer)
    elif log.suffix == ".gz":
        with gzip.open(log, "rt", encoding="utf-8", errors="replace") as file:
            yield file
    else:
        with log.open(encoding="utf-8", errors="replace") as file:
            yield file
