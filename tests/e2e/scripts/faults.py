"""Puts a fault into Pointsman where the header `x-fault` of a request wants one."""

from collections.abc import Callable
from typing import Any

from pointsman.proxy import routed
from pointsman.proxy.answer import Answer
from pointsman.proxy.routed import RoutedRequest
from pointsman.proxy.router import Router
from pointsman.proxy.streams import Stream


def _wanted(*arguments: Any) -> set[str]:
    """Find the header in whatever a function is called with."""
    found = set()
    for argument in arguments:
        flow = getattr(argument, "flow", None)
        if flow is not None:
            found.add(flow.request.headers.get("x-fault", ""))
        headers = getattr(argument, "header_values", None)
        if headers is not None:
            found.add(headers.get("x-fault", ""))
    return found


def _fails(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **named: Any) -> Any:
        if name in _wanted(*arguments):
            raise ZeroDivisionError(f"a fault in {name}")
        return function(*arguments, **named)

    return wrapper


def _patch(owner: Any, name: str) -> None:
    setattr(owner, name, _fails(name, getattr(owner, name)))


_patch(Router, "decide")
_patch(routed, "rewrite")
for _name in ("begin_call", "_begin_call", "wire_request", "begin_answer", "close", "_show"):
    _patch(RoutedRequest, _name)
for _name in ("_send_request", "_request_complete", "start_response_stream", "send_response"):
    _patch(Stream, _name)

_feed = Answer.feed


def _feed_or_fail(self: Answer, chunk: bytes) -> bytes:
    if b"make the reader fail" in chunk:
        raise ZeroDivisionError("a fault in feed")
    return _feed(self, chunk)


Answer.feed = _feed_or_fail  # type: ignore[method-assign]
