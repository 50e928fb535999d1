"""The program `pointsman`, and `python -m pointsman`."""

import os
import signal
import sys


def main() -> None:
    """Run the command line.

    A container's first process ignores every signal that it has not taken over, so a sidecar takes
    over its end before it imports anything that takes time. There is nothing to drain yet.
    """
    if "--sidecar" in sys.argv[1:]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))
    from pointsman.cli import main as run  # noqa: PLC0415 (as above)

    run()


if __name__ == "__main__":
    main()
