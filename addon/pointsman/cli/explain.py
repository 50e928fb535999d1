"""`pointsman explain`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pointsman import explaining
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
    without_keys: WithoutKeysOption = False,
    labels: LabelsOption = "",
    gateway: GatewayOption = None,
    kubernetes: ClusterOption = False,
) -> None:
    """Tell which route, rule and target a request gets, and why, rule by rule.

    Nothing is sent. The rewritten request is shown with its keys masked. Exits with 1 when the
    request would be refused.

    Examples:

        pointsman explain rules --url https://api.openai.com/v1/chat/completions

        pointsman explain rules/examples/subscriber --url http://dashscope.aliyuncs.com
        -H 'user-type: subscriber' -d '{"messages": []}'
    """
    loaded = load_rules(rules, labels, gateway, without_keys=without_keys, kubernetes=kubernetes)
    try:
        request = explaining.parse_request(
            url=url, method=method, headers=header or [], body=_body(body, method)
        )
    except ValueError as error:
        fail(str(error), 2)
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
