"""Sinks: each gets every exchange, and none costs another anything."""

import logging
from dataclasses import asdict, fields
from typing import Any

import msgspec
import pytest

from pointsman.telemetry.exchange import Attempt, DecisionRecord, Exchange, RuleVerdict
from pointsman.telemetry.live import Live
from pointsman.telemetry.sinks import Sinks


def exchange() -> Exchange:
    return Exchange("r", "a.test", "POST", "/", None, started=0.0)


def test_each_sink_gets_each_exchange() -> None:
    sinks, seen = Sinks(), list[tuple[str, str]]()
    sinks.put("first", lambda e: seen.append(("first", e.request_id)))
    sinks.put("second", lambda e: seen.append(("second", e.request_id)))
    sinks.emit(exchange())
    assert seen == [("first", "r"), ("second", "r")]


def test_a_sink_takes_the_place_of_its_namesake_and_can_be_removed() -> None:
    sinks, seen = Sinks(), list[str]()
    sinks.put("one", lambda _: seen.append("old"))
    sinks.put("one", lambda _: seen.append("new"))
    sinks.emit(exchange())
    sinks.remove("one")
    sinks.remove("unknown")
    sinks.emit(exchange())
    assert seen == ["new"]


def test_a_failing_sink_costs_no_other_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sinks, seen, broken = Sinks(), list[str](), [True, True, False, True]

    def fail(_: Exchange) -> None:
        if broken.pop(0):
            raise RuntimeError("broken")

    sinks.put("failing", fail)
    sinks.put("sound", lambda e: seen.append(e.request_id))
    told = []
    for _ in range(4):
        caplog.clear()
        sinks.emit(exchange())
        told.append([r.getMessage() for r in caplog.records if r.levelno == logging.ERROR])
    assert seen == ["r"] * 4
    message = "failing: an exchange could not be recorded"
    assert told == [[message], [], [], [message]]


def test_a_sink_gets_texts_that_every_encoder_takes() -> None:
    # mitmproxy gives what is no UTF-8 as lone surrogates, and JSON may hold half a character.
    texts: dict[str, Any] = {
        each.name: "é\udc80" for each in fields(Exchange) if each.type in {str, str | None}
    }
    attempt = Attempt("p\udc80", "h\udc80", 0.0, error="e\udc80")
    decision = DecisionRecord(
        (RuleVerdict("r", matched=True, reason="path = /\udc80"),), 0.5, ("p",)
    )
    sinks, seen, live = Sinks(), list[Exchange](), Live()
    sinks.put("seen", seen.append)
    sinks.put("live", live.record)
    sinks.emit(Exchange(**texts, started=0.0, attempts=[attempt], decision=decision))
    (found,) = seen
    assert {name: getattr(found, name) for name in texts} == dict.fromkeys(texts, "é\ufffd")
    assert (attempt.provider, attempt.provider_host, attempt.error) == (
        *("p\ufffd", "h\ufffd", "e\ufffd"),
    )
    assert found.decision is not None
    assert found.decision.rules[0].reason == "path = /\ufffd"
    msgspec.json.encode(asdict(found))
    msgspec.json.encode(live.snapshot())
