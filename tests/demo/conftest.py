"""Providers that serve on real sockets, and certificates for them."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory: Path = tmp_path_factory.mktemp("authority")
    return Authority(directory)


@pytest.fixture(scope="session")
def trust(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.certificate)


@pytest.fixture
def provider() -> Provider:
    return Provider("east", key="sk-east", models=("small", "large"), chunk_delay=0)


@pytest.fixture
def server(provider: Provider) -> Iterator[ThreadedServer]:
    with ThreadedServer([provider]) as server:
        yield server


@pytest.fixture
def tls_server(provider: Provider, authority: Authority) -> Iterator[ThreadedServer]:
    with ThreadedServer([provider], tls=authority.issue("127.0.0.1", "localhost")) as server:
        yield server
