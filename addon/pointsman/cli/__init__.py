"""The command line: one module a command."""

import os
import sys

# Each registers its commands.
from pointsman.cli import (  # noqa: F401
    ca,
    check,
    crds,
    demo,
    drain,
    explain,
    inject,
    replay,
    report,
    run,
)
from pointsman.cli.app import app

__all__ = ["app", "main"]


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
