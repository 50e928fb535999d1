"""Prints what is on each flow's metadata, for tests of what is left out."""

import sys

from mitmproxy import http


def response(flow: http.HTTPFlow) -> None:
    sys.stdout.write(" ".join(["METADATA", *sorted(flow.metadata), "\n"]))
    sys.stdout.flush()
