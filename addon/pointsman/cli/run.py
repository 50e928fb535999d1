"""`pointsman run`."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer

from pointsman.cli.app import app, fail

_SIDECAR = "Sidecar"
_OWN = re.compile(r"llm_\w+=")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=True,
)
def run(  # noqa: PLR0913 (one for each option)
    context: typer.Context,
    *,
    rules: Annotated[
        str | None,
        typer.Option("--rules", help="Directory or file with the manifests.  [default: rules]"),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option("--mode", "-m", help="mitmproxy's mode; a sidecar's is transparent."),
    ] = None,
    sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar",
            help="Run worker processes that are started again when they die; log JSON alone.",
            rich_help_panel=_SIDECAR,
        ),
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(
            help="How many, or auto: as many as the process may use cores.  [default: 1]",
            rich_help_panel=_SIDECAR,
        ),
    ] = None,
    port: Annotated[
        str | None,
        typer.Option(help="Where to listen.  [default: 15001]", rich_help_panel=_SIDECAR),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            help="An IP address to listen on, or all.  [default: 127.0.0.1 and ::1]",
            rich_help_panel=_SIDECAR,
        ),
    ] = None,
    confdir: Annotated[
        str | None,
        typer.Option(
            help="Where the certificate authority and everything else that is written is kept."
            "  [default: $POINTSMAN_CONFDIR or /var/lib/pointsman]",
            rich_help_panel=_SIDECAR,
        ),
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(
            help="Directory of a mounted Secret with the authority: tls.crt, tls.key.",
            rich_help_panel=_SIDECAR,
        ),
    ] = None,
    allow_root: Annotated[
        bool,
        typer.Option("--allow-root", help="Run as root, too.", rich_help_panel=_SIDECAR),
    ] = False,
) -> None:
    """Run mitmdump with the addon and a sidecar's defaults.

    Standard output has JSON lines for LLM requests, warnings and errors alone; standard error
    tells what is live and where it listens. Further options are mitmdump's own.

    Examples:

        pointsman run --rules rules -p 8080

        pointsman run --mode transparent@127.0.0.1:15001 --mode transparent@::1:15001

        pointsman run --sidecar --workers auto --rules /etc/pointsman/rules
    """
    own: dict[str, Any] = {
        "workers": workers,
        "port": port,
        "listen": listen,
        "confdir": confdir,
        "ca": ca,
        "allow_root": allow_root,
    }
    given = {name: value for name, value in own.items() if value}
    if sidecar:
        from pointsman.sidecar.main import run as run_sidecar  # noqa: PLC0415 (no one else's)
        from pointsman.sidecar.settings import Given  # noqa: PLC0415

        found = Given(rules=rules or "", mode=mode or (), arguments=context.args, **given)
        raise typer.Exit(run_sidecar(found))
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        fail(f"{named}: only with --sidecar", 2)
    if word := forgotten_set(context.args):
        fail(f"{word}: an option of the addon follows --set; write --set {word}", 2)
    from pointsman.proxy.run import run as run_proxy  # noqa: PLC0415 (loads all of mitmproxy)

    modes = [part for each in mode or () for part in ("--mode", each)]
    raise typer.Exit(run_proxy(rules, [*modes, *context.args]))


def forgotten_set(arguments: Sequence[str]) -> str | None:
    """Return a setting of ours that stands alone: mitmdump takes it for a filter, in silence."""
    pairs = pairwise(("", *arguments))
    return next((word for before, word in pairs if before != "--set" and _OWN.match(word)), None)
