"""The client's shape: an answer that the rules have forced into the other one is turned back.

A stream is folded into the JSON body that the API would have given, a JSON body unfolded into an
event stream. Both take the whole answer, in bounded memory.
"""

from dataclasses import dataclass

from mitmproxy import http

from pointsman.protocols.encoding import Decoder, TooLarge, Undecodable, stream_decoder
from pointsman.protocols.openai_folding import Folder, FoldError, unfold
from pointsman.protocols.reader import MAX_BODY
from pointsman.routing.rewriting import Outgoing, without_hop_by_hop

_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"content-encoding"})


class ShapeError(Exception):
    """The answer can't be turned; the message goes on from "stream"."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """An answer in the client's shape."""

    body: bytes
    content_type: str

    def response(self, original: http.Response) -> http.Response:
        """Return the provider's response with this body."""
        kept = [
            (name, value)
            for name, value in without_hop_by_hop(original.headers.fields)
            if name.lower() not in _FRAMING | {b"content-type"}
        ]
        response = http.Response.make(original.status_code, self.body)
        response.reason = original.reason
        response.headers = http.Headers([*kept, (b"content-type", self.content_type.encode())])
        response.headers["content-length"] = str(len(self.body))
        return response


class Shaper:
    """Takes in one answer, then gives it in the other shape.

    Raises:
        ShapeError: on the way or at the end; the attempt has failed.
    """

    def __init__(self, outgoing: Outgoing, content_encoding: str) -> None:
        self._include_usage = outgoing.client_usage
        self._folder = Folder() if outgoing.shape == "fold" else None
        self._body = bytearray()
        try:
            self._decoder: Decoder | None = stream_decoder(content_encoding)
        except Undecodable as error:
            raise ShapeError("in an unknown encoding") from error

    def feed(self, chunk: bytes) -> None:
        """Take in a chunk as it came."""
        try:
            self._take(self._decoder.feed(chunk) if self._decoder else chunk)
        except (FoldError, TooLarge, Undecodable) as error:
            raise ShapeError("can't be read") from error

    def _take(self, data: bytes) -> None:
        if self._folder:
            self._folder.feed(data)
        elif len(self._body) + len(data) > MAX_BODY:
            raise ShapeError("is too large")
        else:
            self._body += data

    def close(self) -> Shaped:
        """Return the whole answer in the client's shape."""
        try:
            if self._decoder:
                self._take(self._decoder.close())
            if self._folder is None:
                return self._unfolded()
            folded = self._folder.close()
        except (FoldError, TooLarge, Undecodable) as error:
            raise ShapeError("can't be read") from error
        if folded.failed:
            raise ShapeError("carried an error")
        if not folded.complete:
            raise ShapeError("was cut short")
        return Shaped(folded.body, "application/json")

    def _unfolded(self) -> Shaped:
        body = bytes(self._body)
        events = unfold(body, include_usage=self._include_usage)
        if events is None:
            return Shaped(body, "application/json")  # no completion: the client may know it
        return Shaped(events, "text/event-stream")
