"""OpenAI (chat) completions from one shape into the other: a stream into one JSON body and back.

For a client that asked for the one while the rules had the provider asked for the other.

Folding keeps what the API would have answered, for OpenAI and for those who speak its language:

- In a delta, strings go on from chunk to chunk, objects are merged and lists appended, but an item
  with an `index` goes on with the item of that index. Of labels (`role`, `id`, …), numbers and all
  that stands outside of a delta the last value stays; a null or an empty value says nothing.
- A tool call without an index goes on with the latest, unless it brings a name or another id
  (Gemini); one with the index of another call is a call of its own if it brings both.
- `content` is null beside a tool call or a refusal if it has no text. `refusal` and `logprobs` are
  there as nulls. `index` of a tool call and `obfuscation` belong to streams and are left out.
- Usage is looked for where `openai_chat` does and put at the top level; without any it is left out.
- An event that is no object, as a ping, is passed over. If one that begins as an object can't be
  read, the answer is not complete.

Unfolding is the reverse. Texts are cut, as some clients bound the length of a line. Members of a
message that are null or empty are left out; fold what was unfolded, and all else is the same, but
for the nulls above and a tool call's `type`, which is filled in.

Source: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from itertools import chain, zip_longest
from typing import Any

import msgspec

from pointsman.protocols import sse
from pointsman.protocols.openai_chat import chat_usage
from pointsman.protocols.reader import MAX_BODY, MAX_VALUES, decode, heavy, mapping, objects, text

type Json = dict[str, Any]
type Steps = Callable[[Json], Iterator[Json]]

PIECE = 4096  # characters of a text in one event
TOKENS = 32  # tokens with their logprobs in one event
MAX_STREAM = 2 * MAX_BODY  # bytes of an unfolded answer, each chunk of which repeats the head

_OBJECT = 64  # bytes that a choice and a tool call count for, besides what they say
_JSON = msgspec.json.Decoder()
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_GROWING = ("delta", "text", "logprobs")  # in a choice; of the others the last value stays
_LABELS = frozenset({"channel", "format", "id", "index", "object", "role", "status", "type"})
_STREAM_ONLY = frozenset({"choices", "error", "obfuscation", "usage"})
_IN_EACH_CHUNK = ("id", "object", "created", "model", "service_tier", "system_fingerprint")


class FoldError(ValueError):
    """The answer can't be turned: what it comes to is over the limit, or nested too deep."""


@dataclass(frozen=True, slots=True)
class Folded:
    """What a stream came to.

    Attributes:
        body: the JSON body; if it failed, the provider's error as `{"error": …}`.
        complete: nothing is missing: `[DONE]` was seen, or every choice has its finish reason.
        failed: the stream carried an error. What came before it is dropped.
    """

    body: bytes
    complete: bool
    failed: bool


class Folder:
    """Takes a stream in any cuts and folds it into one JSON body.

    `limit` bounds the bytes of that body. The stream itself, some hundred times as long, is not
    kept; one event of it may have `sse.MAX_EVENT` bytes.
    """

    def __init__(self, limit: int = MAX_BODY) -> None:
        self._parser = sse.Parser()
        self._answer = _Answer(limit)
        self._error: Any = None
        self._done = False
        self._garbled = False

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes.

        Raises:
            FoldError: too large, or nested too deep; there is nothing to come of this stream.
        """
        self.take(self._parser.feed(chunk))
        if self._parser.overflowed:
            raise FoldError(f"an event of the stream is larger than {sse.MAX_EVENT} bytes")

    def close(self) -> Folded:
        """Return what the stream came to.

        Raises:
            FoldError: as for `feed`.
        """
        garbled = self._garbled  # an event that the end of the stream cuts is no loss by itself
        self.take(self._parser.close())
        failed = self._error is not None
        whole = self._answer.finished or (self._done and self._answer.started)
        try:
            body = _encode({"error": self._error} if failed else self._answer.json())
        except RecursionError:
            raise FoldError("the stream is nested too deep") from None
        return Folded(body, complete=whole and not garbled and not failed, failed=failed)

    def take(self, events: Iterable[sse.Event]) -> None:
        """Take in events, of a stream that is parsed elsewhere.

        Raises:
            FoldError: as for `feed`.
        """
        for event in events:
            if self._error is not None:
                return
            if event.data.startswith(b"[DONE]"):
                self._done = True
            elif event.data:
                self._read(event)

    def _read(self, event: sse.Event) -> None:
        chunk = _read(event.data)
        self._error = _error(event, chunk)
        if self._error is None and isinstance(chunk, dict):
            try:
                self._answer.add(chunk)
            except RecursionError:
                raise FoldError("the stream is nested too deep") from None
        elif chunk is None and event.data.lstrip().startswith(b"{"):
            self._garbled = True  # anything else, as a ping, was never a part of the answer


def _read(data: bytes) -> Any:
    if heavy(data):
        raise FoldError(f"there are more than {MAX_VALUES} values in it")
    return decode(_JSON, data)


def _error(event: sse.Event, chunk: Any) -> Any:
    """Return the error that an event carries, None if it is none. What is one: see `ChatReader`."""
    fields = mapping(chunk)
    if error := fields.get("error"):
        return error
    if event.event == "error" or fields.get("object") == "error":
        return fields or {"message": event.data.decode(errors="replace")}
    return None


# --- folding --------------------------------------------------------------------------------------


class _Items:
    """A list that grows: an item with an index goes on with the one that has it."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._open: dict[int | None, Json] = {}  # the latest of each index; None: of all

    def entry(self, item: Json, index: int | None) -> Json:
        """Return the entry that the item goes on with: one that is there, or a new one."""
        entry = self._open.get(index)
        if entry is None or not _goes_on(entry, item, index):
            entry = {}
            self.items.append(entry)
            self._open[index] = self._open[None] = entry
        return entry


