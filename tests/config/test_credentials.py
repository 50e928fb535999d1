import os
from pathlib import Path

import pytest

from pointsman.config import credentials
from pointsman.config.credentials import (
    Allowed,
    CredentialError,
    KeyFile,
    KeyFileUnavailableError,
    Literal,
    expand,
    mask,
)

KEY = "sk-0123456789abcdef"


def test_placeholders_are_replaced_and_other_text_stays() -> None:
    assert expand("a ${A} ${B_2} $C $", {"A": "1", "B_2": "2"}) == "a 1 2 $C $"


def test_the_placeholder_of_the_documentation_is_told_what_to_write() -> None:
    with pytest.raises(CredentialError, match=r"write \$\{DASHSCOPE_API_KEY\}"):
        expand("${dashscope API_KEY}", {})
    with pytest.raises(CredentialError, match=r"write \$\{API_KEY\}"):
        expand("${}", {})


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("${NAME", r"placeholder \$\{NAME is not closed; write \$\{NAME\}"),
        ("${A} ${B_2", r"write \$\{B_2\}"),
        ("Bearer ${A b", r"placeholder \$\{… is not closed; write \$\{NAME\}"),
        ("x${", r"write \$\{NAME\}"),
    ],
)
def test_a_placeholder_that_is_not_closed_is_told_what_to_write(text: str, mend: str) -> None:
    with pytest.raises(CredentialError, match=mend):
        expand(text, {"A": "1"})


def test_what_a_variable_holds_is_no_placeholder() -> None:
    assert expand("${A}", {"A": "${B"}) == "${B"


def test_a_variable_must_be_set_and_not_empty() -> None:
    with pytest.raises(CredentialError, match="variable A is not set; export it"):
        expand("${A}", {})
    with pytest.raises(CredentialError, match="variable A is empty"):
        expand("${A}", {"A": ""})


@pytest.mark.parametrize(
    "text", [f"${{{KEY}}}", "${AIzaSy0123456789}", f"${{{KEY}", "${AIzaSy0123456789"]
)
def test_a_key_written_as_a_placeholder_is_not_repeated(text: str) -> None:
    with pytest.raises(CredentialError) as caught:
        expand(text, {})
    assert "0123456789" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "SK_KEY", "OPENAI_API_KEY_2", "DASHSCOPEAPIKEYOFPROD", "my_key"]
)
def test_a_variables_name_is_told(name: str) -> None:
    with pytest.raises(CredentialError, match=f"the environment variable {name} is not set"):
        expand(f"${{{name}}}", {})


@pytest.mark.parametrize("name", ["gsk_RLSECRET", "A1B2C3D4E5F6A7B8C9D0"])
def test_what_may_be_a_key_is_not_told_as_a_variables_name(name: str) -> None:
    assert expand(f"${{{name}}}", {name: "value"}) == "value"
    with pytest.raises(CredentialError, match="variable that is named here is not set") as caught:
        expand(f"${{{name}}}", {})
    assert name not in str(caught.value)


def test_a_mask_tells_keys_apart_and_gives_none_away() -> None:
    assert mask(KEY) == "...cdef"
    assert mask("short-key") == "..."
    assert mask("") == "..."


def test_a_key_never_prints(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    for credential in (Literal(KEY), KeyFile(tmp_path / "key")):
        assert "0123456789" not in f"{credential} {credential!r}"
        assert credential.reveal() == KEY


@pytest.mark.parametrize("secret", ["", " \n", "a\nb", "a\u00e9", "a\0"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(CredentialError) as caught:
        Literal(KEY + secret if secret.strip() else secret)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("written", [f"Bearer {KEY}", f"bearer\t{KEY}", f" BEARER  {KEY}\n"])
def test_a_key_is_written_without_bearer(tmp_path: Path, written: str) -> None:
    (tmp_path / "key").write_text(written)
    for get in (lambda: Literal(written), KeyFile(tmp_path / "key").reveal):
        with pytest.raises(CredentialError, match="write the key alone, without Bearer") as caught:
            get()
        assert "0123456789" not in str(caught.value)


def test_a_key_may_begin_like_bearer() -> None:
    assert Literal("bearer-0123").reveal() == "bearer-0123"


def test_the_line_break_at_the_end_of_a_key_file_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert KeyFile(tmp_path / "key").reveal() == KEY


def test_a_key_file_follows_the_symlink_swap_of_a_mounted_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_RECHECK", 0.0)
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text(f"key-{version}")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "key").symlink_to("..data/key")
    key = KeyFile(tmp_path / "key")
    assert key.reveal() == "key-1"
    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert key.reveal() == "key-2"


def test_a_key_file_may_lead_where_it_stands_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted secret's symlinks stay in its folder; another must not lead out of it, or later."""
    monkeypatch.setattr(credentials, "_RECHECK", 0.0)
    account = tmp_path / "account"
    monkeypatch.setattr(credentials, "_SERVICE_ACCOUNT", account)
    folder = tmp_path / "keys"
    (folder / "..1").mkdir(parents=True)
    (folder / "..1" / "key").write_text(KEY)
    (folder / "..data").symlink_to("..1")
    (folder / "key").symlink_to("..data/key")
    (tmp_path / "mount").symlink_to("keys")
    for path in (folder, tmp_path / "mount"):
        assert KeyFile(path / "key", Allowed((path,))).reveal() == KEY

    key = KeyFile(folder / "key", Allowed((folder,)))
    assert key.reveal() == KEY
    account.mkdir()
    (account / "token").write_text("eyJ.token")
    (folder / "key").unlink()
    (folder / "key").symlink_to(account / "token")
    for allowed in ((folder,), (folder, account), (tmp_path,)):
        with pytest.raises(KeyFileUnavailableError, match=r"leads elsewhere: objects may"):
            KeyFile(folder / "key", Allowed(allowed)).reveal()
    with pytest.raises(KeyFileUnavailableError, match="leads elsewhere"):
        key.reveal()


def test_a_key_file_is_not_looked_at_for_every_request(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("one")
    key = KeyFile(tmp_path / "key")
    assert key.reveal() == "one"
    (tmp_path / "key").write_text("another")
    assert key.reveal() == "one"


def test_a_key_file_that_vanishes_is_told_when_the_key_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_RECHECK", 0.0)
    (tmp_path / "key").write_text("one")
    key = KeyFile(tmp_path / "key")
    assert key.reveal() == "one"
    (tmp_path / "key").unlink()
    with pytest.raises(CredentialError, match="check that it is mounted"):
        key.reveal()


def test_a_key_file_that_is_missing_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="can't be read"):
        KeyFile(tmp_path / "missing").reveal()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(CredentialError, match="it is not text"):
        KeyFile(tmp_path / "binary").reveal()
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(CredentialError, match="is not a file"):
            KeyFile(tmp_path / name).reveal()
