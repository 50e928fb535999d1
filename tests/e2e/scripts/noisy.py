"""Prints what no worker should: plain text, a traceback of a thread, a warning. Tells its process.

It is on standard output and standard error, as a library that knows of no log may do it.
"""

import json
import os
import sys
import threading
import warnings

from mitmproxy.connection import Client


class Noisy:
    """Makes noise when it starts, and one line of JSON for each connection."""

    def running(self) -> None:
        """Make noise."""
        print("plain text")  # noqa: T201
        sys.stderr.write("plain text of an error\n")
        warnings.warn("this is a warning", stacklevel=1)
        thread = threading.Thread(target={}.popitem)
        thread.start()
        thread.join()

    def client_connected(self, client: Client) -> None:
        """Tell which process has the connection."""
        told = {"event": "accepted", "pid": os.getpid(), "optimized": sys.flags.optimize}
        print(json.dumps(told), flush=True)  # noqa: T201


addons = [Noisy()]
