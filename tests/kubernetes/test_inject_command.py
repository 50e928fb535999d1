"""`pointsman inject`, called as a user calls it but in this process."""

from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner, Result

from pointsman import __version__
from pointsman.cli import app
from pointsman.kubernetes.settings import OPTIONS
from tests.kubernetes.injecting import GOLDEN, containers_of, document, documents

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: a}]}\n"
HOST_NETWORK = POD.replace("spec: {", "spec: {hostNetwork: true, ")


def run(*arguments: str | Path, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["inject", *map(str, arguments)], input=text)


def images(text: str) -> set[str]:
    return {
        each["image"]
        for name, each in containers_of(document(text)).items()
        if name.startswith("pointsman")
    }


@pytest.mark.parametrize("arguments", [(), ("-",), ("-f", "-")])
def test_it_reads_standard_input(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, text=POD)
    assert result.exit_code == 0
    assert images(result.stdout) == {f"pointsman:{__version__}"}
    assert result.stderr == (
        f"the image is pointsman:{__version__}; name your registry's with --image\n"
    )


def test_a_sidecar_that_loses_an_option_is_told() -> None:
    """Whoever pipes a live object through it again may well forget what it was injected with."""
    given = ("--image", "r.test:5000/p:1", "--keys-secret", "k", "--exclude-ports", "81,82")
    once = run(*given, text=POD).stdout
    assert not run(*given, text=once).stderr
    upgraded = run("--image", "r.test:5000/p:2@sha256:00", *given[2:], text=once)
    assert not upgraded.stderr
    again = run(text=once)
    for option in ("--image r.test:5000/p:1", "--keys-secret k", "--exclude-ports 81,82"):
        assert f"was injected with {option}, which is not given now and is lost" in again.stderr
    assert run("--strict", text=once).exit_code == 1
    assert not run("--strict", text=once).stdout


def test_an_option_that_is_given_anew_takes_the_place_of_the_old_one() -> None:
    image = ("--image", "r.test/p:1")
    once = run(*image, "--keys-secret", "old", text=POD).stdout
    again = run(*image, "--keys-secret", "new", text=once)
    assert not again.stderr
    assert "secretName: new" in again.stdout


