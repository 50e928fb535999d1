"""How a provider is called: its configs with keys, headers and certificates resolved.

This is what touches the environment and the file system, and so it happens only for providers
that apply to this workload: elsewhere their variables and secrets need not exist.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any

from pointsman.config.credentials import (
    Allowed,
    Awaited,
    Credential,
    KeyFile,
    KeyFileUnavailableError,
    KeyUnavailableError,
    Literal,
    environment_value,
    expand,
)
from pointsman.config.documents import Document
from pointsman.config.files import reason
from pointsman.config.problems import Location, Problem
from pointsman.config.references import Manifest
from pointsman.config.resources import (
    LLMProvider,
    LLMProviderSpec,
    OpenAIConfig,
    ProviderConfig,
    Tls,
    header_value,
)
from pointsman.config.table import CallConfig, TlsSettings

_AUTHORIZATION = "authorization"


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider that applies to this workload, with everything it needs at hand."""

    name: str
    spec: LLMProviderSpec
    tls: TlsSettings
    default: "_Call | None"
    own: Mapping[str, "_Call"] = field(default_factory=dict)

    def config_for(self, rule: str | None) -> tuple[str | None, CallConfig | None]:
        """Return the union's member and the config for requests that came by a rule."""
        own = self.own.get(rule) if rule is not None else None
        if own is None:
            found = self.default
        elif self.default is None or self.default.member != own.member:
            found = own
        else:
            found = _Call(own.member, _merged(self.default.config, own.config))
        return (found.member, found.config) if found else (None, None)


@dataclass(frozen=True, slots=True)
class _Call:
    """A config, and which member of the union it is."""

    member: str
    config: CallConfig


class Later(Enum):
    """What need not be there when the rules are loaded: each request asks again, or fails without.

    The value is what is raised for it.
    """

    NOTHING = ()
    """For who tries rules: all that is missing is told as a problem."""
    KEY_FILES = (KeyFileUnavailableError,)
    """For a proxy: one provider's missing key must not keep it, and the pod, from starting."""
    ALL = (KeyUnavailableError,)
    """For manifests that are shared with others, who may have the variables and certificates."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A provider with its configs resolved. With problems it is not to be used.

    `missing` is what could not be had here, and may come `Later`.
    """

    provider: Provider
    problems: list[Problem]
    missing: list[Problem]


def resolve(
    manifest: Manifest[LLMProvider],
    environ: Mapping[str, str],
    *,
    without_keys: bool = False,
    later: Later = Later.NOTHING,
    allowed: Allowed | None = None,
) -> Resolved:
    """Resolve all configs of a provider.

    `without_keys` does without the files that the provider names; for variables that need not be
    set give an environment that has them all (`AnyEnvironment`). `allowed` bounds which files the
    provider may name; for variables give an `AllowedEnvironment`.
    """
    resolver = _Resolver(
        manifest.document, environ, without_keys=without_keys, later=later, allowed=allowed
    )
    spec = manifest.resource.spec
    default, own = None, {}
    if spec.configs:
        base = ("spec", "configs")
        default = resolver.call(spec.configs.default_config, (*base, "defaultConfig"))
        for name, config in spec.configs.route_specific_configs.items():
            if call := resolver.call(config, (*base, "routeSpecificConfigs", name)):
                own[name] = call
    tls = resolver.tls(spec.tls)
    provider = Provider(manifest.resource.metadata.name, spec, tls, default, own)
    return Resolved(provider, resolver.problems, resolver.missing)


def key_faults(document: Document, environ: Mapping[str, str]) -> list[Problem]:
    """Find keys that can't be had in a provider that is faulty elsewhere, so that all is told.

    Where the document names a workload it is left alone: the variable may belong elsewhere.
    """
    if document.at("spec", "workloadSelector") is not None:
        return []
    own = document.at("spec", "configs", "routeSpecificConfigs")
    names = own if isinstance(own, dict) else {}
    configs: list[Location] = [("defaultConfig",), *(("routeSpecificConfigs", n) for n in names)]
    resolver = _Resolver(document, environ)
    for config in configs:
        location = ("spec", "configs", *config, "openAIConfig")
        key, source = document.text(*location, "apiKey"), document.at(*location, "apiKeyFrom")
        name = document.text(*location, "apiKeyFrom", "env")
        if key and source is None:
            resolver.attempt((*location, "apiKey"), partial(expand, key, environ))
        elif name and not key and len(source) == 1:
            place = (*location, "apiKeyFrom", "env")
            resolver.attempt(place, partial(environment_value, name, environ))
    return resolver.problems


def _merged(default: CallConfig, own: CallConfig) -> CallConfig:
    """Merge field by field, mappings key by key; what the rule's own config sets wins.

    A key and an authorization header are one thing here: the rule's own replaces the other.
    """
    inherited = dict(default.headers)
    credential = own.credential or default.credential
    if own.credential:
        inherited.pop(_AUTHORIZATION, None)
    elif _AUTHORIZATION in own.headers:
        credential = None
    return CallConfig(
        model=default.model if own.model is None else own.model,
        stream=default.stream if own.stream is None else own.stream,
        credential=credential,
        model_mapping={**default.model_mapping, **own.model_mapping},
        headers=inherited | dict(own.headers),
        params_set={**default.params_set, **own.params_set},
        params_default={**default.params_default, **own.params_default},
    )


