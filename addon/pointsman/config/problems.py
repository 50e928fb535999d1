"""What is wrong with a manifest, where it stands, and how to mend it.

A problem is printed on one line: `rules/a.yaml:12: LLMProvider/qwen: spec.path: …`. No value of
the manifest that could be a key is ever part of it.
"""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

type Location = tuple[str | int, ...]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
_MOST_SHOWN = 48
_LONGEST_WORD = 20
_WORD = re.compile(r"[A-Za-z0-9_+=-]+")
# How keys of well-known providers begin, and what stands before one in a header.
_KEY = re.compile(r"(?i)\b(sk|pk|rk|gsk|xai|hf|ghp|glpat|akia|aiza|eyj|bearer|basic)([-_ .]|\w{8})")
# Names may begin so, but for those of which only keys do.
_KEY_AS_NAME = re.compile(r"(?i)(sk|pk|rk|gsk|ghp|glpat|akia|aiza|eyj)([-_.]|\w{8})")
_PART_OF_NAME = re.compile(r"[A-Za-z0-9+=]+")
_DIGIT_AND_LETTER = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])")
_LONG_ENOUGH_FOR_A_KEY = 12


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: as the caller named it, so that an editor can open it; of an object in a cluster
            `kind namespace/name`.
        line: from 1; None where the file as a whole is meant, and in a cluster.
        resource: kind and name, such as `LLMProvider/dashscope-qwen`.
        field: the path of the field, such as `spec.rules[1].backendRefs[0].weight`.
        message: what is wrong and what to write instead.
    """

    file: str
    line: int | None
    resource: str | None
    field: str | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        parts = (place, self.resource, self.field, self.message)
        return _printable(": ".join(part for part in parts if part))


class LoadError(Exception):
    """The rules can't be used. Nothing of them has become live.

    Attributes:
        problems: all of them, in the order of the files and their lines.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = f"{count} error{'s' if count != 1 else ''} in the rules:"
        super().__init__("\n".join([title, *map(str, self.problems)]))


def field_path(location: Location) -> str | None:
    """Write a location as a reader does: `spec.rules[1].matches[0].headers.user-type`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN_NAME.match(part) and not may_be_a_key(part):
            path += f".{part}" if path else part
        else:
            path += f"[{json.dumps(shown_field(part), ensure_ascii=False)}]"
    return path or None


def shown_name(name: str) -> str:
    """Return a name as a message may repeat it.

    In `{apiKey:sk-1}` the space after the colon is missing, and YAML takes all of it for a name.
    """
    before, colon, _ = name.partition(":")
    return f"{before}:…" if colon else name


def shown_field(name: str) -> str:
    """Return the name of a field, or of a header, as people may see it: `…` if it may be a key."""
    return "…" if may_be_a_key(name) else shown_name(name)


def may_be_a_key(name: str) -> bool:
    """Tell whether someone may have written a key where a name belongs: of a field, a header.

    A name may be long, but is made of words.
    """
    parts = _PART_OF_NAME.findall(name)
    return bool(_KEY_AS_NAME.match(name)) or any(map(_like_a_key, parts))


def shown_value(value: object) -> str:
    """Return a value as a message may repeat it; `this` for one that might be a key."""
    if not isinstance(value, str | int | float):
        return "this"
    text = str(value)
    if len(text) > _MOST_SHOWN or _KEY.search(text) or any(map(_like_a_key, _WORD.findall(text))):
        return "this"
    return repr(value)


def _like_a_key(word: str) -> bool:
    if len(word) > _LONGEST_WORD:
        return True
    return len(word) >= _LONG_ENOUGH_FOR_A_KEY and bool(_DIGIT_AND_LETTER.match(word))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "model"?`, or nothing when no known name is near."""
    by_folded = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_folded, n=1, cutoff=0.6)
    return f'; did you mean "{by_folded[near[0]]}"?' if near else ""


def _printable(text: str) -> str:
    """Keep a message on its one line, whatever names a manifest holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
