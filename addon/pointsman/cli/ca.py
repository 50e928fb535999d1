"""`pointsman ca`."""

import contextlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml

from pointsman.ca.authority import DEFAULT_DAYS, Authority, AuthorityError, generate
from pointsman.ca.bundle import variables, write_bundle
from pointsman.ca.manifest import parse_name, secret_manifest
from pointsman.ca.store import ensure, load, read_secret
from pointsman.cli.app import app, fail
from pointsman.telemetry.amounts import several

ca = typer.Typer(
    no_args_is_help=True,
    help="Make the certificate authority that signs for LLM hosts, and make clients trust it.",
    rich_markup_mode="markdown",
)
app.add_typer(ca, name="ca")

DirectoryOption = Annotated[
    Path, typer.Option("--dir", help="mitmproxy's directory (its option confdir).")
]
_CONFDIR = Path("~/.mitmproxy")
_FOR_ALL = 0o005


class Format(StrEnum):
    """How variables are printed."""

    ENV = "env"
    SH = "sh"
    JSON = "json"
    KUBERNETES = "kubernetes"


@ca.command()
def init(
    *,
    directory: DirectoryOption = _CONFDIR,
    secret: Annotated[
        Path | None,
        typer.Option(help="A directory with tls.crt and tls.key to take, as a mounted Secret has."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The name (CN) of an authority that is made.")
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=36500, help="How long an authority that is made is valid.")
    ] = DEFAULT_DAYS,
    manifest: Annotated[
        str | None,
        typer.Option(
            metavar="NAME/NAMESPACE",
            help="Write no file: print an authority, with its key, as a Secret.",
        ),
    ] = None,
) -> None:
    """Make an authority, or take one from a Secret. What is there already stays.

    Examples:

        pointsman ca init

        pointsman ca init --dir /var/lib/pointsman --secret /etc/pointsman/ca

        pointsman ca init --manifest pointsman-ca/shop | kubectl create -f -
    """
    with _log_shown():
        if manifest is not None:
            _print_manifest(manifest, secret, name, days)
            return
        confdir = directory.expanduser()
        certificate = ensure(confdir, secret, name=name, days=days)
        authority = load(confdir)
    typer.echo(f"{certificate}\n{_describe(authority)}")


def _print_manifest(manifest: str, secret: Path | None, name: str | None, days: int) -> None:
    where = parse_name(manifest)
    if is_screen():
        fail(
            "--manifest prints a private key: pipe it, such as into `kubectl create -f -`,"
            " or into a program that seals it",
            2,
        )
    authority = read_secret(secret) if secret is not None else generate(name=name, days=days)
    typer.echo(secret_manifest(authority, *where), nl=False)
    typer.echo(_describe(authority), err=True)


def is_screen() -> bool:
    """Tell whether what is printed is shown to whoever is there, and kept by the terminal."""
    return sys.stdout.isatty()


@ca.command()
def bundle(
    *,
    out: Annotated[Path, typer.Option(help="Where to; made if it is missing.")],
    directory: DirectoryOption = _CONFDIR,
    roots: Annotated[
        Path | None,
        typer.Option(help="The roots to trust besides (PEM); default: the system's, else certifi."),
    ] = None,
    seen_at: Annotated[
        str | None,
        typer.Option("--at", help="Where the application sees that directory; default: there."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print the variables.")] = (
        Format.ENV
    ),
) -> None:
    """Write what makes an application trust us and everyone else; print the variables for it.

    The files: pointsman-ca.pem (our certificate), ca-bundle.pem (the system's roots and ours) and
    ca-bundle.p12 (the same for Java, password: changeit). No key is among them.

    Examples:

        pointsman ca bundle --out trust --format sh > trust.sh

        pointsman ca bundle --dir /var/lib/pointsman --out /shared/trust --at /etc/pointsman-trust
        --format kubernetes
    """
    with _log_shown():
        written = write_bundle(out, load(directory.expanduser()), roots)
    told = f"{out}: {several(written.count, 'certificate')}; the roots are from {written.roots}"
    if written.left_out:
        told += f"; left out, as OpenSSL can't read them: {written.left_out}"
    typer.echo(told, err=True)
    if out.stat().st_mode & _FOR_ALL != _FOR_ALL:
        typer.echo(f"{out}: other users can't read it; chmod 755 it if they have to", err=True)
    typer.echo(_render(variables(seen_at or str(out.resolve())), form), nl=False)


def _render(environment: dict[str, str], form: Format) -> str:
    if form is Format.JSON:
        return json.dumps(environment, indent=2) + "\n"
    if form is Format.KUBERNETES:
        return yaml.safe_dump(
            [{"name": name, "value": value} for name, value in environment.items()],
            sort_keys=False,
        )
    if form is Format.SH:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    else:
        lines = [f"{name}={value}" for name, value in environment.items()]
    return "\n".join(lines) + "\n"


def _describe(authority: Authority) -> str:
    ends = authority.certificate.not_valid_after_utc
    return f"{authority.subject}, until {ends:%Y-%m-%d}, SHA-256 {authority.fingerprint}"


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    """Show what is made, taken over or warned of; end with what is wrong."""
    logger = logging.getLogger("pointsman.ca")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except (AuthorityError, ValueError) as error:
        fail(str(error), 1)
    finally:
        logger.removeHandler(handler)
