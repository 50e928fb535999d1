"""`pointsman inject`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pointsman import __version__
from pointsman.cli.app import app, fail
from pointsman.config.files import FilesError, manifest_files, reason
from pointsman.kubernetes.inject import inject as inject_text
from pointsman.kubernetes.manifests import ManifestError, join
from pointsman.kubernetes.settings import Settings, SettingsError
from pointsman.telemetry.amounts import several

DEFAULT_IMAGE = f"pointsman:{__version__}"
_STDIN = "-"
_PANEL = "What is injected (each is an annotation of a pod too: pointsman.io/OPTION)"


def _option(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=_PANEL, show_default=False)


@app.command()
def inject(  # noqa: PLR0913 (the options of a sidecar)
    files: Annotated[
        list[str] | None, typer.Argument(help="More files.", show_default=False)
    ] = None,
    *,
    file: Annotated[
        list[str] | None,
        typer.Option("-f", "--filename", help="A manifest file, a directory, or - (the default)."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Print nothing and fail if there is a warning.")
    ] = False,
    image: Annotated[
        str, _option(f"The image of the sidecar.  [default: {DEFAULT_IMAGE}]")
    ] = DEFAULT_IMAGE,
    rules_configmap: Annotated[
        str | None, _option("The ConfigMap with the rules.  [default: pointsman-rules]")
    ] = None,
    rules: Annotated[
        str | None, _option("kubernetes:[NAMESPACE]: read the rules from the cluster instead.")
    ] = None,
    keys_secret: Annotated[
        str | None, _option("A Secret with the provider keys: as variables, and as files.")
    ] = None,
    ca_secret: Annotated[
        str | None, _option("A Secret with the certificate authority.  [default: one for each pod]")
    ] = None,
    workers: Annotated[int | None, _option("Processes of the proxy.  [default: 1]")] = None,
    proxy_port: Annotated[
        int | None, _option("The port that the proxy listens on.  [default: 15001]")
    ] = None,
    include_ports: Annotated[
        str | None, _option("The ports whose connections are redirected.  [default: 80,443]")
    ] = None,
    exclude_ports: Annotated[str | None, _option("Ports that are not.")] = None,
    include_cidrs: Annotated[
        str | None, _option("The only addresses whose connections are redirected.")
    ] = None,
    exclude_cidrs: Annotated[str | None, _option("Addresses whose connections are not.")] = None,
    passthrough_hosts: Annotated[
        str | None, _option("Hosts that are never decrypted, such as pinned ones.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        _option("name=value: a further option of the proxy (repeatable).", "--set"),
    ] = None,
    cpu_request: Annotated[str | None, _option("[default: 100m]")] = None,
    cpu_limit: Annotated[str | None, _option("[default: one core for each worker]")] = None,
    memory_request: Annotated[str | None, _option("[default: 128Mi]")] = None,
    memory_limit: Annotated[str | None, _option("[default: 512Mi]")] = None,
    grace_period: Annotated[
        int | None,
        _option("Seconds to end in, for pods that do not set it themselves.  [default: 90]"),
    ] = None,
) -> None:
    """Print manifests with the sidecar in each pod.

    Whatever is no workload is printed as it is. Errors and warnings go to standard error; after an
    error nothing is printed, so that `| kubectl apply -f -` applies nothing.

    Examples:

        pointsman inject -f deployment.yaml --keys-secret provider-keys | kubectl apply -f -

        kubectl get deployment shop -o yaml | pointsman inject | kubectl apply -f -
    """
    given = {
        "image": image,
        "rules_configmap": rules_configmap,
        "rules": rules,
        "keys_secret": keys_secret,
        "ca_secret": ca_secret,
        "workers": workers,
        "proxy_port": proxy_port,
        "include_ports": include_ports,
        "exclude_ports": exclude_ports,
        "include_cidrs": include_cidrs,
        "exclude_cidrs": exclude_cidrs,
        "passthrough_hosts": passthrough_hosts,
        "set": set_,
        "cpu_request": cpu_request,
        "cpu_limit": cpu_limit,
        "memory_request": memory_request,
        "memory_limit": memory_limit,
        "grace_period": grace_period,
    }
    try:
        settings = Settings.of({name: value for name, value in given.items() if value is not None})
    except SettingsError as error:
        fail(f"--{error}", 2)
    texts, told, injected = [], [], False
    for source in [*(file or []), *(files or [])] or [_STDIN]:
        for name, text in _read(source):
            try:
                injection = inject_text(text, settings, version=__version__)
            except ManifestError as error:
                fail(f"{name}: {error}", 1)
            texts.append(injection.text)
            injected = injected or bool(injection.injected)
            told += [f"{name}: {warning}" for warning in injection.warnings]
            for note in injection.notes:
                typer.echo(f"{name}: {note}", err=True)
    if injected and image == DEFAULT_IMAGE:
        typer.echo(f"the image is {image}; name your registry's with --image", err=True)
    for warning in told:
        typer.echo(f"warning: {warning}", err=True)
    if strict and told:
        fail(f"{several(len(told), 'warning')}, and --strict: nothing is printed", 1)
    # Line ends as they are.
    sys.stdout.buffer.write(join(texts).encode())


def _read(source: str) -> list[tuple[str, str]]:
    """Return name and text of the files that a source stands for."""
    try:
        if source == _STDIN:
            return [("standard input", sys.stdin.buffer.read().decode("utf-8-sig"))]
        return [
            (str(path), path.read_bytes().decode("utf-8-sig"))
            for path in manifest_files(Path(source))
        ]
    except FilesError as error:
        fail(f"{source}: {error}", 2)
    except (OSError, ValueError) as error:
        why = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason(error)
        fail(f"{source}: it can't be read ({why}); check the path", 2)
