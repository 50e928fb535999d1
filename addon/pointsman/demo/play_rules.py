"""The repository's example rules, as the demo runs them.

They are taken as they are but for one thing: where a provider is. Its host stays the public one;
`spec.address` and `spec.tls.caFile` lead to the demo's own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pointsman.demo.play_processes import StageError

type Examples = Callable[[str], Path]


@dataclass(frozen=True)
class RuleSet:
    """One of the examples; with `provider`, only the LLMProvider that has this host."""

    example: str
    provider: str | None = None


@dataclass(frozen=True)
class Written:
    """What a rule set consists of: `kind name` of each manifest, from which example."""

    example: str

    manifests: tuple[str, ...]
    providers: int
    routes: int

    @property
    def counts(self) -> tuple[str, str]:
        """Providers and routes as the proxy's log gives them."""
        return str(self.providers), str(self.routes)


class RulesFolder:
    """The directory that the proxy reads. `patch` is merged into each provider's `spec`.

    `written` is what is in it.
    """

    def __init__(self, path: Path, examples: Examples, patch: Mapping[str, Any]) -> None:
        self.path = path
        self._examples = examples
        self._patch = patch
        path.mkdir()
        self.written = Written("", (), 0, 0)

    def put(self, rules: RuleSet) -> Written:
        """Put a rule set in the place of the one before.

        Raises:
            StageError: there is no such example.
        """
        try:
            source = self._examples(rules.example)
        except FileNotFoundError as error:
            raise StageError(str(error)) from None
        files = {
            file.name: list(self._manifests(file, rules.provider))
            for file in sorted(source.iterdir())
            if file.suffix in {".yaml", ".yml"}
        }
        files = {name: manifests for name, manifests in files.items() if manifests}
        for name, manifests in files.items():
            # Written aside (the proxy skips names with a dot), so that no half file is ever read.
            aside = self.path / f".{name}"
            aside.write_text(yaml.safe_dump_all(manifests, sort_keys=False), encoding="utf-8")
        for name in files:
            (self.path / f".{name}").replace(self.path / name)
        for old in self.path.glob("*.y*ml"):
            if old.name not in files:
                old.unlink()
        ours = [
            f"{manifest['kind']} {manifest['metadata']['name']}"
            for documents in files.values()
            for manifest in documents
            if manifest["kind"] in {"LLMProvider", "LLMRoute"}
        ]
        providers = sum(name.startswith("LLMProvider") for name in ours)
        names = tuple(sorted(ours))
        self.written = Written(rules.example, names, providers, len(ours) - providers)
        return self.written

    def _manifests(self, file: Path, provider: str | None) -> Iterator[dict[str, Any]]:
        for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if not manifest:
                continue
            is_provider = manifest["kind"] == "LLMProvider"
            if provider and not (is_provider and manifest["spec"]["host"] == provider):
                continue
            if is_provider:
                manifest["spec"] |= self._patch
            yield manifest
