"""Reading an answer beside its way to the client. It imports no mitmproxy.

The client's bytes pass as they came. Only where usage was asked for on our own account does the
reader take part in the passing, to take it out again; then the answer is not compressed, since
that was asked for as well.
"""

import logging

from pointsman.protocols import Api, Reader
from pointsman.protocols.encoding import Decoder, Undecodable, stream_decoder
from pointsman.proxy.faults import log_fault
from pointsman.telemetry.cost import cost_usd
from pointsman.telemetry.exchange import Exchange, UsageSource, name_of

_logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
SUCCESS = range(200, 300)


class Answer:
    """One provider's answer, fed chunk by chunk."""

    def __init__(
        self, api: Api | None, *, content_type: str, content_encoding: str, filter_usage: bool
    ) -> None:
        media_type = content_type.partition(";")[0].strip().lower()
        self.event_stream = media_type == EVENT_STREAM
        self.filters = False
        self.reader: Reader | None = None
        self._decoder: Decoder | None = None
        if api is None:
            return
        try:
            self._decoder = stream_decoder(content_encoding)
        except Undecodable:
            return  # passed on unread; usage stays unknown
        self.filters = filter_usage and self.event_stream and self._decoder is None
        self.reader = api.reader(event_stream=self.event_stream, filter_usage=self.filters)

    @property
    def opening(self) -> bool:
        """Whether it is a stream whose first content is still to come."""
        if not self.event_stream or self.reader is None:
            return False
        return not (self.reader.content_started or self.reader.complete)

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk; return what the client gets now."""
        if self.reader is None:
            return chunk
        if self.filters:
            return self.reader.feed(chunk)
        self._read(chunk, end=False)
        return chunk

    def close(self) -> bytes:
        """Read what the end completes; return what the client still gets."""
        if self.reader is None:
            return b""
        if self.filters:
            return self.reader.close()
        self._read(b"", end=True)
        return b""

    def account(self, exchange: Exchange, host: str | None, source: UsageSource | None) -> None:
        """Write down what was read of the answer, and its price at the host that gave it."""
        reader = self.reader
        if reader is None:
            return
        exchange.response_model = name_of(reader.model)
        exchange.finish_reason = name_of(reader.finish_reason)
        exchange.usage = reader.usage
        exchange.usage_source = source if reader.usage else None
        models = (reader.model, exchange.request_model)
        exchange.cost_usd = cost_usd(reader.usage, provider_host=host, models=models)

    def _read(self, chunk: bytes, *, end: bool) -> None:
        """Read beside the stream: whatever happens here, the client's bytes are not touched."""
        assert self.reader is not None
        try:
            self.reader.feed(self._decoded(chunk, end=end))
            if end:
                self.reader.close()
        except ValueError:
            self.reader = None  # what can't be decoded stays unread
        except Exception as fault:  # noqa: BLE001
            log_fault(_logger, "an answer could not be read; its usage is unknown", fault)
            self.reader = None

    def _decoded(self, chunk: bytes, *, end: bool) -> bytes:
        if self._decoder is None:
            return chunk
        if not end:
            return self._decoder.feed(chunk)
        try:
            return self._decoder.close()
        except Undecodable:
            return b""  # cut short: what has been read still counts
