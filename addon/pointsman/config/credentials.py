"""Keys: from a literal, the environment or a file, in a wrapper that never prints them.

`${NAME}` stands for an environment variable. A file is read again when it changes, by a symlink
swap too, which is how mounted Kubernetes secrets rotate.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

from pointsman.config.problems import may_be_a_key

_PLACEHOLDER = re.compile(r"\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DIGIT = re.compile(r"\d")
_CODED = re.compile(r"(?=[A-Za-z]*[0-9])[A-Za-z0-9]{12}")  # no word
# What someone writes who leaves a place for the key, as `${dashscope API_KEY}` does.
_SPEAKS_OF_A_KEY = re.compile(r"(?i)(?<![a-z])(api[ _-]?key|key|token|secret)(?![a-z])")
_BEARER = re.compile(r"bearer(\s|\Z)", re.IGNORECASE)
_SHOWN = 4
_LONG_ENOUGH_TO_SHOW = 12
# How long a key file's identity is trusted before it is looked at again, in seconds.
_RECHECK = 1.0
# No key is larger; a path that leads to something else must not fill the memory.
_MAX_KEY_FILE = 64 * 1024
# Where `pointsman inject` mounts the Secret with the keys.
KEY_FOLDER = Path("/etc/pointsman/keys")
# How the variables of keys are named as a rule: not those of other secrets.
KEY_VARIABLES = "*_API_KEY"
# The proxy's own service account, as the kubelet mounts it; no key of a provider stands there.
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io")


# Headers that carry a key, in the APIs that we know.
CREDENTIAL_HEADERS = frozenset(
    {
        "api-key",
        "api_key",
        "authorization",
        "ocp-apim-subscription-key",  # Azure API Management
        "proxy-authorization",
        "x-amz-security-token",
        "x-api-key",
        "x-goog-api-key",
    }
)


class CredentialError(ValueError):
    """A key that can't be had: the message says which and how to mend it, never what it is."""


def mask(secret: str) -> str:
    """Show that there is a key, and enough of a long one to tell it from another.

    The dots are ASCII: masks stand in headers of flows, where mitmproxy shows other bytes escaped.
    """
    return f"...{secret[-_SHOWN:]}" if len(secret) >= _LONG_ENOUGH_TO_SHOW else "..."


class KeyUnavailableError(CredentialError):
    """A key that the manifest names well and that is not here: it may be elsewhere, or later."""


class KeyFileUnavailableError(KeyUnavailableError):
    """A key file that is not there, empty, or holds what can't be a key: it may be mended."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Where the objects of a cluster may take keys from.

    Who may write them is not always who runs the proxies, and decides where a key is sent to. So
    what else a proxy can read has to stay out of their reach.

    Attributes:
        folders: those with key files; files below them count, wherever symlinks within lead.
        variables: names of environment variables, with `*` for any part.
    """

    folders: tuple[Path, ...] = (KEY_FOLDER,)
    variables: tuple[str, ...] = (KEY_VARIABLES,)

    def check_variable(self, name: str) -> None:
        """Raise CredentialError unless objects may name the variable."""
        if not any(fnmatchcase(name, pattern) for pattern in self.variables):
            raise CredentialError(
                f"objects may name {_only('variables', self.variables)}; rename this one, or add it"
                " to llm_key_variables of the proxies"
            )

    def check_file(self, path: Path) -> None:
        """Raise CredentialError unless objects may name the file, by its path as it is written."""
        self._check(os.path.abspath(path), str)  # noqa: PTH100 (which keeps `..`)

    def check_target(self, path: Path) -> None:
        """Raise CredentialError unless objects may name the file that the path leads to now."""
        self._check(os.path.realpath(path), os.path.realpath)

    def _check(self, path: str, form: Callable[[Path], str]) -> None:
        found = Path(path)
        if found.is_relative_to(form(_SERVICE_ACCOUNT)):
            raise CredentialError(
                "objects may not name the files of a service account; name the key's own"
            )
        if not any(found.is_relative_to(form(folder)) for folder in self.folders):
            raise CredentialError(
                f"objects may name {_only('files in', map(str, self.folders))}; mount the key"
                " there, or add its folder to llm_key_dirs of the proxies"
            )


