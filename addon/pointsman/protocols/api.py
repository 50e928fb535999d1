"""Which API a request speaks, by the shape of its path: the same for every provider."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from pointsman.protocols.anthropic_messages import MessagesReader
from pointsman.protocols.gemini import GeminiReader
from pointsman.protocols.openai_chat import ChatReader, UsageFilter
from pointsman.protocols.openai_embeddings import EmbeddingsReader
from pointsman.protocols.openai_responses import ResponsesReader
from pointsman.protocols.reader import Reader


@dataclass(frozen=True, slots=True)
class Api:
    """One API: its name, and how its responses are read."""

    name: str
    reader_type: type[Reader]

    def reader(self, *, event_stream: bool, filter_usage: bool = False) -> Reader:
        """Return a reader for one response.

        Args:
            event_stream: The response is `text/event-stream`; otherwise it is one JSON body.
            filter_usage: Take out the usage that the proxy has asked for on its own account;
                ignored but for event streams of chat completions and completions.
        """
        if filter_usage and event_stream and self.reader_type is ChatReader:
            return UsageFilter(event_stream=True)
        return self.reader_type(event_stream=event_stream)


CHAT = Api("openai-chat", ChatReader)
_GEMINI = Api("gemini", GeminiReader)
_BY_PATH_END = {  # the first one counts
    "/chat/completions": CHAT,
    "/completions": Api("openai-completions", ChatReader),
    "/embeddings": Api("openai-embeddings", EmbeddingsReader),
    "/responses": Api("openai-responses", ResponsesReader),
    "/v1/messages": Api("anthropic-messages", MessagesReader),
    ":generateContent": _GEMINI,
    ":streamGenerateContent": _GEMINI,
    ":embedContent": _GEMINI,
}


def named(name: object) -> Api | None:
    """Return the API of that name, None if there is none."""
    return next((api for api in _BY_PATH_END.values() if api.name == name), None)


def detect(method: str, path: str) -> Api | None:
    """Return the API that a request speaks, None if it is none that we can read."""
    if method != "POST":
        return None
    path = path.partition("?")[0].rstrip("/")
    return next((api for end, api in _BY_PATH_END.items() if path.endswith(end)), None)


# Gemini's path names the model and tells whether to stream: `/v1beta/models/NAME:generateContent`,
# on Vertex AI with `projects/…/publishers/google` before `models`.
_MODEL_IN_PATH = re.compile(r"/models/(?P<model>[^/:?]+):[A-Za-z]+\Z")
_STREAMING_END = ":streamGenerateContent"


def model_in_path(path: str) -> str | None:
    """Return the model that a path names, as Gemini's do; None where it is left to the body."""
    found = _MODEL_IN_PATH.search(path.partition("?")[0].rstrip("/"))
    return unquote(found["model"]) if found else None


def streams_by_path(path: str) -> bool:
    """Tell whether the path asks for a stream, as Gemini's do."""
    return path.partition("?")[0].rstrip("/").endswith(_STREAMING_END)
