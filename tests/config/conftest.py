"""What the tests of the configuration share: rules written to a folder, and loaded from there."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pointsman.config.loading import Instance, Later, Loaded, LoadError, Problem, load

type Load = Callable[..., Loaded]
type Fail = Callable[..., tuple[Problem, ...]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder `rules`, named relative to where the test runs."""
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    return Path("rules")


@pytest.fixture
def rules(folder: Path) -> Load:
    """Load documents (written to rules/a.yaml) or files ({name: text})."""

    def load_rules(
        *texts: str,
        files: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        instance: Instance | None = None,
        later: Later = Later.NOTHING,
    ) -> Loaded:
        joined = "---\n".join(text.removesuffix("\n") + "\n" for text in texts)
        for name, text in (files or {"a.yaml": joined}).items():
            (folder / name).write_text(text, encoding="utf-8")
        return load(folder, instance=instance or Instance(), environ=environ or {}, later=later)

    return load_rules


@pytest.fixture
def problems(rules: Load) -> Fail:
    """Load rules that are at fault, and return all that is wrong with them."""

    def load_bad_rules(*texts: str, **options: object) -> tuple[Problem, ...]:
        with pytest.raises(LoadError) as caught:
            rules(*texts, **options)
        return caught.value.problems

    return load_bad_rules