def _only(what: str, names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"only {what} {listed}" if listed else f"no {what.partition(' ')[0]}"


class Credential(Protocol):
    """Something that gives a key when a request leaves."""

    def reveal(self) -> str:
        """Return the key. Raises CredentialError when it can't be had (any more)."""


class Literal:
    """A key that is known when the rules are loaded."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        self._secret = _clean(secret, "the key")

    def reveal(self) -> str:
        """Return the key."""
        return self._secret

    def __repr__(self) -> str:
        return f"Literal({mask(self._secret)})"


class Awaited:
    """A key that could not be had when the rules were loaded: each request asks again."""

    __slots__ = ("_get",)

    def __init__(self, get: Callable[[], Credential]) -> None:
        self._get = get

    def reveal(self) -> str:
        """Return the key. Raises CredentialError as long as it can't be had."""
        return self._get().reveal()

    def __repr__(self) -> str:
        return "Awaited()"


class KeyFile:
    """A key in a file, read when it is first wanted, and again when the file changes."""

    __slots__ = ("_allowed", "_checked", "_identity", "_path", "_secret", "_was_here")

    def __init__(self, path: Path, allowed: Allowed | None = None) -> None:
        """Say where it is, and where it has to be.

        Raises:
            CredentialError: it is elsewhere.
        """
        if allowed is not None:
            allowed.check_file(path)
        self._path = path
        self._allowed = allowed
        self._checked = float("-inf")
        self._identity: tuple[int, ...] = ()
        self._secret = ""
        self._was_here = False

    @property
    def is_expected(self) -> bool:
        """Whether this proxy should have it: a shared one may be for others, until it was here."""
        return self._was_here or self._allowed is None

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    def reveal(self) -> str:
        """Return the key as the file has it, at most one second late.

        Raises:
            KeyFileUnavailableError: it has none that can be used.
        """
        now = time.monotonic()
        if now - self._checked >= _RECHECK:
            self._refresh()
            self._checked = now
        return self._secret

    def _refresh(self) -> None:
        self._check_target()
        try:
            stat = self._path.stat()
            if not S_ISREG(stat.st_mode):  # opening a pipe would wait for its writer
                raise KeyFileUnavailableError(f"{self._named} is not a file; give the key's own")
            # The time of change too: a copy that keeps its times may be as long as the old key.
            times = (stat.st_mtime_ns, stat.st_ctime_ns)
            identity = (stat.st_dev, stat.st_ino, *times, stat.st_size)
            if identity == self._identity:
                return
            with self._path.open(encoding="utf-8") as file:
                text = file.read(_MAX_KEY_FILE + 1)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise KeyFileUnavailableError(
                f"{self._named} can't be read ({reason}); check that it is mounted and readable by"
                " the proxy's user"
            ) from None
        self._secret = self._key(text)
        self._identity = identity
        self._was_here = True

    def _check_target(self) -> None:
        try:
            if self._allowed is not None:
                self._allowed.check_target(self._path)
        except CredentialError as error:
            raise KeyFileUnavailableError(f"{self._named} leads elsewhere: {error}") from None

    def _key(self, text: str) -> str:
        if len(text) > _MAX_KEY_FILE:
            raise KeyFileUnavailableError(
                f"{self._named} is larger than 64 KiB; give the key's own"
            )
        try:
            return _clean(text, self._named)
        except CredentialError as error:
            raise KeyFileUnavailableError(str(error)) from None

    @property
    def _named(self) -> str:
        return f"the key file {self._path}"

    def __repr__(self) -> str:
        return f"KeyFile({self._path})"


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Replace each `${NAME}` by that environment variable.

    Raises:
        CredentialError: a placeholder that is not closed or can't be a variable name, or a variable
            that is not set.
    """

    def value(match: re.Match[str]) -> str:
        name, closing = match.groups()
        if not closing:
            raise CredentialError(_unclosed(name))
        if not _VARIABLE.match(name):
            shown = name if _SPEAKS_OF_A_KEY.search(name) and not may_be_a_key(name) else "…"
            suggestion = re.sub(r"\W+", "_", shown).strip("_").upper() or "API_KEY"
            raise CredentialError(
                f"${{{shown}}} is a placeholder, not a variable's name; put the key into an"
                f" environment variable and write ${{{suggestion}}}, or use apiKeyFrom"
            )
        return environment_value(name, environ)

    return _PLACEHOLDER.sub(value, text)


def environment_value(name: str, environ: Mapping[str, str]) -> str:
    """Return an environment variable that must be set and not empty.

    Raises:
        CredentialError: it is not.
    """
    if _may_be_a_key(name):
        raise CredentialError(
            "a variable's name is wanted here, and this looks like a key itself; put the key into"
            " an environment variable and write that one's name"
        )
    if not (found := environ.get(name)):
        state = "empty" if name in environ else "not set"
        if not _is_surely_a_name(name):
            raise KeyUnavailableError(
                f"the environment variable that is named here is {state}; export it before the"
                " proxy starts, or put the key into one if this is the key itself"
            )
        raise KeyUnavailableError(
            f"the environment variable {name} is {state}; export it before the proxy starts"
        )
    return found


def _unclosed(rest: str) -> str:
    # What follows the brace may be anything, a key too: only a plain name is repeated.
    name = rest if _is_surely_a_name(rest) else ""
    return f"the placeholder ${{{name or '…'} is not closed; write ${{{name or 'NAME'}}}"


def _may_be_a_key(name: str) -> bool:
    """Tell whether someone may have written the key where its variable's name belongs.

    Names of variables are upper case or short.
    """
    return len(name) >= _LONG_ENOUGH_TO_SHOW and name != name.upper() and bool(_DIGIT.search(name))


def _is_surely_a_name(name: str) -> bool:
    """Tell whether a message may repeat what stands where a variable's name belongs."""
    if not _VARIABLE.match(name) or _CODED.search(name):
        return False
    return name == name.upper() or not may_be_a_key(name)


def _clean(secret: str, what: str) -> str:
    secret = secret.strip()
    if not secret:
        raise CredentialError(f"{what} is empty; put the key there")
    if _BEARER.match(secret):
        raise CredentialError(
            f"{what} begins with Bearer, which is put before it anyway; write the key alone,"
            " without Bearer"
        )
    # A line break inside would let the key end the header that carries it.
    if not (secret.isascii() and secret.isprintable()):
        raise CredentialError(
            f"{what} has characters that no HTTP header may carry; it must be one line of plain"
            " letters, digits and signs"
        )
    return secret
