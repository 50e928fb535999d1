"""`pointsman ca`, called as a user calls it but in this process."""

import json
from base64 import b64decode
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pointsman.ca.store import load, read_secret
from pointsman.cli import app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["ca", *(str(argument) for argument in arguments)])


def test_init_makes_one_and_keeps_it(tmp_path: Path) -> None:
    first = run("init", "--dir", tmp_path, "--name", "Shop CA", "--days", "30")
    assert first.exit_code == 0, first.output
    assert str(tmp_path / "mitmproxy-ca-cert.pem") in first.stdout
    assert "CN=Shop CA,O=Pointsman" in first.stdout
    assert load(tmp_path).fingerprint in first.stdout
    again = run("init", "--dir", tmp_path, "--name", "Other")
    assert again.stdout == first.stdout


@pytest.mark.parametrize("manifest", [(), ("--manifest", "llm-ca/shop")])
def test_a_name_that_no_certificate_can_have_is_told_with_the_mend(
    tmp_path: Path, manifest: tuple[str, ...]
) -> None:
    result = run("init", "--dir", tmp_path / "c", "--name", "ü" * 33, *manifest)
    assert result.exit_code == 1
    assert "at most 64 bytes, and this one has 66; choose a shorter one (--name)" in result.stderr
    assert not list(tmp_path.rglob("*.pem"))
    assert run("init", "--dir", tmp_path / "c", "--name", "ü" * 32).exit_code == 0


def test_a_manifest_is_a_secret_that_can_be_mounted_and_not_overwritten(tmp_path: Path) -> None:
    result = run("init", "--manifest", "llm-ca/shop", "--dir", tmp_path / "unused")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "unused").exists()
    secret = yaml.safe_load(result.stdout)
    assert secret["kind"] == "Secret"
    assert secret["type"] == "kubernetes.io/tls"
    assert secret["immutable"] is True
    assert secret["metadata"]["name"] == "llm-ca"
    assert secret["metadata"]["namespace"] == "shop"
    for name, value in secret["data"].items():
        (tmp_path / name).write_bytes(b64decode(value))
    authority = read_secret(tmp_path)
    assert authority.fingerprint in result.stderr
    taken = run("init", "--dir", tmp_path / "confdir", "--secret", tmp_path)
    assert taken.exit_code == 0, taken.output
    assert load(tmp_path / "confdir") == authority


def test_a_manifest_needs_a_name_and_a_namespace() -> None:
    result = run("init", "--manifest", "Pointsman")
    assert result.exit_code == 1
    assert "write lower case letters" in result.stderr
    assert not result.stdout


def test_a_private_key_is_not_shown_on_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.cli.ca.is_screen", lambda: True)
    result = run("init", "--manifest", "llm-ca/shop")
    assert result.exit_code == 2
    assert "pipe it" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("form", ["env", "sh", "json", "kubernetes"])
def test_the_variables_are_printed_in_each_format(tmp_path: Path, form: str) -> None:
    run("init", "--dir", tmp_path / "confdir")
    result = run(
        *("bundle", "--dir", tmp_path / "confdir", "--out", tmp_path / "out"),
        *("--at", "/etc/it's", "--format", form),
    )
    assert result.exit_code == 0, result.output
    bundle = "/etc/it's/ca-bundle.pem"
    wanted = {
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "CURL_CA_BUNDLE": bundle,
        "NODE_EXTRA_CA_CERTS": "/etc/it's/pointsman-ca.pem",
        "GIT_SSL_CAINFO": bundle,
    }
    if form == "json":
        assert json.loads(result.stdout) == wanted
    elif form == "kubernetes":
        assert {one["name"]: one["value"] for one in yaml.safe_load(result.stdout)} == wanted
    elif form == "env":
        assert dict(line.split("=", 1) for line in result.stdout.splitlines()) == wanted
    else:
        assert "export SSL_CERT_FILE='/etc/it'\"'\"'s/ca-bundle.pem'\n" in result.stdout
        assert len(result.stdout.splitlines()) == len(wanted)


def test_a_bundle_needs_an_authority(tmp_path: Path) -> None:
    result = run("bundle", "--dir", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "make one: pointsman ca init --dir" in result.stderr
    assert not (tmp_path / "out").exists()
