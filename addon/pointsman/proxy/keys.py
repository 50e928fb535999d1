"""Which targets have no key now. It imports no mitmproxy.

A key file may be missing at the start, or vanish later. Its targets are not called until it is
there. That is told in the log once, and again when the reason is another, with the path and the
mend; the clients and the readiness get the provider's name alone.

A key of rules from the cluster that was never here may be another proxy's: those rules have many
owners, and no one's provider may make all proxies unready.
"""

import logging
from collections.abc import Sequence

from pointsman.config.credentials import Awaited, Credential, CredentialError, KeyFile
from pointsman.config.table import Route, RoutingTable, Rule, Target
from pointsman.errors import KeyMissingError

logger = logging.getLogger(__name__)


class Keys:
    """What is known of the keys of the live table."""

    def __init__(self) -> None:
        self._missing: dict[Credential, str] = {}  # and why, as it was told

    def available(self, target: Target) -> bool:
        """Tell whether the target can be called: it has its key, or needs none."""
        credential = _credential(target)
        if credential is None:
            return True
        try:
            credential.reveal()
        except CredentialError as error:
            self.tell(target, error)
            return False
        if credential in self._missing:
            del self._missing[credential]
            logger.warning(
                "the key of the provider %s is back: it is called again", target.provider
            )
        return True

    def tell(self, target: Target, error: CredentialError) -> None:
        """Log that a key is missing: when it has gone, and when the reason is another."""
        credential = _credential(target)
        if credential is not None and self._missing.get(credential) != str(error):
            self._missing[credential] = str(error)
            expected = _is_expected(target)
            logger.log(
                logging.ERROR if expected else logging.WARNING,
                "the provider %s is not called until its key is %s: %s",
                target.provider,
                "back" if expected else "there",
                error,
            )

    def forget(self) -> None:
        """Start anew: other rules are live."""
        self._missing.clear()

    def look(self, table: RoutingTable) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return why requests can't be served, and what else is amiss, in words without paths.

        A key that has gone is a reason where a rule has no other provider left. The route that a
        provider has by itself counts only where no written route leads to that provider. A rule
        that only observes needs no key.
        """
        every = list(table.rules())
        rules = [(route, rule) for route, rule in every if not rule.observe]
        written = {t.provider for route, rule in rules if route.name for t in rule.targets}
        reasons: dict[str, None] = {}
        missing: dict[str, bool] = {}  # by provider, whether a reason tells of it
        for route, rule in rules:
            targets = [target for target in rule.targets if target.weight > 0]
            keyless = [target for target in targets if not self.available(target)]
            own = route.name is None and all(target.provider in written for target in targets)
            dead = len(keyless) == len(targets) and not own and any(map(_is_expected, keyless))
            names = [target.provider for target in keyless]
            if dead:
                reasons[f"{_no_key(names)}; {_place(route, rule)} has no other"] = None
            for name in names:
                missing[name] = dead or missing.get(name, False)
        others = tuple(_no_key([name]) for name, told in missing.items() if not told)
        return tuple(reasons), others


def no_key(rule: str, providers: Sequence[str]) -> KeyMissingError:
    """Return what the client of a rule without any key is told."""
    several = len(providers) > 1
    names = ", ".join(dict.fromkeys(providers))
    error = KeyMissingError(
        f"The keys of the providers {names} are missing."
        if several
        else f"The key of the provider {names} is missing."
    )
    error.rule, error.provider = rule, providers[0]
    return error


def _credential(target: Target) -> Credential | None:
    return target.config.credential if target.config else None


def _is_expected(target: Target) -> bool:
    """Tell whether a key should be here, and not be another proxy's alone."""
    credential = _credential(target)
    if isinstance(credential, KeyFile):
        return credential.is_expected
    return not isinstance(credential, Awaited)


def _no_key(providers: Sequence[str]) -> str:
    names = ", ".join(dict.fromkeys(providers))
    return f"no key for the provider{'s' if len(providers) > 1 else ''} {names}"


def _place(route: Route, rule: Rule) -> str:
    return f"the rule {rule.name} of {route.host}" if route.name else route.host
