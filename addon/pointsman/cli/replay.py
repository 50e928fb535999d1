"""`pointsman replay`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from pointsman.cli.app import GatewayOption, LabelsOption, app, fail, load_rules
from pointsman.config.table import RoutingTable
from pointsman.reporting.replaying import MEANING, Line, Replay
from pointsman.telemetry.amounts import several
from pointsman.wellformed import printable

_SHOWN = 100


@app.command()
def replay(  # noqa: PLR0913 (what a replay can be asked for)
    flows: Annotated[
        list[Path], typer.Argument(help="Saved traffic: mitmproxy's (.mitm) or HAR files.")
    ],
    *,
    rules: Annotated[Path, typer.Option("--rules", help="The rules to try.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="The rules to compare with, such as today's.")
    ] = None,
    fail_on: Annotated[
        Literal["refused", "changed", "never"],
        typer.Option(
            "--fail-on",
            help="Exit with 1 when a request would be refused (with --against: newly refused), when"
            " anything changes, or never.",
        ),
    ] = "refused",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    labels: LabelsOption = "",
    gateway: GatewayOption = None,
) -> None:
    """Try rules on saved traffic: what would be routed, re-routed or refused. Nothing is sent.

    No keys are needed. A saved flow holds the client's own request, with its credentials masked.

    Examples:

        pointsman replay traffic.mitm --rules new-rules --against rules

        pointsman replay recorded.har --rules rules --json
    """
    if against is None and fail_on == "changed":
        fail("--fail-on changed compares with other rules; name them with --against", 2)

    def read_rules(path: Path) -> RoutingTable:
        return load_rules(path, labels, gateway, without_keys=True, status=2).table

    table, old = read_rules(rules), read_rules(against) if against else None
    tried, skipped = Replay(table, old), 0
    from pointsman.proxy.saved_flows import read  # noqa: PLC0415 (loads all of mitmproxy)

    for path in flows:
        try:
            for saved in read(path):
                if saved is None:
                    skipped += 1
                else:
                    tried.take(saved.request, saved.names)
        except OSError as error:
            fail(f"{path} can't be read ({error.strerror})", 2)
        except ValueError as error:
            fail(f"{path} can't be read: {error}", 2)
    if not tried.total:
        fail(f"no HTTP request in {', '.join(map(str, flows))}", 2)
    _print(tried, skipped, as_json=as_json)
    refused = tried.changes["newly refused"] if against else tried.outcomes["refused"]
    changed = tried.total - tried.changes["same"] if against else 0
    if (fail_on == "refused" and refused) or (fail_on == "changed" and changed):
        raise typer.Exit(1)


def _print(tried: Replay, skipped: int, *, as_json: bool) -> None:
    if as_json:
        lines = [{"count": count, **_as_dict(line)} for line, count in tried.lines.most_common()]
        counted = {"outcomes": dict(tried.outcomes), "changes": dict(tried.changes)}
        summed = {"requests": tried.total, "skipped": skipped, **counted, "lines": lines}
        typer.echo(json.dumps(summed, indent=2))
        return
    others = [several(skipped, "other flow")] if skipped else []
    typer.echo(", ".join([several(tried.total, "request"), *others]))
    for outcome, meaning in MEANING.items():
        if count := tried.outcomes[outcome]:
            typer.echo(f"  {count:>7}  {outcome}: {meaning}")
    if tried.changes:
        typer.echo("compared with the other rules")
        for change, count in tried.changes.most_common():
            typer.echo(f"  {count:>7}  {change}")
    told = tried.told()
    for line, count in told[:_SHOWN]:
        typer.echo("")
        became = line.change or line.after.outcome
        typer.echo(f"{count} × {printable(line.request)}  [{became}]")  # noqa: RUF001
        if line.before:
            typer.echo(f"    before: {_words(line.before.outcome, line.before.detail)}")
        after = _words(line.after.outcome, line.after.detail)
        typer.echo(f"    {'after: ' if line.before else ''}{after}  {line.after.rule}".rstrip())
    if len(told) > _SHOWN:
        typer.echo(f"\n… and {len(told) - _SHOWN} more; --json has them all")


def _words(outcome: str, detail: str) -> str:
    return f"{outcome}: {printable(detail)}" if detail else outcome


def _as_dict(line: Line) -> dict[str, object]:
    found = asdict(line)
    for name in ("before", "after"):
        if found[name]:
            del found[name]["rewrite"]
    return found
