"""The command line: `pointsman check | explain | run | demo`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from pointsman import explaining
from pointsman.config.files import reason
from pointsman.config.labels import parse_labels
from pointsman.config.loading import Instance, Loaded, LoadError, load

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Route LLM traffic by LLMProvider and LLMRoute manifests, for unmodified applications.",
)

RulesArgument = Annotated[
    Path, typer.Argument(help="Directory (without its subfolders) or file with the manifests.")
]
LabelsOption = Annotated[
    str,
    typer.Option(
        "--labels", help="This workload's labels: key=value,key=value, or a Downward API file."
    ),
]
GatewayOption = Annotated[
    list[str] | None,
    typer.Option("--gateway", help="A gateway name that the instance serves (default: mesh)."),
]


def _fail(message: str, status: int) -> NoReturn:
    """End with a message for a person, and a status for a script."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(message, markup=False)
    raise typer.Exit(status)


def _load(rules: Path, labels: str, gateways: list[str] | None) -> Loaded:
    try:
        instance = Instance(labels=parse_labels(labels), gateways=frozenset(gateways or ["mesh"]))
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "not text"
        _fail(f"--labels: {labels} can't be read ({why}); check the path", 2)
    except ValueError as error:
        _fail(f"--labels: {error}", 2)
    try:
        return load(rules, instance=instance)
    except LoadError as error:
        _fail(str(error), 1)


def _count(names: tuple[str, ...], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


@app.command()
def check(
    rules: RulesArgument = Path("rules"),
    *,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable", help="Also fail on each field that Alibaba Cloud Service Mesh lacks."
        ),
    ] = False,
    labels: LabelsOption = "",
    gateway: GatewayOption = None,
) -> None:
    """Validate manifests; exit with 1 if anything is wrong.

    Every error is shown, with its file, line and field and how to mend it. Keys must be there: set
    the environment variables that the manifests name.

    Examples:

        pointsman check rules

        DASHSCOPE_API_KEY=any MOONSHOT_API_KEY=any pointsman check rules/examples/traffic-split

        pointsman check --portable rules
    """
    loaded = _load(rules, labels, gateway)
    for warning in loaded.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if portable and loaded.extensions:
        for extension in loaded.extensions:
            typer.echo(str(extension), err=True)
        _fail(f"{len(loaded.extensions)} field(s) that are not portable", 1)
    skipped = f"; skipped: {', '.join(loaded.skipped)}" if loaded.skipped else ""
    typer.echo(
        f"{rules}: {_count(loaded.providers, 'provider')} and {_count(loaded.routes, 'route')}"
        f" are valid{skipped}"
    )


@app.command()
def explain(  # noqa: PLR0913 (the parts of a request)
    rules: RulesArgument = Path("rules"),
    *,
    url: Annotated[
        str, typer.Option(help="What the client calls, such as http://demo-llm-server.")
    ],
    method: Annotated[str, typer.Option("-X", "--method", help="The HTTP method.")] = "POST",
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", help="A request header, as `name: value`.")
    ] = None,
    body: Annotated[
        str | None,
        typer.Option(
            "-d", "--body", help="The request body, or @FILE; default: a chat without a model."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    labels: LabelsOption = "",
    gateway: GatewayOption = None,
) -> None:
    """Tell which route, rule and target a request gets, and why, rule by rule.

    Nothing is sent. The rewritten request is shown with its keys masked. Exits with 1 when the
    request would be refused.

    Examples:

        pointsman explain rules --url https://api.openai.com/v1/chat/completions

        pointsman explain rules/examples/subscriber --url http://dashscope.aliyuncs.com
        -H 'user-type: subscriber' -d '{"messages": []}'
    """
    loaded = _load(rules, labels, gateway)
    try:
        request = explaining.parse_request(
            url=url, method=method, headers=header or [], body=_body(body, method)
        )
    except ValueError as error:
        _fail(str(error), 2)
    explanation = explaining.explain(loaded.table, request)
    if as_json:
        typer.echo(json.dumps(explanation.as_dict(), indent=2))
    else:
        explaining.show(explanation, Console(soft_wrap=True, highlight=False))
    if explanation.error:
        raise typer.Exit(1)


def _body(given: str | None, method: str) -> bytes:
    if given is None:
        return b'{"messages": []}' if method.upper() == "POST" else b""
    if not given.startswith("@"):
        return given.encode()
    try:
        return Path(given[1:]).read_bytes()
    except OSError as error:
        raise ValueError(f"--body: {given[1:]} can't be read ({error.strerror})") from None


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
        _fail(f"the demo needs more packages ({error.name}): pip install 'pointsman[demo]'", 1)
    raise typer.Exit(play(transparent=transparent))


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has seen enough (`| head`); Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