def test_it_reads_files_and_directories_in_order(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json"):
        (tmp_path / name).write_text(POD.replace("name: a}", f"name: {name[0]}}}", 1))
    (tmp_path / "d.yaml").write_bytes(b"\xef\xbb\xbfapiVersion: v1\nkind: Service\n")
    (tmp_path / "notes.txt").write_text("not read")
    result = run("-f", tmp_path / "d.yaml", "-f", tmp_path, tmp_path / "b.yaml")
    assert result.exit_code == 0
    found = documents(result.stdout)
    names = [value.get("metadata", {}).get("name") for value in found]
    assert names == [None, "a", "b", "c", None, "b"]


def test_the_output_is_the_golden_one_and_its_own_input(tmp_path: Path) -> None:
    options = ("--image", "registry.example.com/pointsman:1.2.3")
    once = run("-f", GOLDEN / "mixed.yaml", *options)
    assert once.exit_code == 0
    assert run(*options, text=once.stdout).stdout == once.stdout
    golden = (GOLDEN / "mixed.injected.yaml").read_text()
    assert once.stdout.replace(__version__, "1.2.3") == golden
    assert [line.partition(": ")[0] for line in once.stderr.splitlines()] == ["warning"] * 2


def test_every_option_is_in_the_manifest() -> None:
    result = run(
        *("--image", "registry.example.com/pointsman@sha256:0123"),
        *("--rules-configmap", "shop-rules", "--keys-secret", "shop-keys"),
        *("--ca-secret", "shop-ca", "--workers", "3", "--proxy-port", "16001"),
        *("--include-ports", "80, 8000-8010", "--exclude-ports", "9443"),
        *("--include-cidrs", "0.0.0.0/0", "--exclude-cidrs", "10.0.0.0/8,fd00::/8"),
        *("--passthrough-hosts", "pinned.example.com,*.bank.example"),
        *("--set", "llm_observe=true", "--set", "llm_body_limit=64m"),
        *("--cpu-request", "250m", "--cpu-limit", "2.5"),
        *("--memory-request", "256Mi", "--memory-limit", "1Gi", "--grace-period", "300"),
        text=POD,
    )
    assert result.exit_code == 0, result.stderr
    value = document(result.stdout)
    found = containers_of(value)
    assert images(result.stdout) == {"registry.example.com/pointsman@sha256:0123"}
    assert found["pointsman-redirect"]["args"][1:] == [
        *("-p", "16001", "-u", "1337", "-g", "none", "-q", "80,8000-8010", "-o", "9443"),
        *("-i", "0.0.0.0/0", "-x", "10.0.0.0/8,fd00::/8"),
    ]
    proxy = found["pointsman"]
    command = " ".join(proxy["args"])
    for part in (
        "--workers 3",
        "--port 16001",
        "--set llm_passthrough=pinned.example.com,*.bank.example",
        "--set llm_observe=true --set llm_body_limit=64m",
        "--set llm_drain_timeout=290s",
    ):
        assert part in command
    assert proxy["resources"] == {
        "requests": {"cpu": "250m", "memory": "256Mi"},
        "limits": {"cpu": "2.5", "memory": "1Gi"},
    }
    volumes = {volume["name"]: volume for volume in value["spec"]["volumes"]}
    assert volumes["pointsman-rules"]["configMap"]["name"] == "shop-rules"
    assert volumes["pointsman-keys"]["secret"]["secretName"] == "shop-keys"
    assert volumes["pointsman-ca-secret"]["secret"]["secretName"] == "shop-ca"
    assert value["spec"]["terminationGracePeriodSeconds"] == 300


def test_there_is_an_option_for_each_setting() -> None:
    options = {
        name for parameter in get_group(app).commands["inject"].params for name in parameter.opts
    }
    assert {f"--{name}" for name in OPTIONS} <= options


def test_rules_from_the_cluster_need_no_configmap() -> None:
    value = document(run("--rules", "kubernetes:", text=POD).stdout)
    assert "pointsman-rules" not in {volume["name"] for volume in value["spec"]["volumes"]}
    assert " ".join(containers_of(value)["pointsman"]["args"]).startswith(
        "run --sidecar --rules kubernetes: "
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "0"), "--workers: Input should be greater than or equal to 1"),
        (("--proxy-port", "80"), "--proxy-port: Input should be greater than or equal to 1024"),
        (("--include-ports", "http"), "--include-ports: 'http' is not a port"),
        (("--include-ports", ""), "--include-ports: it names no port"),
        (("--exclude-cidrs", "shop"), "--exclude-cidrs: 'shop' is not a range of addresses"),
        (("--keys-secret", "Shop"), "--keys-secret: 'Shop' is not a name that Kubernetes allows"),
        (("--passthrough-hosts", "https://a"), "'https://a' is not a host name"),
        (("--set", "llm_observe"), "--set: 'llm_observe' is not name=value"),
        (("--grace-period", "1"), "--grace-period: Input should be greater than or equal to 10"),
    ],
)
def test_a_wrong_option_is_told(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments, text=POD)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout


def test_after_an_error_nothing_is_printed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POD)
    (tmp_path / "b.yaml").write_text("---\n---\nkind: Pod\n")
    result = run("-f", tmp_path)
    assert result.exit_code == 1
    assert not result.stdout
    assert result.stderr == (
        f"{tmp_path / 'b.yaml'}: document 2, line 3: without apiVersion this is no manifest\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.yaml", None, "it can't be read (no such file or directory)"),
        ("binary.yaml", b"\xff\xfe\x00", "it can't be read (not UTF-8 text)"),
    ],
)
def test_a_file_that_can_not_be_read_is_told(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run("-f", tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr
    assert name in result.stderr


def test_standard_input_that_is_no_text_is_told() -> None:
    result = run(text=b"\xff")
    assert result.exit_code == 2
    assert result.stderr.startswith("-: it can't be read (not UTF-8 text)")


def test_a_pod_of_the_nodes_network_is_passed_on_and_strict_refuses_it() -> None:
    result = run(text=HOST_NETWORK)
    assert result.exit_code == 0
    assert result.stdout == HOST_NETWORK
    assert result.stderr.startswith("warning: standard input: document 1, line 1: Pod/a: not inje")

    strict = run("--strict", text=HOST_NETWORK)
    assert strict.exit_code == 1
    assert not strict.stdout
    assert "1 warning, and --strict: nothing is printed" in strict.stderr


def test_what_is_left_alone_on_purpose_is_no_warning() -> None:
    text = POD.replace("{name: a}", "{name: a, annotations: {pointsman.io/inject: disabled}}")
    result = run("--strict", text=text)
    assert result.exit_code == 0
    assert result.stdout == text
    assert "left as it is" in result.stderr


def test_the_documentation_has_every_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
    for name in OPTIONS | {"strict"}:
        assert f"`--{name}`" in text


def test_line_ends_stay_as_they_are() -> None:
    text = b"apiVersion: v1\r\nkind: Service\r\n"
    assert run(text=text).stdout_bytes == text
