"""As much of the Common Expression Language as our definitions use, to try their rules.

An API server evaluates them; there is none in the tests.
"""

import re
from typing import Any

_TOKEN = re.compile(r"\s*(?:(\d+)|'([^']*)'|([A-Za-z_]\w*)|(\|\||&&|==|!=|<=|>=|[^\s]))")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_COMPARE = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


def holds(rule: str, value: Any) -> bool:
    """Tell whether a rule holds for the value that it calls `self`."""
    result = _Evaluation(_TOKEN.findall(rule), {"self": value}).whole()
    assert isinstance(result, bool), rule
    return result


class _Evaluation:
    """Evaluates while it parses. What is not taken is parsed all the same, with errors ignored."""

    def __init__(self, tokens: list[tuple[str, str, str, str]], names: dict[str, Any]) -> None:
        self._tokens = tokens
        self._names = names
        self._at = 0
        self._taken = True

    def whole(self) -> Any:
        value = self._ternary()
        assert self._at == len(self._tokens), self._tokens[self._at :]
        return value

    def _next(self, *signs: str) -> str:
        """Take the next token if it is one of these signs."""
        if self._at < len(self._tokens) and self._tokens[self._at][3] in signs:
            self._at += 1
            return self._tokens[self._at - 1][3]
        return ""

    def _need(self, sign: str) -> None:
        assert self._next(sign), (sign, self._tokens[self._at :])

    def _skipping(self, parse: Any, *, unless: bool) -> Any:
        """Parse; what is not wanted may lead nowhere."""
        before, self._taken = self._taken, self._taken and unless
        value = parse()
        self._taken = before
        return value

    def _ternary(self) -> Any:
        test = self._either()
        if not self._next("?"):
            return test
        yes = self._skipping(self._ternary, unless=bool(test))
        self._need(":")
        no = self._skipping(self._ternary, unless=not test)
        return yes if test else no

    def _either(self) -> Any:
        value = self._both()
        while self._next("||"):
            other = self._skipping(self._both, unless=not value)
            value = value or other
        return value

    def _both(self) -> Any:
        value = self._comparison()
        while self._next("&&"):
            other = self._skipping(self._comparison, unless=bool(value))
            value = value and other
        return value

    def _comparison(self) -> Any:
        value = self._unary()
        if sign := self._next(*_COMPARE):
            other = self._unary()
            return _COMPARE[sign](value, other) if self._taken else None
        return value

    def _unary(self) -> Any:
        if self._next("!"):
            return not self._unary()
        value = self._primary()
        while sign := self._next(".", "["):
            value = self._index(value) if sign == "[" else self._member(value)
        return value

    def _index(self, value: Any) -> Any:
        index = self._ternary()
        self._need("]")
        return value[index] if self._taken else None

    def _member(self, value: Any) -> Any:
        name = self._word()
        if not self._next("("):
            return value[name] if self._taken else None
        if name == "size":
            self._need(")")
            return len(value) if self._taken else None
        variable = self._word()
        self._need(",")
        start, results = self._at, []
        for element in value if self._taken and value else [None]:
            self._at = start
            self._names[variable] = element
            wanted = bool(self._taken and value)
            results.append(self._skipping(self._ternary, unless=wanted) if wanted else None)
            if not wanted:
                self._skipping(self._ternary, unless=False)
        self._need(")")
        count = sum(map(bool, results))
        all_ = not value or count == len(results)
        return {"all": all_, "exists": count > 0, "exists_one": count == 1}[name]

    def _word(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1][2]

    def _primary(self) -> Any:
        if self._next("("):
            value = self._ternary()
            self._need(")")
            return value
        if self._next("["):
            values = [self._ternary()]
            while self._next(","):
                values.append(self._ternary())
            self._need("]")
            return values
        return self._word_or_value()

    def _word_or_value(self) -> Any:
        number, text, name, sign = self._tokens[self._at]
        self._at += 1
        assert not sign, sign
        match name:
            case "":
                return int(number) if number else text
            case "has":
                return self._has()
            case "duration":
                self._need("(")
                written = self._ternary()
                self._need(")")
                parts = _DURATION.findall(written or "")
                return sum(float(n) * _UNITS[unit] for n, unit in parts)
            case _:
                return self._names[name]

    def _has(self) -> bool:
        self._need("(")
        value = self._names[self._word()]
        path = []
        while sign := self._next(".", "["):
            path.append(self._word() if sign == "." else self._position())
        self._need(")")
        for part in path[:-1]:
            value = value[part] if self._taken else None
        return bool(self._taken) and path[-1] in value

    def _position(self) -> int:
        self._at += 1
        self._need("]")
        return int(self._tokens[self._at - 2][0])
