"""The contentview "LLM" of mitmweb and the console; in mitmdump, what flow_detail prints.

It is chosen by itself for what goes to and comes from hosts of ours, and for bodies on the path of
a known API that are of that API. All it needs is on the flow, so that saved ones are shown alike.
"""

import logging

from mitmproxy import contentviews, http

from pointsman.protocols.api import Api, detect, named
from pointsman.protocols.encoding import TooLarge, Undecodable, stream_decoder
from pointsman.proxy.faults import describe
from pointsman.proxy.showing import COMPARED, CUT, WAY, is_ours
from pointsman.viewing.bodies import (
    asks,
    guess,
    is_event_stream,
    says,
    show_answer,
    show_request,
)
from pointsman.viewing.comparing import section
from pointsman.viewing.route import read

logger = logging.getLogger(__name__)

_CHOSEN = 5.0  # mitmproxy's own views take 1 for their type of content, 2 for GraphQL
_UNFIT = -1.0


class LLMContentview(contentviews.Contentview):
    """Requests as conversations, answers and streams as what was said."""

    name = "LLM"
    syntax_highlight = "yaml"

    def prettify(self, data: bytes, metadata: contentviews.Metadata) -> str:
        """Return a body as text."""
        try:
            return self._shown(data, metadata)
        except Exception as fault:  # noqa: BLE001 (bodies come from anyone)
            # Its message may quote the body.
            logger.error("the view LLM failed\n%s", describe(fault))  # noqa: TRY400
            return "The view LLM failed on this body; choose another one, such as raw.\n"

    def _shown(self, data: bytes, metadata: contentviews.Metadata) -> str:
        message, flow = metadata.http_message, metadata.flow
        data = _decoded(data, message)
        known = flow.metadata if flow else {}
        way = read(known.get(WAY))
        api = _api(metadata) or guess(data)
        if not isinstance(message, http.Response):
            path = flow.request.path if isinstance(flow, http.HTTPFlow) else ""
            return show_request(data, api, way, path)
        whole = known.get(CUT)
        return show_answer(
            data,
            api,
            event_stream=is_event_stream(metadata.content_type, data),
            way=way,
            whole_size=whole if isinstance(whole, int) else None,
            compared=section(known.get(COMPARED)),
            bodiless=isinstance(flow, http.HTTPFlow) and not flow.request.raw_content,
        )

    def render_priority(self, data: bytes, metadata: contentviews.Metadata) -> float:
        """Tell how well the view fits."""
        try:
            return _CHOSEN if self._fits(data, metadata) else _UNFIT
        except Exception as fault:  # noqa: BLE001
            logger.error("the view LLM could not look at a body\n%s", describe(fault))  # noqa: TRY400
            return _UNFIT

    def _fits(self, data: bytes, metadata: contentviews.Metadata) -> bool:
        message, flow = metadata.http_message, metadata.flow
        if message is None or not isinstance(flow, http.HTTPFlow):
            return False
        api, answer = _api(metadata), isinstance(message, http.Response)
        if is_ours(flow):
            return _fits_ours(flow, message, data, api)
        if api is None:
            return False
        data = _decoded(data, message)
        if answer:
            event_stream = is_event_stream(metadata.content_type, data)
            return bool(data) and says(api, data, event_stream=event_stream)
        return asks(api, data)


def _fits_ours(flow: http.HTTPFlow, message: http.Message, data: bytes, api: Api | None) -> bool:
    if isinstance(message, http.Response):
        return "x-pointsman-error" in message.headers or (bool(data) and api is not None)
    if not data:
        return WAY in flow.metadata  # of a GET, say
    return api is not None or guess(data) is not None


def _api(metadata: contentviews.Metadata) -> Api | None:
    """Return the API that is spoken: the one that was called, else the one of the path."""
    flow = metadata.flow
    if not isinstance(flow, http.HTTPFlow):
        return None
    request = flow.request
    found = named(flow.metadata.get("llm_api")) or detect(request.method, request.path)
    if found is None and request.method == "POST" and is_ours(flow):
        return guess(request.raw_content or b"")
    return found


def _decoded(data: bytes, message: http.Message | None) -> bytes:
    """Undo the coding that mitmproxy could not: of a body that was cut short, as far as it goes."""
    coding = message.headers.get("content-encoding", "") if message else ""
    if not coding or message is None or data is not message.raw_content:
        return data
    out = bytearray()
    try:
        decoder = stream_decoder(coding)
        for start in range(0, len(data), _STEP):
            out += decoder.feed(data[start : start + _STEP]) if decoder else b""
            if len(out) > _MAX_DECODED:
                break
    except (Undecodable, TooLarge):
        pass
    return bytes(out) or data


_STEP = 64 * 1024
_MAX_DECODED = 16 * 1024 * 1024


def register() -> None:
    """Put the view in mitmproxy's list; a second time replaces it."""
    contentviews.add(LLMContentview)
