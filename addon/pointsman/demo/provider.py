"""A provider that speaks OpenAI's API: the demo's and the end-to-end tests' far end.

It is an ASGI application; `pointsman.demo.server` puts it on a socket. It records every call, and a
test can put an answer of its own in the way of the next ones.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from pointsman.demo import openai_answers as openai
from pointsman.demo.openai_answers import Answer, Event, Json, RequestError

CALLS_KEPT = 10_000
FLUSH_SECONDS = 0.05

type Headers = Sequence[tuple[str, str]]


class DropConnectionError(Exception):
    """Tells the server to cut the client's connection."""


class ClientLeftError(Exception):
    """The client has disconnected before it had the whole answer."""


@dataclass
class Call:
    """One request as it arrived.

    Attributes:
        path: the target as it stood on the wire, with its query.
        headers: in order, with the names' case (HTTP/2 has lower case only).
        http_version: `1.1` or `2`.
        at: when the request's headers had been read, in `time.monotonic()` seconds.
        outcome: how the answer ended; `disconnected` is the client's doing, `dropped` a reply's.
    """

    provider: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    http_version: str
    at: float
    outcome: Literal["open", "complete", "disconnected", "dropped"] = "open"

    def header(self, name: str) -> str | None:
        """Return the first value of a header; its name's case does not matter."""
        return next((v for n, v in self.headers if n.lower() == name.lower()), None)

    def json(self) -> Json:
        """Return the body as the JSON object that it is.

        Raises:
            RequestError: it is none.
        """
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RequestError(400, "We could not parse the JSON body of your request.")
        return value


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        body: sent whole with its `content-length`; or pieces, sent one by one and without.
        delay: seconds before the status.
        chunk_delay: seconds before each piece but the first.
        drop: cut the connection, before the status or after all of `body` but without its end.
    """

    status: int = 200
    headers: Headers = ()
    body: bytes | Iterable[bytes] = b""
    delay: float = 0.0
    chunk_delay: float = 0.0
    drop: Literal["before_status", "mid_body"] | None = None

    @classmethod
    def json(cls, value: object, status: int = 200, headers: Headers = ()) -> "Reply":
        """Answer with a JSON document."""
        return cls(
            status=status,
            headers=[("content-type", "application/json"), *headers],
            body=openai.dump(value).encode(),
        )

    @classmethod
    def stream(cls, events: Iterable[Event], chunk_delay: float = 0.0) -> "Reply":
        """Answer with server-sent events, one piece each."""
        return cls(
            headers=[
                ("content-type", "text/event-stream; charset=utf-8"),
                ("cache-control", "no-cache"),
            ],
            body=(event.encode() for event in events),
            chunk_delay=chunk_delay,
        )


@dataclass
class Provider:
    """An OpenAI-compatible API.

    `calls` and `replies` may be used from another thread than the server's.

    Attributes:
        name: what it calls itself, in its answers too.
        host: the host it answers to on a listener shared with others.
        key: the API key it insists on; none is asked for if None.
        models: what `GET …/models` lists. Others are served too.
        chunk_delay: seconds between the events of a stream.
        replies: answers for the next calls, each used once.
        script: asked on every call for which there is no reply; None: answer as the API does.
        calls: the last `CALLS_KEPT` requests, oldest first.
    """

    name: str
    host: str = ""
    key: str | None = None
    models: tuple[str, ...] = ()
    chunk_delay: float = 0.02
    replies: deque[Reply] = field(default_factory=deque)
    script: Callable[[Call], Reply | None] | None = None
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=CALLS_KEPT))

    def __post_init__(self) -> None:
        self._numbers = count(1)

    async def __call__(
        self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one request.

        Raises:
            DropConnectionError: the reply wants the connection cut.
        """
        call = Call(
            provider=self.name,
            method=scope["method"],
            path=_target(scope),
            headers=[
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in scope["headers"]
            ],
            body=b"",
            http_version=scope["http_version"],
            at=time.monotonic(),
        )
        body = await _read_body(receive)
        if body is None:
            return  # the client left before it had asked anything
        call.body = body
        self.calls.append(call)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await _send(call, self.reply(call), send, gone)
        except ClientLeftError:
            call.outcome = "disconnected"
        except DropConnectionError:
            call.outcome = "dropped"
            raise
        finally:
            gone.cancel()

    def reply(self, call: Call) -> Reply:
        """Decide the answer to a call."""
        if self.replies:
            return self.replies.popleft()
        scripted = self.script(call) if self.script else None
        if scripted:
            return scripted
        try:
            return self._api(call)
        except RequestError as error:
            return Reply.json(error.body, error.status)

    def _api(self, call: Call) -> Reply:
        self._authenticate(call)
        path = call.path.partition("?")[0]
        match call.method, path.rsplit("/", 1)[-1]:
            case "POST", "completions" if path.endswith("/chat/completions"):
                return self._chat(call.json())
            case "POST", "completions":
                return self._completion(call.json())
            case "POST", "responses":
                return self._response(call.json())
            case "POST", "embeddings":
                return self._embeddings(call.json())
            case "GET", "models":
                return Reply.json(openai.models(self.models, self.name))
        raise RequestError(404, f"Invalid URL ({call.method} {path})")

    def _authenticate(self, call: Call) -> None:
        if self.key is None:
            return
        given = call.header("authorization")
        if given is None:
            raise RequestError(401, "You didn't provide an API key.")
        if given != f"Bearer {self.key}":
            raise RequestError(401, "Incorrect API key provided.", code="invalid_api_key")

    def _chat(self, request: Json) -> Reply:
        answer = self._answer("chatcmpl-", request, "messages")
        if request.get("stream"):
            events = openai.chat_events(answer, include_usage=_include_usage(request))
            return Reply.stream(events, self.chunk_delay)
        _include_usage(request)
        return Reply.json(openai.chat(answer))

    def _completion(self, request: Json) -> Reply:
        answer = self._answer("cmpl-", request, "prompt")
        if request.get("stream"):
            events = openai.completion_events(answer, include_usage=_include_usage(request))
            return Reply.stream(events, self.chunk_delay)
        _include_usage(request)
        return Reply.json(openai.completion(answer))

    def _response(self, request: Json) -> Reply:
        answer = self._answer("resp_", request, "input")
        if request.get("stream"):
            return Reply.stream(openai.response_events(answer), self.chunk_delay)
        return Reply.json(openai.response(answer))

    def _embeddings(self, request: Json) -> Reply:
        answer = self._answer("", request, "input")
        inputs = list(openai.texts(request["input"]))
        encoding = request.get("encoding_format") or "float"
        return Reply.json(openai.embeddings(answer.model, inputs, encoding))

    def _answer(self, prefix: str, request: Json, prompt_field: str) -> Answer:
        """Make up an answer that says who gives it, as which model, and to what.

        Raises:
            RequestError: there is no model or no prompt.
        """
        model = request.get("model")
        if not isinstance(model, str) or not model:
            raise RequestError(400, "you must provide a model parameter")
        if prompt_field not in request:
            raise RequestError(
                400,
                f"Missing required parameter: '{prompt_field}'.",
                param=prompt_field,
                code="missing_required_parameter",
            )
        prompts = list(openai.texts(request[prompt_field]))
        asked = prompts[-1] if prompts else ""
        return Answer(
            id=f"{prefix}{self.name}-{next(self._numbers)}",
            created=int(time.time()),
            model=model,
            text=f"This is {self.name} with {model}. You said: {asked}",
            prompt_tokens=sum(openai.count_tokens(text) for text in prompts),
        )


