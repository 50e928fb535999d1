"""The bodies of LLM APIs as text: a request as a conversation, an answer as what was said.

Anything may stand in a body: what can't be read as the API's is shown as what it is, cut short.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pointsman.protocols.api import Api, model_in_path, named, streams_by_path
from pointsman.protocols.reader import Reader, mapping
from pointsman.protocols.sse import MAX_EVENT, Event, Parser
from pointsman.telemetry.amounts import several
from pointsman.viewing import anthropic_messages, gemini, openai_chat, openai_responses
from pointsman.viewing.messages import Conversation, Message
from pointsman.viewing.outline import Json, Node, outline
from pointsman.viewing.route import Way, arrow, counts, section
from pointsman.viewing.texts import clip, json_node, line, load, plain, size, top_level

MAX_STREAM = 4 * 1024 * 1024  # bytes of a stream that are put together again
_MOST_LINES = 100_000
_TAIL = 64 * 1024  # bytes of its end, where the usage stands; lines there may be many, too
_MOST_FIELDS = 50
_FIRST = ("model", "stream")  # of the parameters
_SNIFFED = 4096


@dataclass(frozen=True, slots=True)
class _View:
    """How an API is shown, and the members by which its requests and answers are known."""

    request: Callable[[dict[str, Any]], Conversation]
    answer: Callable[[dict[str, Any]], list[Message]]
    fold: Callable[[Iterable[Event]], Any]
    asks: frozenset[str]
    says: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Read:
    """An answer as it was read.

    `body` is its JSON, of a stream what that comes to; `reader` knows usage, model and end, as the
    proxy's does; `stream` says in words what stream it was, if it was one. `too_large` is how many
    bytes an event has that no one reads.
    """

    body: Any
    reader: Reader
    stream: str | None = None
    too_large: int = 0


_CHAT = _View(
    openai_chat.chat_request,
    openai_chat.chat_answer,
    openai_chat.fold_chat,
    frozenset({"messages"}),
    frozenset({"choices"}),
)
_VIEWS = {
    "openai-chat": _CHAT,
    "openai-completions": _View(
        openai_chat.completion_request,
        openai_chat.chat_answer,
        openai_chat.fold_chat,
        frozenset({"prompt"}),
        frozenset({"choices"}),
    ),
    "openai-embeddings": _View(
        openai_chat.embedding_request,
        openai_chat.embedding_answer,
        openai_chat.fold_chat,
        frozenset({"input"}),
        frozenset({"data"}),
    ),
    "openai-responses": _View(
        openai_responses.request,
        openai_responses.answer,
        openai_responses.fold,
        frozenset({"input", "instructions", "prompt", "previous_response_id"}),
        frozenset({"output"}),
    ),
    "anthropic-messages": _View(
        anthropic_messages.request,
        anthropic_messages.answer,
        anthropic_messages.fold,
        frozenset({"messages"}),
        frozenset({"content"}),
    ),
    "gemini": _View(
        gemini.request,
        gemini.answer,
        gemini.fold,
        frozenset({"contents", "content"}),
        frozenset({"candidates", "promptFeedback", "embedding"}),
    ),
}
_ERRORS = frozenset({"error", "detail", "message"})
# Of a body whose API no path tells: the first of them that has a member of its own.
_GUESSES = ("openai-chat", "gemini", "openai-completions", "openai-responses", "anthropic-messages")


# --- whose body it is -----------------------------------------------------------------------------


def asks(api: Api, data: bytes) -> bool:
    """Tell whether a body is a request of the API."""
    view, fields = _VIEWS.get(api.name), _top_level(data)
    return view is not None and not view.asks.isdisjoint(fields)


def says(api: Api, data: bytes, *, event_stream: bool) -> bool:
    """Tell whether a body is an answer of the API."""
    view = _VIEWS.get(api.name)
    if view is None or event_stream:
        return view is not None
    return not (view.says | _ERRORS).isdisjoint(_top_level(data))


def guess(data: bytes) -> Api | None:
    """Return the API that a body seems to be of, whichever way it goes."""
    fields = _top_level(data)
    for name in _GUESSES:
        if not (_VIEWS[name].asks | _VIEWS[name].says).isdisjoint(fields):
            return named(name)
    return None


def _top_level(data: bytes) -> Iterable[str]:
    """Return the names at a JSON object's top level; of an array, those of its first object."""
    if data[:_SNIFFED].lstrip()[:1] == b"[":
        return mapping(next(iter(gemini.array(data[:_TAIL])), None))
    return top_level(data)


def is_event_stream(content_type: str | None, data: bytes) -> bool:
    """Tell whether a body is an event stream; not everyone sends the type."""
    start = data[:_SNIFFED].lstrip(b"\xef\xbb\xbf \t\r\n")
    return content_type == "text/event-stream" or start.startswith((b"data:", b"event:"))


