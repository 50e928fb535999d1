"""The demo's clients: httpx behind a proxy setting, and curl that knows of none."""

import os
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from pointsman.demo.play_processes import StageError

TIMEOUT_SECONDS = 10

type OnPiece = Callable[[bytes], None]


@dataclass(frozen=True)
class Answer:
    """What a client got. `seconds` is the time until all of it was there."""

    status: int
    content_type: str
    body: bytes
    seconds: float


class Client(Protocol):
    """Sends a POST; `on_piece` is given the body piece by piece, as it arrives."""

    def post(
        self, url: str, *, headers: Mapping[str, str], body: bytes, on_piece: OnPiece
    ) -> Answer:
        """Send and wait for all of the answer.

        Raises:
            StageError: there was no answer.
        """
        ...


class HttpxClient:
    """Any Python client with the usual proxy setting, which trusts mitmproxy's authority."""

    def __init__(self, proxy: str, authority: Path) -> None:
        trust = ssl.create_default_context(cafile=authority)
        self._client = httpx.Client(
            proxy=proxy, verify=trust, trust_env=False, timeout=TIMEOUT_SECONDS
        )

    def post(
        self, url: str, *, headers: Mapping[str, str], body: bytes, on_piece: OnPiece
    ) -> Answer:
        """Send and wait for all of the answer."""
        began = time.perf_counter()
        received = bytearray()
        try:
            with self._client.stream("POST", url, headers=dict(headers), content=body) as response:
                for piece in response.iter_bytes():
                    received += piece
                    on_piece(piece)
        except httpx.HTTPError as error:
            raise StageError(f"httpx: {url}: {type(error).__name__}: {error}") from error
        return Answer(
            status=response.status_code,
            content_type=response.headers.get("content-type", ""),
            body=bytes(received),
            seconds=time.perf_counter() - began,
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


class CurlClient:
    """Plain curl, run by `prefix` where and as whom the application would be."""

    def __init__(self, prefix: Sequence[str], authority: Path) -> None:
        self._command = [
            *prefix,
            *("curl", "--disable", "--silent", "--show-error", "--include", "--no-buffer"),
            *("--max-time", str(TIMEOUT_SECONDS), "--cacert", str(authority)),
        ]

    def post(
        self, url: str, *, headers: Mapping[str, str], body: bytes, on_piece: OnPiece
    ) -> Answer:
        """Send and wait for all of the answer."""
        began = time.perf_counter()
        fields = [part for name in headers for part in ("--header", f"{name}: {headers[name]}")]
        process = subprocess.Popen(  # noqa: S603 (our own command)
            [*self._command, *fields, "--data-binary", body.decode(), url],
            env={"PATH": os.environ.get("PATH", os.defpath)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        with process:
            assert process.stdout  # noqa: S101 (pipes, as asked for)
            assert process.stderr  # noqa: S101
            try:
                raw, head_end = bytearray(), -1
                while piece := process.stdout.read(65536):
                    raw += piece
                    if head_end >= 0:
                        on_piece(piece)
                    elif (head_end := raw.find(b"\r\n\r\n")) >= 0:
                        on_piece(bytes(raw[head_end + 4 :]))
                complaint = process.stderr.read().decode("utf-8", "replace").strip()
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise StageError(f"{url}: {complaint or f'curl ended with {process.returncode}'}")
        status, content_type = _parse_head(bytes(raw[:head_end]))
        return Answer(status, content_type, bytes(raw[head_end + 4 :]), time.perf_counter() - began)

    def close(self) -> None:
        """Nothing stays open between two calls."""


def _parse_head(head: bytes) -> tuple[int, str]:
    first, *lines = head.decode("latin-1").splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    return int(first.split()[1]), headers.get("content-type", "")
