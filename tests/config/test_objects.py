"""The objects of a cluster: each stands by itself, and no one's fault holds up the others."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.config import loading
from pointsman.config.credentials import Allowed, CredentialError
from pointsman.config.documents import Document
from pointsman.config.loading import Instance, LoadedObjects, load_objects
from pointsman.config.table import Rule
from pointsman.config.validation import validate
from tests.config.test_loading import _VALUES

type Json = dict[str, Any]

KEY = "${A_API_KEY}"


def provider(name: str, host: str = "", *, at: str = "a", age: int = 0, **spec: Any) -> Json:
    return made("LLMProvider", name, at, age, {"host": host or f"{name}.test", **spec})


def route(name: str, host: str, *refs: Json, at: str = "a", age: int = 0, **spec: Any) -> Json:
    rules = [{"backendRefs": list(refs) or [{"providerHost": "p.test"}]}]
    return made("LLMRoute", name, at, age, {"host": host, "rules": rules, **spec})


def made(kind: str, name: str, namespace: str, age: int, spec: Json) -> Json:
    metadata = {
        "name": name,
        "namespace": namespace,
        "creationTimestamp": f"2026-01-{20 - age:02}T00:00:00Z",
    }
    return {
        "apiVersion": "istio.alibabacloud.com/v1beta1",
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    }


def with_key(key: Json) -> Json:
    return {"defaultConfig": {"openAIConfig": key}}


def load(
    *objects: Json,
    before: LoadedObjects | None = None,
    home: str = "a",
    allowed: Allowed | None = None,
    **environ: str,
) -> LoadedObjects:
    instance = Instance(namespace=home, allowed=allowed or Allowed())
    good, validated = (before.good, before.validated) if before else ({}, {})
    return load_objects(objects, good=good, instance=instance, environ=environ, validated=validated)


def rule(loaded: LoadedObjects, host: str) -> Rule:
    found = loaded.loaded.table.lookup(host)
    assert found
    return found.rules[0]


def served(loaded: LoadedObjects, host: str) -> list[str]:
    return [target.provider for target in rule(loaded, host).targets]


P = provider("p")


def test_good_objects_are_used_as_files_would_be() -> None:
    loaded = load(P, route("r", "llm.test"))
    assert served(loaded, "llm.test") == ["p"]
    assert loaded.refused == {}
    assert set(loaded.good) == {"LLMProvider a/p", "LLMRoute a/r"}


def test_what_has_not_changed_is_not_validated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, gone = provider("bad", path="no-slash"), provider("gone")
    before = load(P, bad, gone, route("r", "llm.test"))
    seen = list[str]()

    def counted(document: Document) -> Any:
        seen.append(document.file)
        return validate(document)

    monkeypatch.setattr(loading, "validate", counted)
    after = load(P, bad, changed := route("r", "other.test"), before=before)
    assert seen == ["LLMRoute a/r"]
    assert served(after, "other.test") == ["p"]
    assert after.refused == before.refused
    assert set(after.validated) == {"LLMProvider a/p", "LLMProvider a/bad", "LLMRoute a/r"}
    # One that has come back is another one, and so is one that only looks alike.
    load(P, bad, gone, {**changed}, before=after)
    assert seen == ["LLMRoute a/r", "LLMProvider a/gone", "LLMRoute a/r"]


def test_a_fault_names_its_object_and_field_and_no_line() -> None:
    bad = provider("bad", path="no-slash")
    (problem,) = load(P, bad).refused["LLMProvider a/bad"]
    assert str(problem).startswith("LLMProvider a/bad: spec.path: 'no-slash' is not a path")


def test_one_objects_fault_does_not_hold_up_the_others() -> None:
    first = load(P, route("mine", "mine.test"), route("yours", "yours.test"))
    bad = route("yours", "yours.test", {"providerHost": "p.test", "wait": 5}, at="a")
    added = route("new", "new.test")
    loaded = load(P, route("mine", "mine.test"), bad, added, before=first)
    assert served(loaded, "new.test") == ["p"]
    assert served(loaded, "yours.test") == ["p"]  # as it last was
    assert set(loaded.refused) == {"LLMRoute a/yours"}
    assert loaded.good["LLMRoute a/yours"] == route("yours", "yours.test")


def test_a_bad_object_that_never_was_good_has_its_host_closed() -> None:
    bad = route("r", "llm.test", {"providerHost": "p.test", "wait": 5})
    closed = rule(load(P, bad), "llm.test")
    assert (closed.targets, closed.matches) == ((), ())
    assert closed.fault == "LLMRoute a/r is at fault: its status, or the log, says why"
    wildcard = route("w", "*.llm.test", {})
    assert rule(load(P, bad, wildcard), "x.llm.test").fault
    assert rule(load(provider("p", path="x")), "p.test").fault


def test_a_bad_provider_closes_no_host_that_a_route_covers() -> None:
    """As a good one would not answer there."""
    bad, wildcard = provider("bad", "x.corp.test", path="x"), route("w", "*.corp.test")
    assert served(load(P, bad, wildcard), "x.corp.test") == ["p"]
    full = "chat.a.svc.cluster.local"
    assert served(load(P, provider("bad", full, path="x"), route("r", "chat")), full) == ["p"]
    # A bad route would come before the wildcard's rules, if it were good.
    assert rule(load(P, route("bad", "x.corp.test", {}), wildcard), "x.corp.test").fault


def test_a_bad_route_without_a_past_leaves_a_providers_host_to_the_provider() -> None:
    assert served(load(P, route("r", "p.test", {})), "p.test") == ["p"]


def test_the_older_one_has_the_host() -> None:
    old, new = provider("old", "p.test", at="z", age=9), provider("new", "p.test", at="a", age=1)
    for objects in ((old, new), (new, old)):
        loaded = load(*objects)
        assert served(loaded, "p.test") == ["old"]
        (problem,) = loaded.refused["LLMProvider a/new"]
        assert "the LLMProvider old at z/old has the host p.test too" in problem.message


def test_a_host_that_is_free_again_goes_to_who_waited() -> None:
    old, new = provider("old", "p.test", age=9), provider("new", "p.test", age=1)
    first = load(old, new)
    assert served(load(new, before=first), "p.test") == ["new"]


def test_a_provider_that_does_not_exist_is_left_out_of_the_rule() -> None:
    refs = ({"providerHost": "p.test", "weight": 1}, {"providerHost": "q.test", "weight": 1})
    loaded = load(P, route("r", "llm.test", *refs))
    assert served(loaded, "llm.test") == ["p"]
    assert loaded.refused == {}
    (problem,) = loaded.loaded.unresolved
    assert problem.file == "LLMRoute a/r"
    assert "no LLMProvider has the host q.test" in problem.message
    alone = load(route("r", "llm.test"))
    assert served(alone, "llm.test") == []


def test_routes_of_a_bad_provider_are_left_without_it_and_not_at_fault() -> None:
    loaded = load(provider("p", path="x"), route("r", "llm.test"))
    assert set(loaded.refused) == {"LLMProvider a/p"}
    assert served(loaded, "llm.test") == []


@pytest.mark.parametrize(
    "key",
    [
        {"apiKey": KEY},
        {"apiKeyFrom": {"env": "A_API_KEY"}},
        {"headers": {"authorization": f"Bearer {KEY}"}},
    ],
)
def test_a_key_that_is_not_here_fails_the_call_and_not_the_rules(key: Json) -> None:
    loaded = load(provider("p", configs=with_key(key)))
    assert loaded.refused == {}
    config = rule(loaded, "p.test").targets[0].config
    assert config
    assert config.credential
    with pytest.raises(CredentialError, match="the environment variable A_API_KEY is not set"):
        config.credential.reveal()
    (warning,) = loaded.loaded.warnings
    assert str(warning).startswith("LLMProvider a/p: spec.configs.defaultConfig.openAIConfig")
    assert load(provider("p", configs=with_key(key)), A_API_KEY="sk-1").loaded.warnings == ()


def test_a_key_file_may_come_later(tmp_path: Path) -> None:
    file = tmp_path / "key"
    key = {"apiKeyFrom": {"file": str(file)}}
    loaded = load(provider("p", configs=with_key(key)), allowed=Allowed((tmp_path,)))
    config = rule(loaded, "p.test").targets[0].config
    assert config
    assert config.credential
    with pytest.raises(CredentialError, match="can't be read"):
        config.credential.reveal()
    file.write_text("sk-late\n", encoding="utf-8")
    assert config.credential.reveal() == "sk-late"


TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"


@pytest.mark.parametrize(
    ("key", "gist"),
    [
        ({"apiKeyFrom": {"file": "/etc/passwd"}}, "objects may name only files in /etc/pointsman"),
        ({"apiKeyFrom": {"file": "keys/a"}}, "add its folder to llm_key_dirs of the proxies"),
        ({"apiKeyFrom": {"file": "/etc/pointsman/keys/../../passwd"}}, "only files in"),
        ({"apiKeyFrom": {"file": "/etc/pointsman/keys2/a"}}, "only files in"),
        ({"apiKeyFrom": {"file": TOKEN}}, "may not name the files of a service account"),
        ({"apiKeyFrom": {"env": "OTHER"}}, "objects may name only variables *_API_KEY"),
        ({"apiKey": "${OTHER}"}, "add it to llm_key_variables of the proxies"),
        ({"headers": {"x-a": "a ${OTHER}"}}, "objects may name only variables"),
    ],
)
def test_an_object_takes_no_secret_but_keys(key: Json, gist: str) -> None:
    """Who may write it decides where that is sent to."""
    loaded = load(P, provider("bad", configs=with_key(key)), OTHER="sk-of-another-team")
    assert served(loaded, "p.test") == ["p"]
    (problem,) = loaded.refused["LLMProvider a/bad"]
    assert gist in problem.message
    assert rule(loaded, "bad.test").targets == ()


def test_what_an_object_may_name_is_said_by_who_runs_the_proxy(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-in-file", encoding="utf-8")
    both = {"apiKeyFrom": {"file": str(tmp_path / "key")}, "headers": {"x-a": "${TEAM_A}"}}
    wide = Allowed((Path("/elsewhere"), tmp_path), ("X", "TEAM_*"))
    loaded = load(provider("p", configs=with_key(both)), allowed=wide, TEAM_A="a")
    config = rule(loaded, "p.test").targets[0].config
    assert config
    assert config.credential
    assert (config.credential.reveal(), dict(config.headers)) == ("sk-in-file", {"x-a": "a"})
    none = load(provider("p", configs=with_key(both)), allowed=Allowed((), ()), TEAM_A="a")
    messages = [problem.message for problem in none.refused["LLMProvider a/p"]]
    assert [m.partition(";")[0] for m in messages] == [
        "objects may name no files",
        "objects may name no variables",
    ]


def test_a_service_account_is_no_ones_whatever_folders_are_allowed() -> None:
    source = {"apiKeyFrom": {"file": TOKEN}}
    loaded = load(provider("p", configs=with_key(source)), allowed=Allowed((Path("/"),)))
    assert "service account" in loaded.refused["LLMProvider a/p"][0].message


def test_what_was_good_before_is_bounded_too() -> None:
    """A copy from when more was allowed does not bring it back."""
    key = provider("p", configs=with_key({"apiKey": "${OTHER}"}))
    before = load(key, allowed=Allowed(variables=("OTHER",)), OTHER="sk-1")
    assert before.refused == {}
    assert "LLMProvider a/p" in load(key, before=before, OTHER="sk-1").refused
    assert rule(load(key, before=before, OTHER="sk-1"), "p.test").targets == ()


def test_a_certificate_that_is_not_here_is_told_and_nothing_passes_unverified() -> None:
    loaded = load(provider("p", tls={"caFile": "/nowhere/ca.pem"}))
    assert "can't be read" in loaded.loaded.warnings[0].message
    tls = rule(loaded, "p.test").targets[0].tls
    assert (tls.ca_file, tls.verify) == ("/nowhere/ca.pem", True)


def test_a_placeholder_that_can_not_be_a_variable_is_the_objects_fault() -> None:
    loaded = load(provider("p", configs=with_key({"apiKey": "${dashscope API_KEY}"})))
    assert "is a placeholder" in loaded.refused["LLMProvider a/p"][0].message


def test_a_bare_host_is_a_name_in_its_own_namespace() -> None:
    """Two teams may each have a Service of one name."""
    mine = route("r", "chat", {"providerHost": "p.test"}, at="a")
    yours = route("r", "chat", {"providerHost": "q.test"}, at="b")
    for home, here in (("a", "p"), ("b", "q")):
        loaded = load(P, provider("q"), mine, yours, home=home)
        assert loaded.refused == {}
        assert served(loaded, "chat") == [here]
        assert served(loaded, "chat.a") == ["p"]
        assert served(loaded, "chat.b.svc.cluster.local") == ["q"]
    elsewhere = load(P, mine, home="c")
    assert elsewhere.loaded.table.lookup("chat") is None
    assert served(elsewhere, "chat.a.svc") == ["p"]


def test_a_bare_host_still_clashes_within_its_namespace() -> None:
    loaded = load(P, route("r", "chat", age=2), route("s", "chat", age=1))
    assert set(loaded.refused) == {"LLMRoute a/s"}


def test_a_closed_bare_host_is_closed_in_its_own_namespace() -> None:
    bad = route("r", "chat", {}, at="b")
    loaded = load(P, bad, home="a")
    assert loaded.loaded.table.lookup("chat") is None
    assert rule(loaded, "chat.b").fault
    assert rule(load(P, bad, home="b"), "chat").fault


def test_an_object_that_is_gone_is_forgotten() -> None:
    first = load(P, route("r", "llm.test"))
    loaded = load(P, before=first)
    assert loaded.loaded.table.lookup("llm.test") is None
    assert set(loaded.good) == {"LLMProvider a/p"}


def test_a_last_good_object_gives_way_to_what_has_its_host_now() -> None:
    first = load(P, route("mine", "llm.test", age=1))
    moved = route("mine", "llm.test", {"providerHost": "p.test", "wait": 5}, age=1)
    taken = route("other", "llm.test", age=9)
    loaded = load(P, moved, taken, before=first)
    assert set(loaded.good) == {"LLMProvider a/p", "LLMRoute a/other"}


def test_a_pool_without_a_cluster_to_read_is_the_routes_fault() -> None:
    ref = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "vllm"}
    loaded = load(route("r", "llm.test", {"backendRef": ref}))
    assert "set llm_kubernetes=true" in loaded.refused["LLMRoute a/r"][0].message


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "apiVersion": st.sampled_from(["istio.alibabacloud.com/v1beta1", "v1", 5]),
                "kind": st.sampled_from(["LLMProvider", "LLMRoute", "Pod", None]),
                "metadata": st.just({"name": "x", "namespace": "a"}) | _VALUES,
                "spec": st.just({"host": "p.test"}) | _VALUES,
            }
        ),
        max_size=4,
    )
)
def test_no_object_makes_it_fail(objects: list[Json]) -> None:
    first = load_objects(objects, good={}, instance=Instance(), environ={})
    again = load_objects(objects, good=first.good, instance=Instance(), environ={})
    assert set(again.good) == set(first.good)
    assert all(
        str(problem).isprintable() for problems in first.refused.values() for problem in problems
    )


@pytest.mark.parametrize(
    ("spec", "closed"),
    [
        ({}, True),
        ({"workloadSelector": {"labels": {"app": "front"}}}, True),
        ({"workloadSelector": {"labels": {"app": "other"}}}, False),
        ({"workloadSelector": {"labels": {"app": 5}}}, True),
        ({"workloadSelector": 5}, True),
        ({"gateways": ["ingress"]}, False),
        ({"gateways": ["ingress", "mesh"]}, True),
        ({"gateways": [5]}, True),
        # As a good route has its host here, though none of its rules can match.
        ({"rules": [{"matches": [{"sourceLabels": {"app": "other"}}]}]}, True),
    ],
)
def test_an_object_at_fault_closes_its_host_only_where_it_may_apply(
    spec: Json, closed: bool
) -> None:
    bad = route("bad", "llm.test", **{"odd": 1, **spec})
    instance = Instance(namespace="a", labels={"app": "front"})
    loaded = load_objects([P, bad], good={}, instance=instance, environ={})
    assert "LLMRoute a/bad" in loaded.refused
    assert (loaded.loaded.table.lookup("llm.test") is not None) == closed


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-Abc123",
        "sk-live",
        "AIzaSyDabcdefghij",
        "Bearer abc",
        "0123456789abcdef0123",
        "x" * 60,
    ],
)
def test_no_message_repeats_a_key_in_a_wrong_field(secret: str) -> None:
    """What is wrong with an object goes to the log, to /config, and into its status."""
    objects = [
        provider("a", host=f"{secret}/"),
        provider("b", path=secret),
        provider("c", address=secret),
        provider("d", timeouts={"connect": secret}),
        provider("e", configs=with_key({"modelMapping": {f"*{secret}": "m"}})),
        provider("g", host=f"{secret}:80"),
        route("f", "f.test", rules=[{"backendRefs": [{"providerHost": f"{secret}_"}]}]),
    ]
    matches: list[Json] = [
        {"method": secret.lower()},
        {"headers": {"x": {"regex": f"{secret}("}}},
        {"model": {"regex": f"[[:{secret}:]]"}},
    ]
    for n, found in enumerate(matches):
        rules = [{"matches": [found], "backendRefs": [{"providerHost": "p.test"}]}]
        objects.append(route(f"m{n}", f"m{n}.test", rules=rules))
    loaded = load(P, *objects)
    told = [str(p) for found in loaded.refused.values() for p in found]
    told += map(str, (*loaded.loaded.unresolved, *loaded.loaded.warnings))
    assert len(loaded.refused) >= len(objects) - 1
    for message in told:
        assert secret.lower() not in message.lower()


def test_a_plain_value_is_still_repeated() -> None:
    bad = provider("bad", host="https://api.openai.com/v1")
    (problem,) = load(P, bad).refused["LLMProvider a/bad"]
    assert "'https://api.openai.com/v1' is not a host name" in problem.message


@pytest.mark.parametrize("spec", [{"timeouts": {"connect": "٣s"}}, {"address": "10.0.0.1:٣٣"}])
def test_digits_are_those_of_ascii(spec: Json) -> None:
    assert "LLMProvider a/bad" in load(P, provider("bad", **spec)).refused
