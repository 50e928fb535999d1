"""Sets of host names by exact name and by wildcard, and the set of the known LLM hosts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Self

from pointsman.config.resources import host_name, normalise_host

_SEPARATORS = re.compile(r"[,\s]+")


@dataclass(frozen=True, slots=True)
class Hosts:
    """Host names. False where there are none."""

    exact: frozenset[str] = frozenset()
    wildcards: re.Pattern[str] | None = None

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """Return the set of these names, in their normal form.

        A leading `*.` stands for one label or more, any other `*` for a part of one label.
        """
        names = frozenset(names)
        wildcards = sorted(name for name in names if "*" in name)
        pattern = re.compile("|".join(map(_expression, wildcards))) if wildcards else None
        return cls(names.difference(wildcards), pattern)

    def __bool__(self) -> bool:
        return bool(self.exact) or self.wildcards is not None

    def __contains__(self, host: str | None) -> bool:
        """Tell whether a host name (any case, no port) is among them."""
        if not host:
            return False
        host = normalise_host(host)
        found = self.wildcards is not None and self.wildcards.fullmatch(host) is not None
        return found or host in self.exact


NO_HOSTS = Hosts()


def _expression(wildcard: str) -> str:
    leading = r"[^.]+(?:\.[^.]+)*\." if wildcard.startswith("*.") else ""
    rest = wildcard.removeprefix("*.")
    return leading + r"[^.]+".join(map(re.escape, rest.split("*")))


def parse_hosts(values: Iterable[str]) -> Hosts:
    """Return the set that a person has written: names and `*.suffix`; commas may part them.

    Raises:
        ValueError: one is no host name; says what to write.
    """
    written = (name for value in values for name in _SEPARATORS.split(value) if name)
    return Hosts.of(
        f"*.{host_name(name[2:])}" if name.startswith("*.") else host_name(name) for name in written
    )


@cache
def known_llm_hosts() -> Hosts:
    """Return the hosts of LLM providers that the package knows: `known_hosts.txt` beside this."""
    return Hosts.of(known_names())


def known_names() -> list[str]:
    """Return the names in that file, in its order."""
    text = files("pointsman.config").joinpath("known_hosts.txt").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