# --- requests -------------------------------------------------------------------------------------


def conversation(data: bytes, api: Api) -> Conversation | None:
    """Return what a request says; None where that can't be read."""
    view, body = _VIEWS.get(api.name), load(data)
    return view.request(body) if view and isinstance(body, dict) else None


def show_request(data: bytes, api: Api | None, way: Way | None = None, path: str = "") -> str:
    """Return a request as text: the way that it went, its parameters, its conversation.

    Gemini's `path` has the model, and whether to stream.
    """
    told: dict[str, Node] = {"route": section(way)} if way else {}
    if not data:
        return outline(told | {"body": "(empty)"})
    body = load(data)
    view = _VIEWS.get(api.name) if api else None
    if api is None or view is None or not isinstance(body, dict):
        return outline(told | _unread(data, body))
    asked = view.request(body)
    told["request"] = api.name
    told |= _parameters(_by_path(path) | asked.parameters, way)
    if asked.tools:
        told["tools"] = asked.tools
    told["conversation"] = asked.nodes() or "(empty)"
    return outline(told)


def _by_path(path: str) -> dict[str, Any]:
    model = model_in_path(path)
    stream = {"stream": True} if streams_by_path(path) else {}
    return ({"model": model} if model else {}) | stream


def _parameters(parameters: dict[str, Any], way: Way | None) -> dict[str, Node]:
    """Return the parameters, the model and `stream` first; what was rewritten as before → after."""
    changed = {one.what: one for one in way.body} if way else {}
    there = [
        name
        for name in dict.fromkeys([*_FIRST, *parameters, *changed])
        if name in parameters or (name in changed and changed[name].before is None)
    ]
    shown: dict[str, Node] = {
        line(name): arrow(changed[name]) if name in changed else json_node(parameters[name])
        for name in there[:_MOST_FIELDS]
    }
    if (more := len(there) - _MOST_FIELDS) > 0:
        shown[f"… {more:,} more"] = ""
    first = {name: shown.pop(name) for name in _FIRST if name in shown}
    return first | ({"parameters": shown} if shown else {})


