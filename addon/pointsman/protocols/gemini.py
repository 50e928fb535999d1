"""Gemini: one JSON object, or a stream of them: events (`alt=sse`) or, by default, one JSON array.

Each object of a stream repeats the usage so far; the last one counts. No marker ends a stream but
the finish reason.
"""

from typing import Any

import msgspec

from pointsman.protocols.reader import Reader, decode, mapping, objects, text
from pointsman.protocols.usage import Usage, count, sum_counts, usage_of


class _Chunk(msgspec.Struct):
    candidates: Any = None
    prompt_feedback: Any = msgspec.field(default=None, name="promptFeedback")
    usage: Any = msgspec.field(default=None, name="usageMetadata")
    model: Any = msgspec.field(default=None, name="modelVersion")
    embedding: msgspec.Raw = msgspec.Raw()
    error: Any = None


_CHUNKS = msgspec.json.Decoder(_Chunk | list[_Chunk])


class GeminiReader(Reader):
    """Reads generateContent, streamGenerateContent and embedContent."""

    def read(self, data: bytes) -> bool:
        """Take in one object of a stream, or the whole answer."""
        chunks = decode(_CHUNKS, data)
        if chunks is None:
            return False
        for chunk in chunks if isinstance(chunks, list) else [chunks]:
            self._note(chunk)
        return True

    def _note(self, chunk: _Chunk) -> None:
        candidates = objects(chunk.candidates)
        first = next((c for c in candidates if not c.get("index")), {})
        blocked = mapping(chunk.prompt_feedback).get("blockReason")
        reason = text(first.get("finishReason")) or text(blocked)
        self.model = text(chunk.model) or self.model
        self.finish_reason = reason or self.finish_reason
        self.usage = _usage(chunk.usage) or self.usage
        self.failed = self.failed or bool(chunk.error)
        self.complete = self.complete or reason is not None
        self.content_started = (
            self.content_started or bool(chunk.embedding) or any(map(_has_content, candidates))
        )


def _usage(value: Any) -> Usage | None:
    usage = mapping(value)
    thoughts = count(usage.get("thoughtsTokenCount"))
    return usage_of(
        # results of Google's own tools are billed as input and are in the total
        prompt=sum_counts(usage.get("promptTokenCount"), usage.get("toolUsePromptTokenCount")),
        completion=sum_counts(usage.get("candidatesTokenCount"), thoughts),
        total=count(usage.get("totalTokenCount")),
        cached=count(usage.get("cachedContentTokenCount")),
        reasoning=thoughts,
    )


def _has_content(candidate: dict[str, Any]) -> bool:
    parts = objects(mapping(candidate.get("content")).get("parts"))
    marks = {"thought", "thoughtSignature"}
    return any(part[name] for part in parts for name in part if name not in marks)