class _Merger:
    """Puts chunks together, and counts the bytes of what it keeps."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0

    def replace(self, kept: Json, new: Mapping[str, Any]) -> None:
        """Of each member keep the last value that says something."""
        for name, value in new.items():
            old = kept.get(name)
            if name not in kept or (value not in _EMPTY and value != old):
                self.count(_size(value) - _size(old) + (0 if name in kept else len(name)))
                kept[name] = value

    def grow(self, kept: Json, new: Mapping[str, Any]) -> None:
        """Let each member go on with what the delta brings."""
        for name, value in new.items():
            if name not in kept:
                self.count(len(name))
            kept[name] = self._grown(name, kept.get(name), value)

    def _grown(self, name: str, old: Any, value: Any) -> Any:
        if isinstance(value, str) and name not in _LABELS:
            return self._text(name, old, value)
        if isinstance(value, list):
            return self._list(name, old, value)
        if isinstance(value, dict):
            kept = old if isinstance(old, dict) else {}
            self.grow(kept, value)
            return kept
        if value in (None, old) or (value == "" and old):
            return old
        self.count(_size(value) - _size(old))
        return value

    def _text(self, name: str, old: Any, piece: str) -> Any:
        if name == "content" and isinstance(old, _Items):
            return self._list(name, old, [{"type": "text", "text": piece}] if piece else [])
        kept = old if isinstance(old, StringIO) else StringIO()
        if name == "name" and kept.tell() == len(piece) and kept.getvalue() == piece:
            return kept  # some repeat a function's name with each piece of its arguments
        self.count(_size(piece) - 2)  # less the quotes
        kept.write(piece)
        return kept

    def _list(self, name: str, old: Any, items: list[Any]) -> _Items:
        kept = old if isinstance(old, _Items) else _Items()
        if name == "content" and isinstance(old, StringIO) and old.tell():  # Mistral mixes them
            kept.items.append({"type": "text", "text": old})
        for item in items:
            index = _index(item) if isinstance(item, dict) else None
            if isinstance(item, dict) and (index is not None or name == "tool_calls"):
                entry = kept.entry(item, index)
                if not entry:
                    self.count(_OBJECT)
                    entry["index"] = len(kept.items) - 1 if index is None else index
                self.grow(entry, item)
            else:
                self.count(_size(item))
                kept.items.append(item)
        return kept

    def count(self, size: int) -> None:
        """Add to the bytes that are kept."""
        self._size += size
        if self._size > self._limit:
            raise FoldError(f"the stream folds into more than {self._limit} bytes")


class _Answer:
    """The answer, as far as it has come."""

    def __init__(self, limit: int) -> None:
        self._merger = _Merger(limit)
        self._head: Json = {}
        self._usage: Json = {}
        self._choices: dict[int, Json] = {}

    @property
    def started(self) -> bool:
        """Some choice was seen."""
        return bool(self._choices)

    @property
    def finished(self) -> bool:
        """Every choice has its finish reason."""
        ends = [text(choice.get("finish_reason")) for choice in self._choices.values()]
        return bool(ends) and all(ends)

    def add(self, chunk: Json) -> None:
        """Take in one chunk."""
        choices = objects(chunk.get("choices"))
        groq = mapping(chunk.get("x_groq"))
        first: Json = next((choice for choice in choices if not choice.get("index")), {})
        for usage in (chunk.get("usage"), first.get("usage"), groq.get("usage")):
            if chat_usage(usage) is not None:
                self._merger.replace(self._usage, {"usage": usage})
                break
        if groq:
            self._merger.replace(self._member("x_groq"), _without(groq, "usage"))
        left_out = {*_STREAM_ONLY, "x_groq"} if groq else _STREAM_ONLY
        self._merger.replace(self._head, _without(chunk, *left_out))
        for choice in choices:
            self._add_choice(choice)

    def _member(self, name: str) -> Json:
        """Return the object in the head that the objects of this name are merged into."""
        kept = self._head.get(name)
        if not isinstance(kept, dict):
            self._merger.count(len(name))
            kept = self._head[name] = {}
        return kept

    def _add_choice(self, choice: Json) -> None:
        index = _index(choice) or 0
        if index not in self._choices:
            self._merger.count(_OBJECT)
        kept = self._choices.setdefault(index, {})
        self._merger.grow(kept, {name: choice[name] for name in _GROWING if name in choice})
        self._merger.replace(kept, _without(choice, "index", "usage", *_GROWING))

    def json(self) -> Json:
        """Return the answer, to be encoded at once."""
        choices = sorted(self._choices.items())
        in_text = any("text" in c for _, c in choices) and not any("delta" in c for _, c in choices)
        if in_text or self._head.get("object") == "text_completion":
            kind, ended = "text_completion", [_text_choice(*choice) for choice in choices]
        else:
            kind, ended = "chat.completion", [_chat_choice(*choice) for choice in choices]
        return {**self._head, "object": kind, "choices": ended, **self._usage}


def _text_choice(index: int, kept: Json) -> Json:
    said = _plain(kept.get("text"))
    said = said if isinstance(said, str) else ""
    return {"index": index, "text": said, **_choice_end(kept)}


def _chat_choice(index: int, kept: Json) -> Json:
    delta = {name: _plain(value) for name, value in mapping(kept.get("delta")).items()}
    if all(value in _EMPTY for value in _without(delta, "role").values()):
        # Some send the whole message in the last chunk, after its parts or in their stead.
        delta |= mapping(kept.get("message"))
    return {"index": index, "message": _message(delta), **_choice_end(kept)}


def _choice_end(kept: Json) -> Json:
    return {
        "logprobs": kept.get("logprobs"),
        "finish_reason": text(kept.get("finish_reason")),
        **_without(kept, "delta", "message", "text", "logprobs", "finish_reason"),
    }


def _message(said: Json) -> Json:
    message: Json = {"role": None, "content": None, "refusal": None, **said}
    message["role"] = text(said.get("role")) or "assistant"
    message["refusal"] = message["refusal"] or None
    calls = sorted(objects(message.pop("tool_calls", None)), key=lambda call: _index(call) or 0)
    if calls:
        message["tool_calls"] = [_with_type(_without(call, "index")) for call in calls]
    instead = ("refusal", "tool_calls", "function_call", "audio")
    if not message["content"] and any(message.get(name) for name in instead):
        message["content"] = None
    return message


def _goes_on(entry: Json, item: Json, index: int | None) -> bool:
    """Tell whether an item goes on with the entry of its index; of no index, with the latest."""
    kind, new_id, old_id = text(item.get("type")), text(item.get("id")), entry.get("id")
    named = text(mapping(item.get("function")).get("name"))
    if kind and entry.get("type", kind) != kind:
        return False
    if new_id and new_id == old_id:
        return True
    other_id = new_id and old_id
    return not (named or other_id) if index is None else not (named and other_id)


def _plain(value: Any) -> Any:
    """Return what has grown as JSON; anything else as it is."""
    if isinstance(value, StringIO):
        return value.getvalue()
    return value.items if isinstance(value, _Items) else value


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_plain)


def _size(value: Any) -> int:
    return 0 if value is None else len(_encode(value))


def _index(item: Json) -> int | None:
    index = item.get("index")
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def _without(fields: Json, *names: str) -> Json:
    return {name: value for name, value in fields.items() if name not in names}


def _with_type(call: Json) -> Json:
    return {"type": "function", **call} if "function" in call else call


# --- unfolding ------------------------------------------------------------------------------------


def unfold(body: bytes, *, include_usage: bool, limit: int = MAX_STREAM) -> bytes | None:
    """Return the completion as an event stream, None if the body is no completion.

    `include_usage` is what the client asked for in `stream_options`: usage gets an event of its own
    then, if it is known, and is null in the others. `limit` bounds the bytes of the stream.

    Raises:
        FoldError: the answer has too many values, or the stream would be too large.
    """
    answer = _read(body)
    if not isinstance(answer, dict) or answer.get("error"):
        return None
    choices = answer.get("choices")
    if not choices or not isinstance(choices, list):
        return None
    if all(isinstance(mapping(choice).get("message"), dict) for choice in choices):
        chunks = _chunks(answer, "chat.completion.chunk", _chat_steps, include_usage=include_usage)
    elif all(isinstance(mapping(choice).get("text"), str) for choice in choices):
        chunks = _chunks(answer, "text_completion", _text_steps, include_usage=include_usage)
    else:
        return None
    stream = bytearray()
    try:
        for chunk in chunks:
            stream += b"data: %b\n\n" % _encode(chunk)
            if len(stream) > limit:
                raise FoldError(f"the answer unfolds into more than {limit} bytes")
    except RecursionError:
        return None
    return bytes(stream + _DONE)


def _chunks(answer: Json, kind: str, steps: Steps, *, include_usage: bool) -> Iterator[Json]:
    no_usage = {"usage": None} if include_usage else {}
    head = {name: answer[name] for name in _IN_EACH_CHUNK if name in answer} | {"object": kind}
    once = _without(answer, "choices", "usage", "error", *_IN_EACH_CHUNK)  # in the first chunk
    for index, choice in _numbered(answer["choices"]):
        for step in steps(choice):
            rest = {"logprobs": None, "finish_reason": None, **step}
            yield {**head, **once, "choices": [{"index": index, **rest}], **no_usage}
            once = {}
    if include_usage and answer.get("usage"):
        yield {**head, "choices": [], "usage": answer["usage"]}


_DONE = b"data: [DONE]\n\n"


def _numbered(choices: list[Json]) -> list[tuple[int, Json]]:
    """Sort the choices by their index; if they have none that tells them apart, number them."""
    numbered = {_index(choice): choice for choice in choices}
    if None in numbered or len(numbered) < len(choices):
        return list(enumerate(choices))
    return sorted((index, choice) for index, choice in numbered.items() if index is not None)


def _chat_steps(choice: Json) -> Iterator[Json]:
    """Give the choice's part of each chunk, less its index."""
    message = choice["message"]
    content, refusal = message.get("content"), message.get("refusal")
    opening: Json = {
        "role": message.get("role") or "assistant",
        "content": "" if isinstance(content, str) else None,
        **({"refusal": None} if "refusal" in message else {}),
    }
    yield {"delta": opening}
    for delta in _vendor_deltas(message):
        yield {"delta": delta}
    spoken = chain(_text_deltas("content", content), _text_deltas("refusal", refusal))
    for said, logprobs in zip_longest(spoken, _slices(choice.get("logprobs"))):
        yield {"delta": said or {}, "logprobs": logprobs}
    for delta in _call_deltas(message):
        yield {"delta": delta}
    yield {"delta": {}, **_without(choice, "index", "message", "logprobs")}


