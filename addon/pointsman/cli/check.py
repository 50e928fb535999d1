"""`pointsman check`."""

from pathlib import Path
from typing import Annotated

import typer

from pointsman.cli.app import (
    ClusterOption,
    GatewayOption,
    LabelsOption,
    RulesArgument,
    WithoutKeysOption,
    app,
    fail,
    load_rules,
)
from pointsman.telemetry.amounts import several


@app.command()
def check(  # noqa: PLR0913 (what a check can be asked for)
    rules: RulesArgument = Path("rules"),
    *,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable", help="Also fail on each field that Alibaba Cloud Service Mesh lacks."
        ),
    ] = False,
    without_keys: WithoutKeysOption = False,
    labels: LabelsOption = "",
    gateway: GatewayOption = None,
    kubernetes: ClusterOption = False,
) -> None:
    """Validate manifests; exit with 1 if anything is wrong.

    Every error is shown, with its file, line and field and how to mend it. Keys must be there: set
    the environment variables that the manifests name, or ask for --without-keys.

    Examples:

        pointsman check rules

        pointsman check --without-keys rules/examples/traffic-split

        pointsman check --portable rules
    """
    loaded = load_rules(rules, labels, gateway, without_keys=without_keys, kubernetes=kubernetes)
    for warning in loaded.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if portable and loaded.extensions:
        for extension in loaded.extensions:
            typer.echo(str(extension), err=True)
        count = len(loaded.extensions)
        verb = "is" if count == 1 else "are"
        fail(f"{several(count, 'field')} that {verb} not portable", 1)
    skipped = f"; skipped: {', '.join(loaded.skipped)}" if loaded.skipped else ""
    providers = several(len(loaded.providers), "provider")
    routes = several(len(loaded.routes), "route")
    typer.echo(f"{rules}: {providers} and {routes} are valid{skipped}")