NO_KEY = "no-key"


class AnyEnvironment(dict[str, str]):
    """An environment in which every variable is set, for looking at rules where no keys are."""

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 (as of any mapping)
        """Return a variable's own value, or one that is no key."""
        return super().get(name) or NO_KEY

    def __contains__(self, name: object) -> bool:
        return True


class AllowedEnvironment(dict[str, str]):
    """An environment of which no variable can be named but those that are allowed."""

    def __init__(self, environ: Mapping[str, str], allowed: Allowed) -> None:
        super().__init__(environ)
        self._allowed = allowed

    def get(self, name: str, default: Any = None) -> Any:
        """Return a variable's value. Raises CredentialError for one that is not allowed."""
        self._allowed.check_variable(name)
        return super().get(name, default)


class _Resolver:
    """Resolves what one document refers to outside of it, and collects what can't be had."""

    def __init__(
        self,
        document: Document,
        environ: Mapping[str, str],
        *,
        without_keys: bool = False,
        later: Later = Later.NOTHING,
        allowed: Allowed | None = None,
    ) -> None:
        self.problems: list[Problem] = []
        self.missing: list[Problem] = []
        self._without_keys = without_keys
        self._later = later
        self._allowed = allowed
        self._document = document
        self._environ = environ

    def call(self, union: ProviderConfig | None, location: Location) -> _Call | None:
        """Resolve the one member of a provider config."""
        for name, info in ProviderConfig.model_fields.items():
            config = getattr(union, name, None)
            if isinstance(config, OpenAIConfig):
                member = info.alias or name
                return _Call(member, self._config(config, (*location, member)))
        return None

    def tls(self, tls: Tls | None) -> TlsSettings:
        """Resolve the path of the certificates and see that they can be used."""
        if tls is None:
            return TlsSettings()
        ca_file = None
        if tls.ca_file is not None:
            ca_file = str(self._document.folder / tls.ca_file)
            if not self._without_keys and (fault := certificate_fault(ca_file)):
                location = ("spec", "tls", "caFile")
                # Without it no connection to the provider is trusted; nothing passes unverified.
                found = self.missing if self._later is Later.ALL else self.problems
                found.append(self._document.problem(location, fault))
        return TlsSettings(ca_file, tls.sni, verify=not tls.insecure_skip_verify)

    def _config(self, config: OpenAIConfig, location: Location) -> CallConfig:
        credential = self._credential(config, location)
        headers = {}
        for name, text in config.headers.items():
            get = partial(self._value, text)
            missing = len(self.missing)
            headers[name] = self.attempt((*location, "headers", name), get) or ""
            if len(self.missing) > missing:
                # What stands for the key fails the call, and says why: no header may be left out.
                credential = Awaited(lambda get=get: Literal(get()))  # type: ignore[misc]
        return CallConfig(
            model=config.model,
            stream=config.stream,
            credential=credential,
            model_mapping=config.model_mapping,
            headers=headers,
            params_set=config.params.set,
            params_default=config.params.default,
        )

    def _credential(self, config: OpenAIConfig, location: Location) -> Credential | None:
        key, source, environ = config.api_key, config.api_key_from, self._environ
        if key is not None:
            return self._literal((*location, "apiKey"), partial(expand, key, environ))
        if source and source.env is not None:
            get = partial(environment_value, source.env, environ)
            return self._literal((*location, "apiKeyFrom", "env"), get)
        if source and source.file is not None:
            return self._key_file((*location, "apiKeyFrom", "file"), source.file)
        return None

    def _literal(self, location: Location, get: Callable[[], str]) -> Credential | None:
        missing = len(self.missing)
        credential = self.attempt(location, lambda: Literal(get()))
        return Awaited(lambda: Literal(get())) if len(self.missing) > missing else credential

    def _key_file(self, location: Location, path: str) -> Credential | None:
        if self._without_keys:
            return Literal(NO_KEY)
        file = self.attempt(location, lambda: KeyFile(self._document.folder / path, self._allowed))
        if file is not None:
            self.attempt(location, file.reveal)
        return file

    def _value(self, text: str) -> str:
        return header_value(expand(text, self._environ).strip())

    def attempt[T](self, location: Location, get: Callable[[], T]) -> T | None:
        """Return what `get` does, or note the problem that it raises."""
        try:
            return get()
        except ValueError as error:
            if isinstance(error, self._later.value):
                message = f"{error}; the provider is not called without it"
                self.missing.append(self._document.problem(location, message))
            else:
                self.problems.append(self._document.problem(location, str(error)))
            return None


def certificate_fault(ca_file: str) -> str | None:
    """Return why a file does not tell whom to trust; None where it does."""
    try:
        if not S_ISREG(Path(ca_file).stat().st_mode):  # opening a pipe would wait for its writer
            return f"{ca_file} is not a file; give the certificates' own"
        with Path(ca_file).open("rb"):
            pass
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca_file)
    except ssl.SSLError:
        return f"{ca_file} has no certificate that can be used; it must be PEM"
    except (OSError, ValueError) as error:
        return f"{ca_file} can't be read ({reason(error)}); check that it is mounted and readable"
    return None
