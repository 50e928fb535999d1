"""One authority, three providers and one proxy for the session; more proxies for those who ask."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.certs import CertStore

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e.browser import browser, page  # noqa: F401 (fixtures)
from tests.e2e.harness import (
    LOOPBACK,
    Far,
    Proxy,
    RawServer,
    closed_port,
    llm_provider,
    llm_route,
    openai_config,
    seed,
    to,
    write_rules,
)
from tests.e2e.otlp import Receiver

KEYS = {
    "OPENAI_API_KEY": "sk-openai-4b1d0c7e",
    "DASHSCOPE_API_KEY": "sk-dashscope-93af21d6",
    "MOONSHOT_API_KEY": "sk-moonshot-c05e88b2",
}

type StartProxy = Callable[..., Proxy]
type StartFar = Callable[..., Far]


@pytest.fixture(scope="session")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mitmproxy's authority is: made once, since each takes a key of its own."""
    folder: Path = tmp_path_factory.mktemp("mitmproxy")
    CertStore.from_store(folder, "mitmproxy", 2048)
    return folder


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for the providers; mitmproxy trusts it only where a manifest says so."""
    return Authority(tmp_path_factory.mktemp("authority"))


def _far(
    authority: Authority, stack: ExitStack, name: str, host: str, variable: str = "", **server: Any
) -> Far:
    provider = Provider(name, host, key=KEYS.get(variable), chunk_delay=0)
    tls = authority.issue(host)
    listening = stack.enter_context(ThreadedServer([provider], tls=tls, **server))
    return Far(provider, listening, authority, variable)


@pytest.fixture(scope="session")
def far_ends(authority: Authority) -> Iterator[dict[str, Far]]:
    """The session's providers by name, each on a socket of its own."""
    with ExitStack() as stack:
        yield {
            "openai": _far(authority, stack, "openai", "api.openai.com", "OPENAI_API_KEY"),
            "dashscope": _far(
                authority, stack, "dashscope", "dashscope.aliyuncs.com", "DASHSCOPE_API_KEY"
            ),
            "moonshot": _far(authority, stack, "moonshot", "api.moonshot.cn", "MOONSHOT_API_KEY"),
            "accounted": _far(authority, stack, "accounted", "accounted.example"),
        }


def _fresh(far: Far) -> Far:
    far.provider.calls.clear()
    far.provider.replies.clear()
    far.provider.script = None
    far.provider.chunk_delay = 0
    return far


@pytest.fixture
def openai(far_ends: dict[str, Far]) -> Far:
    """api.openai.com."""
    return _fresh(far_ends["openai"])


@pytest.fixture
def dashscope(far_ends: dict[str, Far]) -> Far:
    """dashscope.aliyuncs.com."""
    return _fresh(far_ends["dashscope"])


@pytest.fixture
def moonshot(far_ends: dict[str, Far]) -> Far:
    """api.moonshot.cn."""
    return _fresh(far_ends["moonshot"])


@pytest.fixture
def accounted(far_ends: dict[str, Far]) -> Far:
    """accounted.example, which has no configs: its traffic is only accounted for."""
    return _fresh(far_ends["accounted"])


@pytest.fixture
def start_far(authority: Authority) -> Iterator[StartFar]:
    """Start providers for one test: `start_far(name, host, variable="", **server)`."""
    with ExitStack() as stack:
        yield lambda *names, **server: _far(authority, stack, *names, **server)


@pytest.fixture
def start_proxy(confdir: Path) -> Iterator[StartProxy]:
    """Start proxies for one test: `start_proxy(rules, *options, **more)`."""
    with ExitStack() as stack:

        def start(rules: Path, *options: str, **more: Any) -> Proxy:
            env = {**KEYS, **more.pop("env", {})}
            return stack.enter_context(Proxy(confdir, rules, *options, env=env, **more))

        yield start


@pytest.fixture(scope="session")
def shared_proxy(
    confdir: Path,
    authority: Authority,
    far_ends: dict[str, Far],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """A mitmdump in regular mode; `pointsman` is what tests use."""
    openai, accounted = far_ends["openai"], far_ends["accounted"]
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    dead = f"{LOOPBACK}:{closed_port()}"
    here = {"configs": openai_config(model="any")}
    rules = write_rules(
        tmp_path_factory.mktemp("rules"),
        openai.manifest(),
        seed("LLMProvider", far_ends["dashscope"]),
        seed("LLMProvider-moonshot", far_ends["moonshot"]),
        seed("LLMRoute"),
        seed("LLMRoute-demo"),
        seed("demo-llm-server"),
        accounted.manifest(path=None),
        llm_provider("refusing", "refusing.example", address=dead, scheme="http", **here),
        llm_provider(
            "distrusted",
            "distrusted.example",
            address=openai.address,
            tls={"caFile": str(stranger.certificate), "sni": openai.provider.host},
            **here,
        ),
        llm_provider(
            "misnamed",
            "misnamed.example",
            address=openai.address,
            tls={"caFile": str(authority.certificate)},
            **here,
        ),
        llm_route(
            "picky",
            "picky.example",
            to("api.openai.com", matches=[{"headers": {"tenant": {"exact": "known"}}}]),
        ),
    )
    options = ("--set", "llm_body_limit=64k")
    with Proxy(confdir, rules, *options, env=KEYS) as proxy:
        yield proxy


@pytest.fixture
def pointsman(
    shared_proxy: Proxy, openai: Far, dashscope: Far, moonshot: Far, accounted: Far
) -> Iterator[Proxy]:
    """The session's proxy, with nothing in its access log that the test has not caused."""
    shared_proxy.forget()
    yield shared_proxy
    shared_proxy.assert_no_more_entries()


@pytest.fixture
def raw_server() -> Iterator[Callable[..., RawServer]]:
    """Start raw servers for one test: `raw_server(serve, tls=None)`."""
    with ExitStack() as stack:
        yield lambda *serve, **how: stack.enter_context(RawServer(*serve, **how))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """An OTLP receiver."""
    with Receiver() as receiver:
        yield receiver
