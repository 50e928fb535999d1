import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.config.loading import (
    Instance,
    Loaded,
    LoadError,
    Problem,
    fingerprint,
    load,
    load_kept,
)

type Load = Callable[..., Loaded]
type Fail = Callable[..., tuple[Problem, ...]]

SEED = Path(__file__).parent / "data" / "seed"
KEYS = {"DASHSCOPE_API_KEY": "dashscope-key-1", "MOONSHOT_API_KEY": "moonshot-key-1"}
PROVIDER = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: p}
spec:
  host: p.test
"""


# --- the manifests of the ASM documentation -------------------------------------------------------


def test_the_manifests_of_the_documentation_work_beside_services_and_deployments() -> None:
    loaded = load(SEED, environ=KEYS)
    assert loaded.providers == ("moonshot", "dashscope-qwen")
    assert loaded.routes == ("demo-llm-server", "dashscope-route")
    assert loaded.skipped == ("Deployment (apps/v1)", "Service", "ServiceAccount")
    assert (loaded.warnings, loaded.extensions) == ((), ())


def test_subscribers_get_the_config_of_their_rule() -> None:
    route = load(SEED, environ=KEYS).table.exact["dashscope.aliyuncs.com"]
    vip, others = route.rules
    (condition,) = vip.matches[0].conditions
    assert (condition.name, condition.text) == ("user-type", "= subscriber")
    assert (others.name, others.matches) == ("rules[1]", ())
    configs = [rule.targets[0].config for rule in route.rules]
    assert [c and c.model for c in configs] == ["qwen-turbo", "qwen1.5-72b-chat"]
    assert [c and c.credential and c.credential.reveal() for c in configs] == [
        "dashscope-key-1"
    ] * 2


def test_the_demo_service_is_split_in_halves() -> None:
    route = load(SEED, environ=KEYS).table.lookup("demo-llm-server.default.svc.cluster.local")
    assert route is not None
    (rule,) = route.rules
    assert (rule.name, rule.key) == ("migrate-rule", "default/demo-llm-server/migrate-rule")
    assert [(t.provider, t.weight) for t in rule.targets] == [
        ("dashscope-qwen", 50),
        ("moonshot", 50),
    ]
    moonshot = rule.targets[1]
    assert moonshot.path == "/v1/chat/completions"
    assert moonshot.config is not None
    assert moonshot.config.stream is False
    assert moonshot.stream_usage == "inject"


def test_the_provider_without_a_route_answers_for_its_host() -> None:
    route = load(SEED, environ=KEYS).table.exact["api.moonshot.cn"]
    assert route.name is None


def test_the_placeholder_of_the_documentation_is_told_what_to_write(problems: Fail) -> None:
    text = (SEED / "LLMProvider.yaml").read_text(encoding="utf-8")
    found = problems(text.replace("${DASHSCOPE_API_KEY}", "${dashscope API_KEY}"))
    assert [p.line for p in found] == [12, 17]
    assert str(found[0]) == (
        "rules/a.yaml:12: LLMProvider/dashscope-qwen:"
        " spec.configs.defaultConfig.openAIConfig.apiKey: ${dashscope API_KEY} is a placeholder,"
        " not a variable's name; put the key into an environment variable and write"
        " ${DASHSCOPE_API_KEY}, or use apiKeyFrom"
    )


def test_the_process_environment_is_read_when_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    assert len(load(SEED).providers) == 2


# --- what is read ---------------------------------------------------------------------------------


def test_what_files_held_can_be_loaded_when_they_and_what_they_name_are_gone(folder: Path) -> None:
    text = (
        f"{PROVIDER}  configs: {{defaultConfig: {{openAIConfig: {{apiKeyFrom: {{file: key}}}}}}}}"
    )
    (folder / "key").write_text("key-1")
    (folder / "a.yaml").write_text(f"\ufeff{text}\n---\n", encoding="utf-8")
    (folder / "b.json").write_text('{\t"apiVersion": "v1", "kind": "Service"}')
    loaded = load(folder)
    for file in folder.iterdir():
        file.unlink()
    kept = load_kept(loaded.files)
    assert (kept.providers, kept.skipped) == (loaded.providers, loaded.skipped)
    (target,) = kept.table.exact["p.test"].rules[0].targets
    assert target.config
    assert target.config.credential
    with pytest.raises(ValueError, match="can't be read"):
        target.config.credential.reveal()
    (folder / "key").write_text("key-2")
    assert target.config.credential.reveal() == "key-2"


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"gone: it can't be read \(no such file or directory\)"):
        load(tmp_path / "gone")


def test_a_folder_of_other_things_is_an_error(folder: Path) -> None:
    (folder / "README.md").touch()
    with pytest.raises(LoadError, match=r"rules: there is no \*\.yaml, \*\.yml or \*\.json file"):
        load(folder)


def test_a_dangling_symlink_is_an_error_beside_the_others(folder: Path) -> None:
    (folder / "b.yaml").symlink_to("nowhere")
    (folder / "a.yaml").write_text("a: b: c")
    with pytest.raises(LoadError) as caught:
        load(folder)
    assert [(p.file, p.line) for p in caught.value.problems] == [
        ("rules/a.yaml", 1),
        ("rules/b.yaml", None),
    ]


@pytest.mark.parametrize("text", [None, "", "# nothing\n---\n", "apiVersion: v1\nkind: Service\n"])
def test_nothing_of_ours_is_a_warning(folder: Path, text: str | None) -> None:
    if text is not None:
        (folder / "a.yaml").write_text(text)
    loaded = load(folder)
    assert [str(w) for w in loaded.warnings] == [
        "rules: no LLMProvider or LLMRoute in it: nothing is routed"
    ]
    assert loaded.table.lookup("p.test") is None


def test_a_single_file_and_json_and_lists_are_read(folder: Path) -> None:
    item = {
        "apiVersion": "istio.alibabacloud.com/v1beta1",
        "kind": "LLMProvider",
        "metadata": {"name": "j"},
        "spec": {"host": "j.test"},
    }
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]}, indent="\t")
    (folder / "a.json").write_text(text)
    assert load(folder / "a.json").providers == ("j",)


def test_other_groups_are_named_once(rules: Load) -> None:
    other = "apiVersion: apps/v1\nkind: Deployment\n"
    loaded = rules(
        PROVIDER, other, other, "apiVersion: v1\nkind: Secret\nstringData: {a: 1, a: 2}\n"
    )
    assert loaded.skipped == ("Deployment (apps/v1)", "Secret")


def test_our_kind_in_another_group_is_skipped_with_a_warning(rules: Load) -> None:
    loaded = rules(PROVIDER, PROVIDER.replace("alibabacloud", "alibaba"))
    (warning,) = loaded.warnings
    assert (warning.line, warning.field) == (7, "apiVersion")
    assert "istio.alibaba.com/v1beta1 is another API group" in warning.message


@pytest.mark.parametrize(
    "group",
    [
        "istio.alibabacloud.co",
        "istio.alibabaclound.com",
        "istio.alibaba-cloud.com",
        "Istio.AlibabaCloud.com",
    ],
)
def test_our_kind_in_a_misspelt_group_is_an_error_with_a_suggestion(
    problems: Fail, group: str
) -> None:
    """What refers to it is not at fault beside it."""
    route = PROVIDER.replace("LLMProvider", "LLMRoute") + (
        "  rules: [{backendRefs: [{providerHost: p.test}]}]\n"
    )
    (problem,) = problems(route, PROVIDER.replace("istio.alibabacloud.com", group))
    assert (problem.line, problem.resource, problem.field) == (8, "LLMProvider", "apiVersion")
    assert problem.message == (
        f'unknown API group "{group}"; did you mean "istio.alibabacloud.com/v1beta1"?'
    )


def test_another_kind_in_a_group_like_ours_is_skipped(rules: Load) -> None:
    other = "apiVersion: istio.alibabacloud.co/v1beta1\nkind: ASMSwimLane\n"
    loaded = rules(PROVIDER, other)
    assert (loaded.warnings, loaded.skipped) == (
        (),
        ("ASMSwimLane (istio.alibabacloud.co/v1beta1)",),
    )


def test_every_fault_of_every_file_is_told_in_order(problems: Fail) -> None:
    found = problems(
        files={
            "c.yaml": PROVIDER.replace("name: p", "name: c") + "  path: x\n  prot: 1\n",
            "a.yaml": "a: [\n",
            "b.yaml": PROVIDER + "  configs: {defaultConfig: {openAIConfig: {apiKey: '${NO}'}}}\n",
        }
    )
    assert [(p.file, p.line) for p in found] == [
        ("rules/a.yaml", 2),
        ("rules/b.yaml", 6),
        ("rules/c.yaml", 6),
        ("rules/c.yaml", 7),
    ]


def test_a_key_is_told_beside_other_faults_of_its_document(problems: Fail) -> None:
    found = problems(
        PROVIDER
        + "  paht: /v1\n"
        + "  configs:\n"
        + "    defaultConfig: {openAIConfig: {apiKey: '${my KEY}'}}\n"
        + "    routeSpecificConfigs: {vip: {openAIConfig: {apiKeyFrom: {env: UNSET}}}}\n"
    )
    assert [problem.field for problem in found] == [
        "spec.paht",
        "spec.configs.defaultConfig.openAIConfig.apiKey",
        "spec.configs.routeSpecificConfigs.vip.openAIConfig.apiKeyFrom.env",
    ]


@pytest.mark.parametrize("instance", [Instance(), Instance({"app": "a"}, frozenset({"edge"}))])
def test_validation_is_complete_whoever_loads(problems: Fail, instance: Instance) -> None:
    route = PROVIDER.replace("LLMProvider", "LLMRoute") + "  gateways: [edge]\n  rules: []\n"
    selected = PROVIDER + "  workloadSelector: {labels: {app: a}}\n  port: 0\n"
    assert len(problems(selected, route, instance=instance)) == 2


def test_a_mounted_config_map_is_loaded_anew_after_its_swap(folder: Path) -> None:
    for version in ("1", "2"):
        (folder / f"..2026_{version}").mkdir()
        (folder / f"..2026_{version}" / "r.yaml").write_text(
            PROVIDER.replace("p.test", f"p{version}")
        )
    (folder / "..data").symlink_to("..2026_1")
    (folder / "r.yaml").symlink_to("..data/r.yaml")
    before = fingerprint(folder)
    assert set(load(folder).table.exact) == {"p1"}
    (folder / "..data_tmp").symlink_to("..2026_2")
    (folder / "..data_tmp").rename(folder / "..data")
    assert fingerprint(folder) != before
    assert set(load(folder).table.exact) == {"p2"}


# --- whatever stands there ------------------------------------------------------------------------

_FIELDS = """
spec host path port tls configs defaultConfig routeSpecificConfigs openAIConfig apiKey model
apiKeyFrom headers params set rules matches backendRefs providerHost backendRef weight name
workloadSelector labels gateways affinity retry attempts on backoff perTryTimeout mirror percent
priority timeouts connect idle outlierDetection baseEjection maxEjection exact regex [key] a:b
"""
_NAMES = st.sampled_from(_FIELDS.split())
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("p.test"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


def load_or_fail(folder: Path, text: str) -> None:
    """Load a text; what may come out is a table or a LoadError, each problem on one line."""
    (folder / "any.yaml").write_text(text, encoding="utf-8", errors="replace")
    problems: tuple[Problem, ...] = ()
    try:
        load(folder, environ={})
    except LoadError as error:
        problems = error.problems or (Problem("", None, None, None, "\n"),)
    assert all(str(problem).isprintable() for problem in problems)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["LLMProvider", "LLMRoute"]), metadata=_VALUES, spec=_VALUES)
def test_no_resource_raises_anything_but_a_load_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, metadata: Any, spec: Any
) -> None:
    document = {
        "apiVersion": "istio.alibabacloud.com/v1beta1",
        "kind": kind,
        "metadata": metadata or {"name": "x"},
        "spec": {"host": "p.test"} | spec if isinstance(spec, dict) else spec,
    }
    text = yaml.safe_dump(document, allow_unicode=False)
    load_or_fail(tmp_path_factory.mktemp("any"), text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([*"{}[]:,-&*!|>'\"%@# \n\t\\a1~<", "<<: ", "&a ", "*a", "---\n", "\\U"])
        | st.text(max_size=3),
        max_size=30,
    ).map("".join)
)
def test_no_text_raises_anything_but_a_load_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    load_or_fail(tmp_path_factory.mktemp("any"), f"{PROVIDER}  x: {text}")
