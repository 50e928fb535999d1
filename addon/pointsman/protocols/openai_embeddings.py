"""OpenAI embeddings: one JSON body, whose vectors are never decoded."""

from typing import Any

import msgspec

from pointsman.protocols.openai_chat import chat_usage
from pointsman.protocols.reader import Reader, decode, text


class _Body(msgspec.Struct):
    object: Any = None
    model: Any = None
    data: msgspec.Raw = msgspec.Raw()
    usage: Any = None
    error: Any = None


_BODY = msgspec.json.Decoder(_Body)


class EmbeddingsReader(Reader):
    """Reads embeddings."""

    def read(self, data: bytes) -> bool:
        """Take in the whole answer."""
        body = decode(_BODY, data)
        if body is None:
            return False
        self.model = text(body.model) or self.model
        self.usage = chat_usage(body.usage) or self.usage
        self.failed = self.failed or bool(body.error) or body.object == "error"
        self.content_started = self.content_started or bool(body.data)
        return True
