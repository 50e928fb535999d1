"""What all commands share: the application, its common arguments, how it fails."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

import pointsman
from pointsman.config.backends import UnreadBackends
from pointsman.config.files import reason
from pointsman.config.labels import parse_labels
from pointsman.config.loading import Instance, Loaded, LoadError, load
from pointsman.locations import rules_path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Route LLM traffic by LLMProvider and LLMRoute manifests, for unmodified applications.",
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 (typer's signature)
    if wanted:
        versions = f"mitmproxy {version('mitmproxy')}, Python {platform.python_version()}"
        typer.echo(f"pointsman {pointsman.__version__} ({versions})")
        raise typer.Exit


@app.callback()
def _common(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the versions and exit."
        ),
    ] = False,
) -> None:
    """Take what stands before the command's name."""


RulesArgument = Annotated[
    Path, typer.Argument(help="Directory (without its subfolders) or file with the manifests.")
]
LabelsOption = Annotated[
    str,
    typer.Option(
        "--labels", help="This workload's labels: key=value,key=value, or a Downward API file."
    ),
]
ClusterOption = Annotated[
    bool,
    typer.Option(
        "--kubernetes", help="As with llm_kubernetes: references to an InferencePool are allowed."
    ),
]
GatewayOption = Annotated[
    list[str] | None,
    typer.Option("--gateway", help="A gateway name that the instance serves (default: mesh)."),
]
WithoutKeysOption = Annotated[
    bool,
    typer.Option(
        "--without-keys", help="Do without the keys and certificates that the rules name."
    ),
]


def fail(message: str, status: int) -> NoReturn:
    """End with a message for a person, and a status for a script."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(message, markup=False)
    raise typer.Exit(status)


def load_rules(  # noqa: PLR0913 (what commands load rules with)
    rules: Path,
    labels: str,
    gateways: list[str] | None,
    *,
    without_keys: bool = False,
    kubernetes: bool = False,
    status: int = 1,
) -> Loaded:
    """Load the rules that a command names, or end with what is wrong with them, and this status."""
    try:
        instance = Instance(
            labels=parse_labels(labels),
            gateways=frozenset(gateways or ["mesh"]),
            backends=UnreadBackends() if kubernetes else None,
        )
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "not text"
        fail(f"--labels: {labels} can't be read ({why}); check the path", 2)
    except ValueError as error:
        fail(f"--labels: {error}", 2)
    try:
        return load(rules_path(rules), instance=instance, without_keys=without_keys)
    except LoadError as error:
        fail(str(error), status)
