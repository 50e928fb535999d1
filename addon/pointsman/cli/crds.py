"""`pointsman crds`."""

import typer

from pointsman.cli.app import app


@app.command()
def crds() -> None:
    """Print the CustomResourceDefinitions of LLMProvider and LLMRoute.

    A cluster with Alibaba Cloud Service Mesh has them already; then nothing has to be applied.

    Examples:

        pointsman crds | kubectl apply -f -
    """
    from pointsman.kubernetes.crds import manifest  # noqa: PLC0415 (it reads the models' source)

    typer.echo(manifest(), nl=False)