def _unread(data: bytes, body: Any) -> dict[str, Node]:
    """Return a body that is none of an API that is known here."""
    if isinstance(body, dict | list):
        return {"body": Json(plain(body))}
    if not data:
        return {"body": "(empty)"}
    try:
        said = data[: MAX_STREAM // 4].decode(errors="strict" if len(data) < _SNIFFED else "ignore")
    except UnicodeDecodeError:
        said = ""
    if not said or "\0" in said[:_SNIFFED]:
        return {"body": f"{size(len(data))} of binary data"}
    return {"body": f"{size(len(data))}, not whole JSON", "text": clip(said)}


# --- answers --------------------------------------------------------------------------------------


def show_answer(  # noqa: PLR0913 (all that is known of an answer)
    data: bytes,
    api: Api | None,
    *,
    event_stream: bool,
    way: Way | None = None,
    whole_size: int | None = None,
    compared: Mapping[str, Node] | None = None,
    bodiless: bool = False,
) -> str:
    """Return an answer as text: what was said, why it ended, what it cost.

    Of a request without a body (`bodiless`), or whose body was not kept, not every UI shows a view:
    its whole way is told here.

    `whole_size` is how many bytes the client got, where not all of them were kept; `compared` is
    what `comparing.section` tells of a replay.
    """
    told: dict[str, Node] = {"route": line(way.summary)} if way and way.summary else {}
    if way and bodiless:
        told = {"route": section(way)}
    if compared:
        told["compared with the original"] = compared
    if whole_size is not None:
        told["cut"] = f"the first {size(len(data))} of {size(whole_size)} were kept"
    view = _VIEWS.get(api.name) if api else None
    if api is None or view is None:
        return outline(told | _unread(data, None if event_stream else load(data)))
    read = _read(data, api, view, event_stream=event_stream)
    if read.stream:
        told["stream"] = read.stream
    if not isinstance(read.body, dict):
        return outline(told | _unread(data, read.body))
    return outline(told | _answer(view, read, way, event_stream=event_stream))


def said(data: bytes, api: Api | None, *, event_stream: bool) -> str:
    """Return what an answer says, as text; empty where it says nothing that can be read."""
    view = _VIEWS.get(api.name) if api else None
    if api is None or view is None:
        return ""
    body = mapping(_read(data, api, view, event_stream=event_stream).body)
    if error := body.get("error"):
        return outline({"error": _error(error)}).strip()
    messages = view.answer(body)
    return "\n".join(_part_text(part) for message in messages for part in message.parts)


def messages(data: bytes, api: Api, *, event_stream: bool) -> list[Message]:
    """Return what an answer says, each message with the reason why it ended, if that is known."""
    view = _VIEWS.get(api.name)
    if view is None:
        return []
    read = _read(data, api, view, event_stream=event_stream)
    found = _joined(view.answer(mapping(read.body)))
    if len(found) == 1 and found[0].finish is None:
        return [Message(found[0].role, found[0].parts, read.reader.finish_reason)]
    return found


def _part_text(part: Node) -> str:
    return part if isinstance(part, str) else outline({"part": part}).strip()


def _answer(view: _View, read: _Read, way: Way | None, *, event_stream: bool) -> dict[str, Node]:
    told: dict[str, Node] = {}
    body, reader = mapping(read.body), read.reader
    model = reader.model or body.get("model")
    if isinstance(model, str):
        told["model"] = line(model)
    if isinstance(identity := body.get("id", body.get("responseId")), str):
        told["id"] = line(identity)
    messages = _joined(view.answer(body))
    if messages:
        told["answer"] = [_ended(message, several=len(messages) > 1) for message in messages]
    # What the proxy has asked for on its own account it took out again: then the record has it.
    finish = reader.finish_reason or (way.finish_reason if way else None)
    if finish and not (len(messages) > 1 and any(message.finish for message in messages)):
        told["finish"] = line(finish)
    if usage := counts(reader.usage) if reader.usage else way and dict(way.usage):
        told["usage"] = dict(usage)
    if way and way.cost_usd is not None:
        told["cost"] = f"${way.cost_usd:.6f}"
    if error := body.get("error"):
        told["error"] = _error(error)
    elif not messages:
        nothing = "(nothing that could be read)" if read.too_large else "(nothing was said)"
        told["body"] = nothing if event_stream else Json(plain(body))
    return told


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Put together what one role says in a row, as the items of a response do."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last and last.role == message.role and not (last.finish or message.finish):
            last.parts.extend(message.parts)
        else:
            joined.append(replace(message, parts=list(message.parts)))
    return joined


def _ended(message: Message, *, several: bool) -> Node:
    ended = several and message.finish  # of one alone it stands below
    return message.fields() | ({"finish": line(message.finish or "")} if ended else {})


def _error(error: Any) -> Node:
    if not isinstance(error, dict):
        return json_node(error)
    kept = list(error.items())[:_MOST_FIELDS]
    return {line(str(name)): json_node(value) for name, value in kept if value is not None}


# --- what is read ---------------------------------------------------------------------------------


def _read(data: bytes, api: Api, view: _View, *, event_stream: bool) -> _Read:
    if event_stream:
        events, end, too_large, reader = _read_stream(api, data)
        told = _stream(events, end, len(data), reader)
        if too_large:
            told = (
                f"{several(len(events), 'event')}, then one of {size(too_large)}, too large to read"
            )
        return _Read(view.fold(events), reader, told, too_large)
    reader = api.reader(event_stream=False)
    reader.feed(data)
    reader.close()
    body = load(data)
    if api.name != "gemini" or data[:_SNIFFED].lstrip()[:1] != b"[":
        return _Read(body, reader)
    # A stream that is one JSON array; of a broken one, the whole objects.
    chunks = body if isinstance(body, list) else gemini.array(data[:MAX_STREAM])
    said = several(len(chunks), "object") + ("" if chunks is body else ", cut short")
    return _Read(gemini.merge(chunks), reader, said)


def _read_stream(api: Api, data: bytes) -> tuple[list[Event], int, int, Reader]:
    """Return the first events, how many bytes they are in, and a reader that knows the end too.

    The third is the size of an event after these that the proxy did not read either, 0 if none is.
    """
    end = min(len(data), MAX_STREAM)
    while data.count(b"\n", 0, end) + data.count(b"\r", 0, end) > _MOST_LINES:
        end //= 2
    parser = Parser()
    events = [event for event in parser.feed(data[:end]) if event.data]
    too_large = _unfinished(parser, data, end)
    if not too_large:
        events += [event for event in parser.close() if event.data]
    reader = api.reader(event_stream=True)
    reader.take(events)
    if end < len(data):
        _, _, tail = data[-_TAIL:].partition(b"\n\n")
        reader.take(_events(tail))
    return events, end, too_large, reader


def _unfinished(parser: Parser, data: bytes, end: int) -> int:
    """Return the size of the event that reaches over what was read, if it is too large."""
    ends = (data.find(blank, end) for blank in (b"\n\n", b"\r\n\r\n"))
    after = min((found for found in ends if found >= 0), default=len(data))
    whole = len(parser.pending) + after - end
    return whole if end < len(data) and whole > MAX_EVENT else 0


def _events(data: bytes) -> list[Event]:
    parser = Parser()
    return [event for event in parser.feed(data) + parser.close() if event.data]


def _stream(events: list[Event], end: int, whole: int, reader: Reader) -> str:
    said = several(len(events), "event")
    if end < whole:
        said += f" in the first {size(end)} of {size(whole)}, put together"
    elif not (reader.complete or reader.failed):
        said += ", cut short (its end is missing)"
    return said
