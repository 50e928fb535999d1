"""An application that talks over a WebSocket: prints what comes back, and by whom it is vouched."""

# ruff: noqa: T201 (a program's output)

import sys

from websockets.sync.client import connect

with connect(sys.argv[1], open_timeout=20, close_timeout=20) as opened:
    for message in ("hello", "x" * 70_000):
        opened.send(message)
        assert opened.recv(20) == message
    opened.send("goodbye")
    print(opened.recv(20))
