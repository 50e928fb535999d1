"""Where the things that belong to Pointsman are, in a checkout and in an installed package."""

from pathlib import Path

DEFAULT_RULES = Path("rules")

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def addon_script() -> Path:
    """Return the file that mitmproxy's `-s` takes.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    return _first(_PACKAGE / "script" / "main.py", _PACKAGE.parent / "main.py")


def default_rules() -> Path:
    """Return the rules that run by default.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    return _first(_PACKAGE / "default_rules", _CHECKOUT / "rules")


def rules_path(named: Path) -> Path:
    """Return where the rules are that `rules` or another path names.

    The default, `rules`, is in the working directory, or else what runs by default.
    """
    if named != DEFAULT_RULES or named.exists():
        return named
    try:
        return default_rules()
    except FileNotFoundError:
        return named


def example_rules(name: str) -> Path:
    """Return the directory of one of the examples.

    Raises:
        FileNotFoundError: there is no such example.
    """
    return _first(default_rules() / "examples" / name)


# A wheel's own place comes first: what stands beside an installed package is other people's.
def _first(*candidates: Path) -> Path:
    for candidate in candidates:
        if candidate.exists():
            return candidate
    tried = " and ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"not found: {tried}")
