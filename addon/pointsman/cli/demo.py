"""`pointsman demo`."""

from typing import Annotated

import typer

from pointsman.cli.app import app, fail


@app.command()
def demo(
    *,
    transparent: Annotated[
        bool,
        typer.Option(
            "--transparent",
            help="Play it in two network namespaces behind iptables, with plain curl (needs root).",
        ),
    ] = False,
) -> None:
    """Play the main scenarios against two embedded providers: no key, no network needed.

    Examples:

        pointsman demo

        sudo pointsman demo --transparent
    """
    try:
        from pointsman.demo.play import play  # noqa: PLC0415 (an extra)
    except ImportError as error:
        packages = "'httpx[http2]' hypercorn trustme"
        fail(f"the demo needs more packages ({error.name}): pip install {packages}", 1)
    raise typer.Exit(play(transparent=transparent))
