"""The default rules count what goes to LLM hosts; applications see no difference."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsman.config.loading import Loaded, load
from pointsman.routing.request import ClientRequest
from pointsman.routing.rewriting import rewrite

type MakeRequest = Callable[..., ClientRequest]

# They tell the tokens of a stream when they are asked to.
ASKED = re.compile(r"(.+\.)?api\.openai\.com|api\.deepseek\.com|dashscope[a-z-]*\.aliyuncs\.com")
KEY = "Bearer sk-the-clients-own"
CHAT = b'{ "model":"m", "stream":true, "messages":[{"role":"user","content":"Hi"}] }'


@pytest.fixture
def loaded(rules: Path) -> Loaded:
    return load(rules, environ={})


def test_the_default_rules_need_no_key_and_give_no_warning(loaded: Loaded) -> None:
    assert loaded.warnings == ()
    assert {problem.field for problem in loaded.extensions} == {"spec.streamUsage"}
    assert loaded.skipped == ()
    assert loaded.routes == ()


def test_each_provider_has_a_host_and_a_name_of_its_own(loaded: Loaded) -> None:
    assert len(loaded.table.exact) == len(loaded.providers) == len(set(loaded.providers))
    assert loaded.table.wildcards == ()


@pytest.mark.parametrize(
    "host", ["api.openai.com", "api.anthropic.com", "dashscope.aliyuncs.com", "api.moonshot.cn"]
)
def test_the_best_known_hosts_are_there(loaded: Loaded, host: str) -> None:
    assert loaded.table.lookup(host)


def test_every_provider_is_accounting_only(loaded: Loaded) -> None:
    for host, route in loaded.table.exact.items():
        ((target,),) = (rule.targets for rule in route.rules)
        assert (target.host, target.config) == (host, None)
        assert target.stream_usage == ("inject" if ASKED.fullmatch(host) else "asIs"), host
        assert (target.path, target.scheme, target.port, target.address) == (None,) * 4


@pytest.mark.parametrize("path", ["/", "/v1/chat/completions", "/v1/files?purpose=batch&key=k"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_requests_leave_as_they_came(
    loaded: Loaded, make_request: MakeRequest, scheme: str, path: str
) -> None:
    headers = {"Authorization": KEY, "Cookie": "a=b", "X-Api-Key": "k", "OpenAI-Project": "p"}
    for host, route in loaded.table.exact.items():
        request = make_request("POST", f"{scheme}://{host}{path}", headers=headers, body=CHAT)
        outgoing = rewrite(route.rules[0].targets[0], request)
        assert (outgoing.scheme, outgoing.host, outgoing.port) == (scheme, host, request.port)
        assert (outgoing.address, outgoing.path) == (request.address, path)
        if ASKED.fullmatch(host) and path.endswith("/chat/completions"):
            asked = b',"stream_options":{"include_usage":true}}'
            assert outgoing.body.replace(b" ", b"") == CHAT.replace(b" ", b"")[:-1] + asked
            assert dict(outgoing.headers)[b"accept-encoding"] == b"identity"
            continue
        assert outgoing.body == CHAT
        assert outgoing.headers == (*request.headers, (b"content-length", b"%d" % len(CHAT)))
