"""Sets of hosts, and the one of the known LLM hosts."""

import re
from pathlib import Path

import pytest
import yaml

from pointsman.config.hosts import NO_HOSTS, Hosts, known_llm_hosts, known_names, parse_hosts
from pointsman.config.table import Route, RoutingTable

RULES = Path(__file__).resolve().parents[2] / "rules"


def test_a_name_is_found_however_it_is_written() -> None:
    hosts = Hosts.of(["api.openai.com"])
    for name in ("api.openai.com", "API.OpenAI.com", "api.openai.com."):
        assert name in hosts
    for other in ("openai.com", "eu.api.openai.com", "api.openai.com.evil.example", "", None):
        assert other not in hosts


def test_a_leading_wildcard_stands_for_one_label_or_more() -> None:
    hosts = Hosts.of(["*.openai.azure.com"])
    assert "shop.openai.azure.com" in hosts
    assert "shop.privatelink.openai.azure.com" in hosts
    for name in ("openai.azure.com", ".openai.azure.com", "xopenai.azure.com"):
        assert name not in hosts


def test_a_wildcard_inside_stands_for_a_part_of_one_label() -> None:
    hosts = Hosts.of(["bedrock-runtime.*.amazonaws.com", "*-aiplatform.googleapis.com"])
    assert "bedrock-runtime.us-east-1.amazonaws.com" in hosts
    assert "us-central1-aiplatform.googleapis.com" in hosts
    for name in (
        "bedrock-runtime.amazonaws.com",
        "bedrock-runtime.a.b.amazonaws.com",
        "-aiplatform.googleapis.com",
        "a.b-aiplatform.googleapis.com",
        "bedrock-runtimexus-east-1.amazonaws.com",
    ):
        assert name not in hosts


def test_no_hosts_are_false() -> None:
    assert not NO_HOSTS
    assert not parse_hosts([])
    assert Hosts.of(["a.example"])
    assert Hosts.of(["*.a.example"])


def test_what_people_write_is_parted_at_commas_and_checked() -> None:
    hosts = parse_hosts(["A.example., *.b.example", "c.example"])
    assert all(name in hosts for name in ("a.example", "x.b.example", "c.example"))
    for wrong in ("https://a.example", "a.example:443", "*", "a.*.example", "*.*.example"):
        with pytest.raises(ValueError, match="is not a host name"):
            parse_hosts([wrong])


# --- the table ------------------------------------------------------------------------------------

OURS = Route("ours", "api.openai.com", ())


def table(passthrough: Hosts = NO_HOSTS, denied: Hosts = NO_HOSTS) -> RoutingTable:
    wildcard = Route("azure", "*.openai.azure.com", ())
    exact, wildcards = {OURS.host: OURS}, ((".openai.azure.com", wildcard),)
    return RoutingTable(exact, wildcards, passthrough, denied)


def test_an_exempt_host_is_in_no_table() -> None:
    exempt = table(parse_hosts(["api.openai.com", "pinned.openai.azure.com"]))
    assert exempt.lookup("API.openai.com.") is None
    assert exempt.lookup("pinned.openai.azure.com") is None
    assert exempt.lookup("shop.openai.azure.com") is not None


def test_a_denied_host_is_refused_unless_it_is_ours_or_exempt() -> None:
    guarded = table(parse_hosts(["api.anthropic.com"]), known_llm_hosts())
    assert guarded.refuses("api.deepseek.com")
    assert not guarded.refuses("api.openai.com")
    assert not guarded.refuses("shop.openai.azure.com")
    assert not guarded.refuses("api.anthropic.com")
    assert not guarded.refuses("example.com")
    assert not guarded.refuses(None)
    assert not table().refuses("api.deepseek.com")


def test_a_host_of_ours_that_is_exempt_is_not_refused_either() -> None:
    guarded = table(parse_hosts(["api.openai.com"]), known_llm_hosts())
    assert guarded.lookup("api.openai.com") is None
    assert not guarded.refuses("api.openai.com")


# --- the known LLM hosts --------------------------------------------------------------------------


def test_each_host_of_the_default_rules_is_known() -> None:
    text = (RULES / "known-providers.yaml").read_text(encoding="utf-8")
    hosts = [document["spec"]["host"] for document in yaml.safe_load_all(text) if document]
    assert hosts
    assert [host for host in hosts if host not in known_llm_hosts()] == []


def test_each_line_of_the_list_is_a_name_and_adds_something() -> None:
    names = known_names()
    label = r"[a-z0-9*](?:[a-z0-9*-]*[a-z0-9*])?"
    for name in names:
        assert re.fullmatch(rf"{label}(?:\.{label})+", name), name
        sample = name.replace("*", "x")
        others = Hosts.of(other for other in names if other != name)
        assert sample not in others, f"{name} is said by another line"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "host",
    [
        "eu.api.openai.com",
        "shop.openai.azure.com",
        "shop.services.ai.azure.com",
        "bedrock-runtime.eu-west-1.amazonaws.com",
        "bedrock-runtime-fips.us-gov-west-1.amazonaws.com",
        "vpce-0a1b-2c3d.bedrock-runtime.us-east-1.vpce.amazonaws.com",
        "europe-west4-aiplatform.googleapis.com",
        "aiplatform.googleapis.com",
        "dashscope-intl.aliyuncs.com",
        "dashscope-us.aliyuncs.com",
        "ark.cn-beijing.volces.com",
        "hunyuan.ap-guangzhou.tencentcloudapi.com",
        "api.individual.githubcopilot.com",
        "x1.eu-west-1.aws.endpoints.huggingface.cloud",
    ],
)
def test_regions_and_customers_hosts_are_known(host: str) -> None:
    assert host in known_llm_hosts()


@pytest.mark.parametrize(
    "host",
    [
        "openai.com",
        "chatgpt.com",
        "huggingface.co",
        "api.cloudflare.com",
        "s3.amazonaws.com",
        "bedrock.us-east-1.amazonaws.com",
        "storage.googleapis.com",
        "management.azure.com",
        "github.com",
        "api.github.com",
        "oss-cn-beijing.aliyuncs.com",
        "api.replicate.com.example",
    ],
)
def test_hosts_with_other_uses_are_not(host: str) -> None:
    assert host not in known_llm_hosts()
