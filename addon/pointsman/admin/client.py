"""Asks an admin endpoint, with the standard library alone: a hook must start fast."""

import http.client
import json
import re
import socket
from typing import Any, override

DEFAULT_ADDRESS = "127.0.0.1:15020"
_TIMEOUT = 10.0
_MOST = 16 * 1024 * 1024
_HIGHEST_PORT = 65535


class AdminError(Exception):
    """The endpoint can't be asked, or does not answer as one: the message says how to mend it."""


class AdminGoneError(AdminError):
    """No one listens there."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


def ask(address: str, method: str, path: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON of an answer.

    Args:
        address: as the option `llm_admin` has it: `host:port`, `[::1]:port`, `unix:/path`.
        method: GET or POST.
        path: such as `/readyz`.

    Raises:
        AdminError: nothing or something else answers there.
    """
    connection = _connection(address)
    try:
        connection.request(method, path, headers={"Connection": "close"})
        response = connection.getresponse()
        status, body = response.status, response.read(_MOST)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise AdminGoneError(
            f"no admin endpoint at {address} ({error.strerror}); is the proxy running, and is this"
            " its llm_admin?"
        ) from None
    except (ConnectionError, http.client.RemoteDisconnected) as error:
        raise AdminGoneError(f"the admin endpoint at {address} has closed ({error})") from None
    except UnicodeError:
        raise AdminError(f"{address!r} is no address: no host is called that") from None
    except (OSError, http.client.HTTPException) as error:
        raise AdminError(f"the admin endpoint at {address} can't be asked: {error}") from None
    finally:
        connection.close()
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise AdminError(f"what answers at {address} is no admin endpoint; check the address")
    return status, answer


def _connection(address: str) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return _UnixConnection(address.removeprefix("unix:"))
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > _HIGHEST_PORT:
        raise AdminError(f"{address!r} is no address; write host:port, [::1]:port or unix:/path")
    return http.client.HTTPConnection(host.strip("[]") or "localhost", int(port), timeout=_TIMEOUT)
