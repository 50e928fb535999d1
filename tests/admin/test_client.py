"""What a hook is told when it can't ask."""

import socket
import threading
from pathlib import Path

import pytest

from pointsman.admin.client import AdminError, AdminGoneError, ask


def test_no_one_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(AdminGoneError, match="is the proxy running"):
        ask(address, "GET", "/readyz")
    with pytest.raises(AdminGoneError, match="is the proxy running"):
        ask(f"unix:{tmp_path / 'none.sock'}", "GET", "/readyz")


@pytest.mark.parametrize("address", ["", "15020", "localhost", "host:port"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(AdminError, match="write host:port"):
        ask(address, "GET", "/readyz")


@pytest.mark.parametrize("address", ["a..b:80", f"{'x' * 64}.test:80"])
def test_a_host_that_can_not_be_is_told(address: str) -> None:
    with pytest.raises(AdminError, match="is no address"):
        ask(address, "GET", "/readyz")


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "is no admin endpoint"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "is no admin endpoint"),
        (b"SSH-2.0-other\r\n", "can't be asked"),
        (b"", "has closed"),
    ],
)
def test_what_answers_is_no_admin_endpoint(answer: bytes, wrong: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            conn, _ = server.accept()
            with conn:
                conn.recv(4096)
                conn.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(AdminError, match=wrong):
                ask(f"127.0.0.1:{server.getsockname()[1]}", "GET", "/readyz")
        finally:
            thread.join(20)