def _text_steps(choice: Json) -> Iterator[Json]:
    for piece, logprobs in zip_longest(_pieces(choice["text"]), _slices(choice.get("logprobs"))):
        yield {"text": piece or "", "logprobs": logprobs}
    yield {"text": "", **_without(choice, "index", "text", "logprobs")}


def _vendor_deltas(message: Json) -> Iterator[Json]:
    """Give the members that OpenAI does not have; reasoning is one, and comes before the text."""
    known = ("role", "content", "refusal", "tool_calls", "function_call")
    for name, value in _without(message, *known).items():
        yield from _text_deltas(name, value)


def _text_deltas(name: str, value: Any) -> Iterator[Json]:
    if isinstance(value, str) and name not in _LABELS:
        yield from ({name: piece} for piece in _pieces(value))
    elif value not in _EMPTY:
        yield {name: value}


def _call_deltas(message: Json) -> Iterator[Json]:
    for index, call in enumerate(objects(message.get("tool_calls"))):
        rest = _without(_with_type(call), "index", "function")
        if call.get("function") is None:
            yield {"tool_calls": [{"index": index, **rest}]}
        for part in _function_parts(call.get("function")):
            yield {"tool_calls": [{"index": index, **rest, "function": part}]}
            rest = {}
    for part in _function_parts(message.get("function_call")):
        yield {"function_call": part}


def _function_parts(function: Any) -> Iterator[Any]:
    """Give the name with no arguments, then these in pieces."""
    if isinstance(arguments := mapping(function).get("arguments"), str):
        yield {**function, "arguments": ""}
        yield from ({"arguments": piece} for piece in _pieces(arguments))
    elif function is not None:
        yield function


def _slices(logprobs: Any) -> Iterator[Any]:
    """Cut the lists of an object abreast."""
    if not isinstance(logprobs, dict):
        if logprobs is not None:
            yield logprobs
        return
    lists = {name: value for name, value in logprobs.items() if isinstance(value, list)}
    yield {**logprobs, **{name: value[:TOKENS] for name, value in lists.items()}}
    for start in range(TOKENS, max(map(len, lists.values()), default=0), TOKENS):
        cut = {name: value[start : start + TOKENS] for name, value in lists.items()}
        yield {name: cut.get(name) or None for name in logprobs}


def _pieces(value: str) -> list[str]:
    return [value[start : start + PIECE] for start in range(0, len(value), PIECE)]