def _include_usage(request: Json) -> bool:
    options = request.get("stream_options")
    if options is None:
        return False
    if not request.get("stream"):
        raise RequestError(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    return isinstance(options, dict) and options.get("include_usage") is True


# --- ASGI -----------------------------------------------------------------------------------------


def _target(scope: HTTPScope) -> str:
    path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


async def _read_body(receive: ASGIReceiveCallable) -> bytes | None:
    """Read the request's body; None if the client leaves before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def _disconnected(receive: ASGIReceiveCallable) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pause(seconds: float, gone: asyncio.Task[None]) -> None:
    await asyncio.wait({gone}, timeout=seconds)
    if gone.done():
        raise ClientLeftError


async def _send(call: Call, reply: Reply, send: ASGISendCallable, gone: asyncio.Task[None]) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in reply.headers]
    pieces: Iterable[bytes] = ()
    last = b""
    if not isinstance(reply.body, bytes):
        pieces = reply.body
    else:
        last = reply.body
        if reply.drop is None:
            headers.append((b"content-length", str(len(last)).encode()))

    await _pause(reply.delay, gone)
    if reply.drop == "before_status":
        raise DropConnectionError
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    for number, piece in enumerate(pieces):
        await _pause(reply.chunk_delay if number else 0, gone)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    if reply.drop == "mid_body":
        await send({"type": "http.response.body", "body": last, "more_body": True})
        # Hypercorn gives HTTP/2 data to a task of its own, and tells nobody when it is sent.
        await _pause(FLUSH_SECONDS, gone)
        raise DropConnectionError
    # Before it is sent: who has the whole answer may look.
    call.outcome = "complete"
    await send({"type": "http.response.body", "body": last, "more_body": False})
