"""What a request under way has to do with its spans: the headers it carries on, what was said."""

from collections.abc import Mapping

from pointsman.proxy.answer import SUCCESS, Answer
from pointsman.routing.request import Headers, text
from pointsman.routing.rewriting import Outgoing
from pointsman.telemetry.content import MAX_BODY, Content, Kept
from pointsman.telemetry.exchange import Exchange


def with_trace(headers: Headers, fields: Mapping[str, str]) -> Headers:
    """Return the headers with these values in the place of the client's own.

    A field that the client has sent in several lines is sent in one; none is added.
    """
    new = {name.encode(): value.encode() for name, value in fields.items()}
    kept = []
    for name, value in headers:
        if name.lower() not in new:
            kept.append((name, value))
        elif name.lower() not in {known.lower() for known, _ in kept}:
            kept.append((name, new[name.lower()]))
    return tuple(kept)


def content_of(
    exchange: Exchange, outgoing: Outgoing, answer: Answer | None, said: Kept, coding: str
) -> Content | None:
    """Return what was said in an exchange; None where a model was not called.

    An answer that is no success says nothing: an error may quote the request.
    """
    if exchange.api is None:
        said.clear()
        return None
    if answer is None or exchange.status not in {None, *SUCCESS}:
        said.clear()
    length = len(outgoing.body)
    fits = length <= MAX_BODY
    coded = (text(value) for name, value in outgoing.headers if name.lower() == b"content-encoding")
    return Content(
        api=exchange.api,
        request=(outgoing.body if said.take(length) else None) if fits else b"",
        length=length,
        request_coding=", ".join(coded),
        kept=said,
        answer_coding=coding,
        event_stream=answer is not None and answer.event_stream,
    )
