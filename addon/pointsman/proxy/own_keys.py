"""The clients' own keys: flows show masks in their place, and the wire gets the keys.

What stands behind the masks is kept in memory alone. In a UI it outlives the request: a flow that
is replayed to a provider without `configs` needs the client's key again.
"""

from collections import OrderedDict
from collections.abc import Mapping

from mitmproxy import http

from pointsman.config.credentials import mask
from pointsman.routing.masking import mask_protocols, mask_query
from pointsman.routing.request import text
from pointsman.routing.rewriting import CREDENTIAL_HEADERS

type Masked = Mapping[tuple[bytes, bytes], bytes]  # (header name, mask) → value

OWN_KEYS_OF = "llm_own_keys_of"  # a copy of a flow has another id, and the metadata of the original
_PATH = b":path"  # as HTTP/2 names it, among the headers
_MOST = 5000


class OwnKeys:
    """The keys of the latest flows, by the flow's id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Masked] = OrderedDict()

    def keep(self, flow: str, masked: Masked) -> None:
        """Remember what stands behind the masks of a flow."""
        self._kept[flow] = dict(masked)
        self._kept.move_to_end(flow)
        while len(self._kept) > _MOST:
            self._kept.popitem(last=False)

    def of(self, flow: str) -> Masked:
        """Return what stands behind the masks of a flow; nothing where it is not known."""
        return self._kept.get(flow, {})


class Masks:
    """The masks on one flow, and what stands behind them."""

    def __init__(self, flow: http.HTTPFlow, own_keys: OwnKeys | None) -> None:
        self._flow = flow
        self._own_keys = own_keys
        self._values: dict[tuple[bytes, bytes], bytes] = {}

    def put(self) -> None:
        """Mask the keys that stand on the flow; again, if called again.

        A replayed flow has masks already, in whose place the keys come back.
        """
        flow, known = self._flow, self._of_original()
        data = flow.request.data
        data.headers.fields = tuple(
            (name, self._shown(name, sent, known)) for name, sent in data.headers.fields
        )
        data.path = self._shown(_PATH, data.path, known)
        if self._own_keys is not None and self._values:
            flow.metadata[OWN_KEYS_OF] = flow.id
            self._own_keys.keep(flow.id, self._values)

    def _of_original(self) -> Masked:
        if self._own_keys is None or not self._flow.is_replay:
            return {}
        return self._own_keys.of(str(self._flow.metadata.get(OWN_KEYS_OF)))

    def _shown(self, name: bytes, sent: bytes, known: Masked) -> bytes:
        if (name, sent) in self._values:
            return sent  # a mask of ours
        value = known.get((name, sent), sent)
        masked = _masked(name, value)
        if masked is None:
            return value
        shown = masked
        again = 1
        # A header may come twice, and short keys look alike.
        while self._values.get((name, shown), value) != value:
            again += 1
            shown = b"%b (%d)" % (masked, again)
        self._values[name, shown] = value
        return shown

    def path(self) -> str:
        """Return the path as the client sent it."""
        return self._value(_PATH, self._flow.request.data.path).decode("utf-8", "surrogateescape")

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers as the client sent them."""
        fields = self._flow.request.headers.fields
        return tuple((name, self._value(name, shown)) for name, shown in fields)

    def _value(self, name: bytes, shown: bytes) -> bytes:
        return self._values.get((name, shown), shown)

    def behind(self, wanted: bytes) -> bytes | None:
        """Return what stands behind the mask of a header; None where it has none."""
        found = (value for (name, _), value in self._values.items() if name.lower() == wanted)
        return next(found, None)


def _masked(name: bytes, value: bytes) -> bytes | None:
    """Return a header's value, or the path, with masks for the keys; None where it holds none."""
    # With a space after its name a header is refused, but the flow is kept.
    if name.strip().lower() in CREDENTIAL_HEADERS:
        return mask(text(value)).encode()
    if name == _PATH:
        path = value.decode("utf-8", "surrogateescape")
        masked = mask_query(path).encode("utf-8", "surrogateescape")
    elif name.lower() == b"sec-websocket-protocol":
        masked = mask_protocols(value)
    else:
        return None
    return None if masked == value else masked
