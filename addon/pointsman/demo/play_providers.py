"""`python -m pointsman.demo.play_providers`: the demo's providers, as a process of their own.

Its input is one line of JSON, the fields of `Settings`. Its output is JSON lines: the port it
listens on, then every call as it came. It ends when its input does, so that it never outlives the
demo, however that ends.
"""

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pointsman.demo.authority import ServerCertificate
from pointsman.demo.provider import Call, Provider
from pointsman.demo.server import ThreadedServer


@dataclass(frozen=True)
class Settings:
    """Where to listen, and as whom: fields of `Provider`, by their names."""

    host: str
    port: int
    chain: str
    key: str
    providers: list[dict[str, Any]]

    def dump(self) -> str:
        """Return the line that the process reads."""
        return json.dumps(asdict(self))


def main() -> int:
    """Serve until the input ends."""
    settings = Settings(**json.loads(sys.stdin.readline()))
    certificate = ServerCertificate(chain=Path(settings.chain), key=Path(settings.key))
    providers = [Provider(script=_tell, **fields) for fields in settings.providers]
    server = ThreadedServer(providers, tls=certificate, host=settings.host, port=settings.port)
    with ExitStack() as stack:
        try:
            stack.enter_context(server)
        except OSError as error:
            sys.stderr.write(f"{settings.host}:{settings.port}: {error.strerror}\n")
            return 1
        _say({"port": server.port})
        sys.stdin.read()
    return 0


def _tell(call: Call) -> None:
    """Tell of a call before it is answered: who has the answer can read of the call."""
    _say(
        {
            "provider": call.provider,
            "method": call.method,
            "path": call.path,
            "headers": call.headers,
            "body": call.body.decode("utf-8", "replace"),
            "http_version": call.http_version,
        }
    )


def _say(fields: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
