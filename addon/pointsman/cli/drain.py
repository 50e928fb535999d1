"""`pointsman drain` and `pointsman health`: for hooks and probes in an image without curl."""

import time
from typing import Annotated, Any

import typer

from pointsman.admin.client import DEFAULT_ADDRESS, AdminError, AdminGoneError, ask
from pointsman.cli.app import app, fail

_LOOK_EVERY = 0.2
_ACCEPTED = 202

AdminOption = Annotated[
    str,
    typer.Option("--admin", help="The proxy's llm_admin: host:port, [::1]:port or unix:/path."),
]


@app.command()
def drain(
    *,
    admin: AdminOption = DEFAULT_ADDRESS,
    soft: Annotated[
        bool,
        typer.Option(
            "--soft",
            help="Go on accepting: be not ready, and ask clients to come by new connections.",
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Return when the proxy has ended; with --soft, when nothing is under way.",
        ),
    ] = False,
) -> None:
    """Let a running proxy end what it has begun, then exit.

    It takes in nothing new, serves what is under way for up to llm_drain_timeout, and exits with 0,
    as after SIGTERM. A pod's preStop hook wants --soft: the application is still finishing then.

    Examples:

        pointsman drain --wait

        pointsman drain --soft --admin unix:/run/pointsman/admin.sock
    """
    try:
        status, answer = ask(admin, "POST", f"/drain?soft={str(soft).lower()}")
    except AdminError as error:
        fail(str(error), 1)
    if status != _ACCEPTED:
        fail(f"the admin endpoint at {admin} refused: {answer.get('error', status)}", 1)
    if wait:
        _wait(admin, soft=soft)
    typer.echo("drained" if wait else "draining")


def _wait(admin: str, *, soft: bool) -> None:
    """Wait for the end: the proxy bounds it, by llm_drain_timeout."""
    while True:
        try:
            _, answer = ask(admin, "GET", "/readyz")
        except AdminGoneError:
            return
        except AdminError as error:
            fail(str(error), 1)
        if soft and not answer.get("under_way"):
            return
        time.sleep(_LOOK_EVERY)


@app.command()
def health(*, admin: AdminOption = DEFAULT_ADDRESS) -> None:
    """Tell whether a running proxy is ready; exit with 1 and the reasons if it is not.

    Examples:

        pointsman health

        pointsman health --admin 127.0.0.1:15020
    """
    try:
        _, answer = ask(admin, "GET", "/readyz")
    except AdminError as error:
        fail(str(error), 1)
    for warning in _texts(answer, "warnings"):
        typer.echo(f"warning: {warning}", err=True)
    if answer.get("ready") is not True:
        fail("not ready: " + ("; ".join(_texts(answer, "reasons")) or "no reason given"), 1)
    typer.echo("ready")


def _texts(answer: dict[str, Any], name: str) -> list[str]:
    found = answer.get(name)
    return [str(text) for text in found] if isinstance(found, list) else []
