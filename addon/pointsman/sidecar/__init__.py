"""The sidecar: a supervisor that listens, and worker processes that serve what it listens on.

`supervisor` is the process that a container starts. It imports no mitmproxy: it is small, starts at
once, and what is wrong with a request can't reach it. `pointsman.proxy.worker` is the other half.
"""
