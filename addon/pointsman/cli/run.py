"""`pointsman run`."""

from typing import Annotated

import typer

from pointsman.cli.app import app


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=True,
)
def run(
    context: typer.Context,
    *,
    rules: Annotated[
        str | None,
        typer.Option("--rules", help="Directory or file with the manifests.  [default: rules]"),
    ] = None,
) -> None:
    """Run mitmdump with the addon and a sidecar's defaults.

    Only JSON lines for LLM requests, warnings and errors are printed. Further options are
    mitmdump's own.

    Examples:

        pointsman run --rules rules -p 8080

        pointsman run --mode transparent@15001 --set llm_labels=/etc/podinfo/labels
    """
    from pointsman.proxy.run import run as run_proxy  # noqa: PLC0415 (loads all of mitmproxy)

    raise typer.Exit(run_proxy(rules, context.args))
